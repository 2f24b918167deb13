"""Checkpoints by Orbax: state, position in the data and config, written together.

The data pipeline is a pure function of (seed, step), so the step is its whole position. The
latest two steps, in case the last one gets damaged, and the best (by mAP) are kept. A state is
stored as a flat {leaf path: array} dict, which does not depend on optax's or our own container types.
A state is saved before it is evaluated; its figures are added to the checkpoint afterwards.
"""

import errno
import json
import logging
import os
import shutil
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.checkpoint_manager import METRIC_ITEM_NAME

from reid_jax import methods
from reid_jax.config import defaults
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.fields import flatten, misfit
from reid_jax.train import processes

# Fields that change how a run is carried out, not what it computes.
RUNTIME_FIELDS = (
    "data.root", "data.workers", "data.threads", "data.prefetch", "data.cache_mib",
    "data.source", "data.device_prefetch", "data.test_clip", "data.chunk", "data.on_broken",
    "train.only", "train.profile", "train.log_every", "train.eval_every", "train.checkpoint_every",
    "eval.", "report.",
)  # fmt: skip
LAYOUT = 2  # of the arrays and the position; 1 had pseudo labels and memories elsewhere
_SPARE = 2**18  # bytes of a checkpoint beside its arrays
_METRIC, NOT_EVALUATED = "mAP", -1.0
_CHECKSUMS = "checksums"  # field of the stored meta
log = logging.getLogger(__name__)


def differences(old, new):
    """[(field, old value, new value)] of two nested config dicts, runtime fields left out.

    A field that `old`, made by an earlier version, does not have counts as its default; one that only `old`
    has is gone and counts for nothing.
    """
    old, new, known = flatten(old), flatten(new), flatten(methods.defaults(new["method"]))
    fields = sorted(f for f in new if not f.startswith(RUNTIME_FIELDS))
    return [(f, old.get(f), new.get(f)) for f in fields if old.get(f, known.get(f)) != new.get(f)]


def claim_workdir(workdir, config):
    """Writes WORKDIR/config.json, or checks that the one there is of the same run.

    Raises CheckpointError naming every field that differs, or why the folder cannot be written.
    """
    path = os.path.join(workdir, "config.json")
    try:
        os.makedirs(workdir, exist_ok=True)
        if os.path.exists(path):
            check_config(workdir, config)
        write_json(path, config)
    except OSError as e:
        raise CheckpointError(f"cannot write to --workdir={workdir}: {e.strerror or e}") from e


def check_config(workdir, config):
    """Raises CheckpointError when WORKDIR was made by another config."""
    differing = differences(read_config(workdir), config)
    if differing:
        lines = "\n".join(f"  {f}: {a!r} there, {b!r} now" for f, a, b in differing)
        raise CheckpointError(
            f"{workdir} was made by another config:\n{lines}\nUse another --workdir, or the same values."
        )


def read_config(workdir):
    """WORKDIR/config.json as a nested dict."""
    path = os.path.join(workdir, "config.json")
    try:
        with open(path) as f:
            tree = json.load(f)
        if wrong := misfit(tree, defaults()):
            raise ValueError(wrong)
    except FileNotFoundError:
        raise CheckpointError(f"{workdir} holds no run: {path} is missing; train there first") from None
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged ({e}); remove it or use another --workdir") from e
    return tree


def write_json(path, tree):
    """Writes JSON so that a kill at any moment leaves the old file or the new one."""
    part = f"{path}.part"
    with open(part, "w") as f:
        json.dump(tree, f, indent=1, sort_keys=True)
        f.write("\n")
    os.replace(part, path)


class Manager(ocp.CheckpointManager):
    """Orbax's, which also opens a folder where the metrics of a checkpoint are damaged or gone."""

    def metrics(self, step):
        """{"mAP": percent, ...} of a checkpoint as `Checkpoints.add_figures` wrote them, or older versions;
        the mAP is NOT_EVALUATED when they cannot be read or are not those that were written.
        """
        try:
            stored = super().metrics(step)
            metrics = {_METRIC: float(stored[_METRIC])}
            if "lines" not in stored:
                return metrics
            metrics["lines"] = int(stored["lines"])
            if stored["checksum"] == _checksum(metrics):
                return metrics
        except (ValueError, TypeError, KeyError):
            pass
        return {_METRIC: NOT_EVALUATED}


class Checkpoints:
    """The checkpoints of one stage, in WORKDIR/checkpoints/STAGE.

    With several processes the first one writes; all read.
    """

    def __init__(self, workdir, stage):
        self.folder = os.path.abspath(os.path.join(workdir, "checkpoints", stage))
        keep = policies.AnyPreservationPolicy(
            [policies.LatestN(2), policies.BestN(get_metric_fn=lambda m: m[_METRIC], n=1)]
        )
        me = jax.process_index()  # the state is the same everywhere, so no manager waits for another
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda m: m[_METRIC],  # makes the manager read metrics back
            enable_async_checkpointing=processes.first(),
            multiprocessing_options=alone,
            read_only=not processes.first(),
            create=False,  # orbax makes no folder for a part of the processes
        )
        os.makedirs(self.folder, exist_ok=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self.manager = Manager(epath.Path(self.folder), options=options, item_handlers=handlers)

    def steps(self):
        """Finished checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def best(self):
        """Step of the best evaluated checkpoint, the latest when none was evaluated, or None."""
        return max(self.steps(), key=lambda s: (self.manager.metrics(s)[_METRIC], s), default=None)

    def choose(self, wanted):
        """The step that 'best', 'latest' or a number names; errors say what there is."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint yet; train first")
        if wanted == "latest":
            return steps[-1]
        if wanted == "best":
            return self.best()
        if str(wanted).isdigit() and int(wanted) in steps:
            return int(wanted)
        raise ConfigError(f"checkpoint {wanted!r}: use best, latest or one of {steps} ({self.folder})")

    def save(self, step, state, meta, wait=False):
        """Saves asynchronously (`wait`: until it is on the disk); `state` is host numpy. Process 0 does it.

        Raises CheckpointError when this or the previous save failed, a full disk above all.
        """
        if not processes.first():
            return
        flat = _flat(state)
        self._check_space(step, sum(np.asarray(x).nbytes for x in flat.values()))
        stored = {**meta, _CHECKSUMS: checksums(flat, meta)}
        items = {"state": ocp.args.StandardSave(flat), "meta": ocp.args.JsonSave(stored)}
        metrics = {_METRIC: NOT_EVALUATED}
        try:
            if step not in self.steps():
                self.manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)
            if wait:
                self.manager.wait_until_finished()
        except Exception as e:  # orbax and tensorstore wrap errors in many types
            raise self._explain(e, step) from e

    def wait(self):
        """Until every save is on the disk; errors as in save."""
        try:
            self.manager.wait_until_finished()
        except Exception as e:
            raise self._explain(e, None) from e

    def add_figures(self, step, figures, lines):
        """Writes into a saved checkpoint that it was evaluated. Process 0 does it; errors as in save.

        figures: {"mAP": percent, ...} that the best is chosen by, None without a test set of its own.
        lines: of metrics.jsonl after the evaluation.
        """
        if not processes.first():
            return
        self.wait()
        metrics = {_METRIC: float(figures[_METRIC]) if figures else NOT_EVALUATED, "lines": int(lines)}
        try:
            write_json(self._metrics_file(step), metrics | {"checksum": _checksum(metrics)})
            self.manager.reload()  # it chooses the best when it removes old ones
        except OSError as e:
            raise self._explain(e, step) from e

    def evaluated(self, step):
        """Whether the figures of a checkpoint were added to it."""
        metrics = self.manager.metrics(step)
        return "lines" in metrics or metrics[_METRIC] != NOT_EVALUATED

    def _metrics_file(self, step):
        """Where Orbax keeps the metrics of a checkpoint."""
        return os.path.join(self.folder, str(step), METRIC_ITEM_NAME, METRIC_ITEM_NAME)

    def _check_space(self, step, size):
        """Raises CheckpointError before a save of `size` bytes that the disk has no room for."""
        free = shutil.disk_usage(self.folder).free
        if free < size + _SPARE:
            raise self._explain(OSError(errno.ENOSPC, f"{size + _SPARE} bytes needed, {free} free"), step)

    def _explain(self, error, step):
        text = str(error)
        full = getattr(error, "errno", None) == errno.ENOSPC
        full = full or any(sign in text for sign in ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED"))
        why = "no space left on the device; free some" if full else f"{text[:500]}; mend that"
        return CheckpointError(
            f"checkpoint {'' if step is None else step} could not be written to {self.folder}: {why} "
            "and run the same command again. "
            f"Readable checkpoints: {self.steps() or 'none'}"
        )

    def restore(self, like, step=None):
        """(state like `like` as numpy, meta) of `step`, or of the newest readable checkpoint.

        like: tree of arrays or ShapeDtypeStructs. A damaged newest checkpoint is passed over with a
        warning and removed, so that training can save that step again. Returns (None, None) when there is no
        checkpoint at all. Process 0 chooses for all.
        """
        cache = {}

        def choose():
            chosen, cache["state"] = self._newest_readable(like, step)
            for damaged in [s for s in self.steps() if step is None and chosen is not None and s > chosen]:
                self.manager.delete(damaged)
            return chosen

        chosen = processes.from_first(choose)
        if chosen is None:
            return None, None
        return cache.get("state") or self._read(chosen, like)

    def _newest_readable(self, like, step):
        """(step, (state, meta)) of a checkpoint that can be read, (None, None) when there is none at all."""
        steps = [step] if step is not None else list(reversed(self.steps()))
        problems = []
        for s in steps:
            try:
                return s, self._read(s, like)
            except CheckpointError:
                raise
            except Exception as e:
                problems.append(f"{s}: {type(e).__name__}: {str(e)[:200]}")
                log.warning("checkpoint %s in %s cannot be read (%s); trying an older one", s, self.folder, e)
        if problems:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read:\n  " + "\n  ".join(problems))
        return None, None

    def _read(self, step, like):
        target = _flat(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like))
        have = self.shapes(step)
        want = {k: tuple(v.shape) for k, v in target.items()}
        wrong = sorted(k for k in {*have, *want} if have.get(k) != want.get(k))
        if wrong and self.read_meta(step).get("layout", 1) < LAYOUT:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} was written by an earlier version of reid_jax, which "
                "laid out this method's networks and memories otherwise: use that version, or train again in "
                "a new --workdir"
            )
        if wrong:
            shown = "\n".join(f"  {k}: {have.get(k)} there, {want.get(k)} now" for k in wrong[:8])
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} does not fit this model "
                f"({len(wrong)} arrays differ):\n{shown}"
            )
        arrays, meta = self._arrays(step, target)
        meta |= {k: v for k, v in self.manager.metrics(step).items() if k == "lines"}
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[k] for k in target]), meta

    def read_meta(self, step):
        """What was saved beside the state of a checkpoint; CheckpointError if that is damaged."""
        try:
            meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as e:
            raise self._unreadable(step, e) from e
        return {k: v for k, v in meta.items() if k != _CHECKSUMS}

    def shapes(self, step):
        """{leaf path: shape} of a checkpoint, without reading its arrays."""
        return {k: tuple(v.shape) for k, v in self.manager.item_metadata(step)["state"].items()}

    def read_arrays(self, step):
        """{leaf path: numpy array} of a checkpoint, whatever model it is of; CheckpointError if damaged."""
        try:
            return self._arrays(step, self.manager.item_metadata(step)["state"])[0]
        except Exception as e:
            raise self._unreadable(step, e) from e

    def read_some(self, step, names):
        """{leaf path: numpy array} of some leaves of a checkpoint, the others not being read; CheckpointError
        when one is damaged or not there."""
        try:
            saved = self.manager.item_metadata(step)["state"]
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = {k: jax.ShapeDtypeStruct(saved[k].shape, saved[k].dtype, sharding=device) for k in names}
            options = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), target)
            args = ocp.args.PyTreeRestore(item=target, restore_args=options, partial_restore=True)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                leaves = reader.restore(epath.Path(self.folder) / str(step) / "state", args=args)
            arrays = {k: np.asarray(leaves[k]) for k in names}
            self._check_some(step, arrays)
        except Exception as e:
            raise self._unreadable(step, e) from e
        return arrays

    def _check_some(self, step, arrays):
        """ValueError when arrays are not those that were saved."""
        meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        want, have = meta.get(_CHECKSUMS, {}), checksums(arrays, {})
        if wrong := [k for k in arrays if k in want and list(want[k]) != have[k]]:
            raise ValueError(f"damaged: {', '.join(wrong[:3])}")

    def _unreadable(self, step, error):
        return CheckpointError(
            f"checkpoint {step} in {self.folder} cannot be read ({type(error).__name__}: {str(error)[:99]}); "
            "remove it and run the same command again"
        )

    def _arrays(self, step, target):
        """({leaf path: numpy array}, meta) for target {leaf path: something with shape and dtype}.

        Raises ValueError when they are not what was saved; Orbax itself notices no changed byte of an array.
        """
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding) for k, v in target.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
        out = self.manager.restore(step, args=args)
        arrays, meta = {k: np.asarray(v) for k, v in out["state"].items()}, out["meta"]
        want = meta.pop(_CHECKSUMS, {})  # older versions kept none
        have = checksums(arrays, meta)
        narrowed = {k for k in want if k in have and have[k][0] != want[k][0]}  # float64 read without x64
        if wrong := sorted(k for k in want if k not in narrowed and have.get(k) != want[k]):
            raise ValueError(f"damaged: {', '.join(wrong[:3])}")
        return arrays, meta

    def close(self):
        """Ends the background threads; an error of a save in the background is only logged."""
        try:
            self.manager.close()
        except Exception as e:
            log.warning("%s", self._explain(e, None))


def _checksum(tree):
    """CRC-32 of a JSON object."""
    return zlib.crc32(json.dumps(tree, sort_keys=True).encode())


def checksums(arrays, meta):
    """{leaf path: [dtype, CRC-32 of the bytes]} of numpy arrays; "meta": of the JSON of meta."""
    text = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    flat = {k: (str(x.dtype), np.ascontiguousarray(x).reshape(-1)) for k, x in arrays.items()}
    flat["meta"] = "json", text
    return {k: [dtype, zlib.crc32(x.view(np.uint8))] for k, (dtype, x) in flat.items()}


def _flat(tree):
    """Tree -> {leaf path: leaf} in flattening order; paths like nets/phi1/params/base/conv1/kernel."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
