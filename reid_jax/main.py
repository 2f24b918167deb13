"""Trains, resumes, evaluates and reports: `python -m reid_jax.main --config=configs/efl.py:market`.

Modes: "train" goes on from the newest checkpoint of --workdir, or starts; at the end it evaluates and
writes WORKDIR/report.html. "evaluate" tests the best (or --checkpoint) checkpoint of --workdir.
"""

import errno
import logging
import os
import platform
import sys
import time
from importlib import metadata

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from tqdm import tqdm

from reid_jax import methods
from reid_jax.errors import ConfigError, ReidError

log = logging.getLogger("reid_jax")
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and variant: configs/efl.py:market")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the report (default: runs/CONFIG_VARIANT)."
)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Mode evaluate: best | latest | a step number of --workdir."
)


class TqdmHandler(logging.Handler):
    """Log lines above the progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)


def main(argv):
    """Entry point after the flags are parsed."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells of every file it writes
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; fields are set as --config.data.root=DIR")
    if CONFIG.value is None:
        raise ConfigError("--config is needed, for example --config=configs/efl.py:synthetic")
    prepare_jax()
    from reid_jax.data import datasets
    from reid_jax.train import checkpoint, parallel, stages

    config, workdir = CONFIG.value, WORKDIR.value or default_workdir()
    settings = checkpoint.plain(config)
    runner = parallel.Runner(config.train.backend)
    if MODE.value == "evaluate":
        checkpoint.check_config(workdir, settings)
        return evaluate(config, datasets.load(config.data, workdir), workdir, runner)
    for name in stages.to_train(config):
        stages.check_batch(stages.settings(config, name), runner)
    checkpoint.claim_workdir(workdir, settings)
    return train(config, datasets.load(config.data, workdir), workdir, runner)


def default_workdir():
    """configs/efl.py:market -> runs/efl_market."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join("runs", f"{name}_{variant}" if variant else name)


def train(config, dataset, workdir, runner):
    """Trains to the end, then writes the summary and the report."""
    from reid_jax.train import checkpoint, loop, sequence, stages

    log.info("%s", describe(dataset))
    began = time.monotonic()
    try:
        result = sequence.train(config, dataset, workdir, runner)
    except loop.Stopped as stop:
        stage, step = stop.args
        log.info("stopped on request at step %d of stage %r, saved; the same command goes on", step, stage)
        return 0
    summary = {
        "seconds": result["seconds"],
        "wall_seconds": time.monotonic() - began,
        "steps": result["step"],
        "images_per_second": result["images_per_second"],
        "data_root": dataset.root,
        "camera_names": list(dataset.camera_names),
        "devices": f"{len(runner.devices)} x {runner.devices[0].device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": versions(),
    }
    checkpoint.write_json(os.path.join(workdir, "summary.json"), summary)
    last = methods.stage_names(config.method)[-1]
    if config.report.enabled and last in stages.to_train(config):
        write_report(config, dataset, workdir)
    log.info("checkpoints, metrics.jsonl and eval/ are in %s", workdir)
    return 0


def write_report(config, dataset, workdir):
    """WORKDIR/report.html; a failure here does not lose the run."""
    from reid_jax import report

    path = report.build(
        workdir,
        data_root=dataset.root,
        queries=config.report.queries,
        baseline=config.report.baseline,
    )
    log.info("report: %s", path)


def evaluate(config, dataset, workdir, runner):
    """Evaluates one checkpoint of workdir; prints the figures, writes WORKDIR/evaluate/."""
    from reid_jax.train import evaluate as evaluation
    from reid_jax.train import stages

    name, checkpoints = stages.last_begun(workdir)
    own, method, _ = stages.build(config, dataset, name, runner.axis_name)
    like = stages.state_shapes(own, method, len(dataset.train))
    state, meta = checkpoints.restore(like, checkpoints.choose(CHECKPOINT.value))
    results = evaluation.Evaluator(own, dataset, method, runner)(runner.replicate(state))
    for net, result in results.items():
        print(evaluation.line(f"step {meta['step']} {net}", result.figures))
        if "same_id" in result.figures:
            print(evaluation.table1(result.figures))
    evaluation.save_final(own, workdir, meta["step"], results, folder="evaluate")
    checkpoints.close()
    log.info("figures and features: %s", os.path.join(workdir, "evaluate"))
    return 0


def prepare_jax():
    """Compilation cache on; no queued steps on several simulated CPU devices (they can deadlock)."""
    from reid_jax.models import cpu

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "reid_jax", "xla"))
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    cpu.keep_heap()


def describe(dataset):
    """One line about a data set."""
    what = "tracklets" if dataset.kind == "video" else "images"
    return (
        f"{dataset.name} ({dataset.root}): train {len(dataset.train)} {what}, "
        f"{dataset.num_train_pids} identities, {dataset.num_cams} cameras; "
        f"query {len(dataset.query)}, gallery {len(dataset.gallery)}"
    )


def versions():
    """Versions of what a run depends on."""
    packages = ("reid_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def parse_flags(argv):
    """absl's parser with errors that name the flag or field."""
    try:
        return flags.FLAGS(argv)
    except ConfigError:
        raise
    except (AttributeError, KeyError) as e:
        raise ConfigError(f"no such config field: {e.args[0] if e.args else e}") from e
    except (flags.Error, TypeError, ValueError) as e:
        raise ConfigError(str(e)) from e
    except (OSError, ImportError, SyntaxError) as e:
        raise ConfigError(f"--config: {e}") from e


def run(argv=None):
    """Parses flags, runs main, turns errors a user can act on into one message and exit code 2."""
    handler = TqdmHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        app.run(main, argv=argv, flags_parser=parse_flags)
    except ReidError as e:
        sys.exit(fail(str(e)))
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({e.filename})" if e.filename else ""
        sys.exit(fail(f"no space left on the device{where}; free some and run the same command again"))


def fail(message):
    """Says what went wrong; the exit code."""
    sys.stderr.write(f"error: {message}\n")
    return 2


if __name__ == "__main__":
    run()
