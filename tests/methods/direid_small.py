"""A narrow DI-REID for tests: config, data set facts, triples of random pictures."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from reid_jax import methods
from reid_jax.config import namespace
from reid_jax.methods import direid

SIZE = 32
CONFIGS = Path(__file__).parents[2] / "configs"
_SMOKE = runpy.run_path(str(CONFIGS / "direid.py"))["get_config"]("smoke").direid
_USUAL = direid.FIELDS | {"gan_milestones": _SMOKE.gan_milestones}
NARROW = {k: v for k, v in _SMOKE.items() if v != _USUAL[k]} | dict(degradation_scales=2, dropout=0.0)


def config(preset="paper", pairs="un", **fields):
    """preset: paper or one of direid.PRESETS."""
    tree = methods.defaults("direid")
    tree["direid"].update(direid.PRESETS.get(preset, {}) | NARROW | fields)
    tree["data"].update(height=SIZE, width=SIZE, pairs=pairs)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 6, 8), bn_group="global", pool="max")
    tree["loss"].update(triplet="euclidean", feature="before_bn")
    tree["optim"].update(b1=0.0, eps=1e-3, lr=1e-2, milestones=())
    return namespace(tree)


def info(axis_name=None):
    """A data set's facts, the bank's size among them."""
    facts = dict(num_pids=5, num_cams=2, steps_per_epoch=5, total_steps=50, num_images=9)
    return methods.Info(**facts, axis_name=axis_name)


def triples(seed=0, size=4):
    """A batch as `gan.Ddgan.images` gives it."""
    rng = np.random.default_rng(seed)
    images = {f"x_{n}": rng.standard_normal((size, SIZE, SIZE, 3)).astype(np.float32) for n in "ijk"}
    pids = {f"pid_{n}": rng.integers(0, 5, size).astype(np.int32) for n in "ik"}
    return {k: jnp.asarray(v) for k, v in (images | pids).items()}
