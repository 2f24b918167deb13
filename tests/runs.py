"""Training runs in tests: started, stopped at a step, continued, compared bit for bit."""

import contextlib
import json
import signal
from pathlib import Path

import jax
import numpy as np

from reid_jax import cli
from reid_jax.data import datasets
from reid_jax.fields import plain
from reid_jax.methods import find
from reid_jax.train import checkpoint, run, signals, stages
from reid_jax.train.devices import Devices

CONFIGS = Path(__file__).parent.parent / "configs"


def config_of(name, **changes):
    """ConfigDict of 'adl.py:smoke'; changes: fields dotted with '__'."""
    config = cli.load_config(f"{CONFIGS}/{name}")
    for field, value in changes.items():
        *path, last = field.split("__")
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    return config


def tiny(method, **changes):
    """A method's smoke config with norms over all devices, and an Adam that rounding does not steer.

    Runs of different tests compile the same programs where they change nothing of nets, sizes and length.
    """
    fixed = dict(model__bn_group="global", optim__eps=1e-3, train__log_every=1)
    fixed |= dict(eval__net="auto", report__enabled=False)
    return config_of(f"{method}.py:smoke", **(fixed | changes))


def load(config, root):
    """The data set of a config, as a run of its method gets it; synthetic pictures are kept in root."""
    config.data.root = str(root)
    rules = dict(labels=find(config.method).LABELS, cameras=stages.reads_cameras(config))
    return datasets.load(config.data, str(root), config.seed, also=config.eval.also, **rules)


class StopAt(signals.StopSignal):
    """A SIGTERM that comes when `due` is asked for the `call`-th time at `step` (of stage `stage`)."""

    def __init__(self, step=-1, call=1):
        super().__init__()
        self.step, self.calls = step, call

    def due(self, step):
        self.calls -= step == self.step
        if step == self.step and self.calls == 0:
            self.requested = signal.SIGTERM
        return super().due(step)


def train(config, dataset, workdir, stop=None, count=1, kind=run.Run):
    """A run, or the rest of one, to its end or to `stop`, on `count` devices; the Run of its last stage."""
    checkpoint.claim_workdir(str(workdir), plain(config))
    last = None
    with contextlib.suppress(signals.Stopped):
        for name in stages.to_train(config):
            last = kind(config, name, dataset, str(workdir), Devices(jax.devices()[:count]), stop or StopAt())
            if name != last.names[-1] and last.done():
                last.checkpoints.close()
            else:
                last.train()
    return last


def lines(workdir, kind=None):
    """metrics.jsonl without seconds; kind: of the lines wanted, None for all."""
    every = [json.loads(x) for x in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "seconds"} for x in every if kind in (None, x["kind"])]


def newest(workdir, stage="train"):
    """({leaf path: array}, meta) of the newest checkpoint of a stage."""
    checkpoints = checkpoint.Checkpoints(str(workdir), stage)
    with contextlib.closing(checkpoints):
        step = checkpoints.steps()[-1]
        return checkpoints.read_arrays(step), checkpoints.read_meta(step)


def assert_same_run(a, b, stage="train"):
    """The same arrays, position and metrics, bit for bit."""
    (arrays, meta), (others, other_meta) = newest(a, stage), newest(b, stage)
    assert arrays.keys() == others.keys()
    for name, value in arrays.items():
        assert np.array_equal(value, others[name]), name
    drop = ("seconds", "config")
    assert {k: v for k, v in meta.items() if k not in drop} == {
        k: v for k, v in other_meta.items() if k not in drop
    }
    assert lines(a) == lines(b)
