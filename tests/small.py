"""A narrow EFL for tests: config, data set facts, a random batch; steps on some devices."""

import zlib

import jax
import numpy as np

from reid_jax import methods
from reid_jax.fields import namespace
from reid_jax.train import stages
from reid_jax.train.devices import AXIS, Devices


def small(mode="full", **fields):
    """A narrow EFL config; fields are dotted with '__'."""
    tree = methods.defaults("efl")
    tree["data"].update(height=16, width=8, ids=4, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), narrow_stripes=1, narrow_dim=8)
    tree["efl"].update(mode=mode, n_mi=2, mi_hidden=16, lambda_mi=0.05, mi_lr=1e-3, alpha=0.9, mi_start=0)
    for name, value in fields.items():
        section, field = name.split("__")
        tree[section][field] = value
    return namespace(tree)


def info(axis_name=AXIS):
    return methods.Info(num_pids=6, num_cams=3, steps_per_epoch=5, total_steps=50, axis_name=axis_name)


def random_batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    erase = np.zeros((size, 2, 4), np.int32)
    erase[::3, 0] = (2, 1, 5, 4)
    return {
        "image": rng.integers(0, 256, (size, 16, 8, 3), np.uint8),
        "pid": np.repeat(np.arange(size // 4) % 6, 4).astype(np.int32),
        "camid": rng.integers(0, 3, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
        "flip": rng.random((size, 2)) < 0.5,
        "crop": np.zeros((size, 2, 2), np.int32),
        "erase": erase,
    }


class Stepping:
    """A step on the first `count` simulated devices, compiled once; states are host trees."""

    def __init__(self, step, count=1, donate=False):
        def traced(state, batch):
            self.traces += 1
            return step(state, batch)

        self.traces = 0  # how often JAX has traced the step
        self.devices = Devices(jax.devices()[:count])
        self.compiled = self.devices.compile(traced, donate)

    def __call__(self, state, batch, steps=1):
        """(State, metrics) as numpy after some steps; batch: {stream: batch} or a function of the step."""
        state = self.devices.replicate(state)
        for i in range(steps):
            state, metrics = self.compiled(state, self.devices.shard(batch(i) if callable(batch) else batch))
        return self.devices.fetch(state), self.devices.fetch(metrics)


def fresh(method, seed=0):
    """A first State with the method's own draws, which take a while to compile; see `drawn`."""
    return jax.jit(method.init)(jax.random.key(seed))


FIRST = {"scale": 1, "var": 1, "gamma": 0.5, "gate": 1, "adaptive_weight": 0.1, "p": 3, "labels": -1}


def drawn(method, seed=0):
    """A first State as methods begin, drawn by numpy, kernels by their fan-in; nothing is compiled.

    Networks whose names have the same number are alike: a teacher and its student.
    """

    def fill(path, leaf):
        part, name = path[0].name, getattr(path[-1], "key", "")
        if part == "memory" and name == "features":
            return people(leaf.shape, seed)
        if part == "nets" and name in ("kernel", "W", "vertex"):  # the last two are a graph's
            network = "".join(filter(str.isdigit, path[1].key))
            rng = np.random.default_rng([seed, zlib.crc32(f"{network}{path[2:]}".encode())])
            return np.float32(rng.standard_normal(leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5)
        if part == "nets" and name == "used":
            return np.full(leaf.shape, 1000, leaf.dtype)  # every class
        return np.full(leaf.shape, 0 if part == "opt" else FIRST.get(name, 0), leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, stages.state_shapes(method)))


def people(shape, seed):
    """Unit features f32[N,D] of eight people in turn."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(8, shape[1]))[np.arange(shape[0]) % 8] + 0.05 * rng.normal(size=shape)
    return np.float32(f / np.linalg.norm(f, axis=1, keepdims=True))


def random_state(method, seed=0):
    """A State of random numbers, shaped as a fresh one, variances positive; nothing is compiled for it."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        value = 0.3 * rng.standard_normal(leaf.shape)
        value = 0.5 + abs(value) if "var" in jax.tree_util.keystr(path[-1:]) else value
        return np.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, stages.state_shapes(method))


def difference(a, b):
    """Largest absolute difference of two trees, 0 for empty ones."""
    sizes = jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)), initial=0)), a, b)
    return max(jax.tree.leaves(sizes), default=0.0)


def apart(start, a, b):
    """How far two trees {network: {collection: arrays}} are apart over how far b went from start.

    The largest ratio of Euclidean norms of any collection; single entries may differ as rounding has it.
    """

    def flat(tree):
        return np.concatenate([np.ravel(np.float64(x)) for x in jax.tree.leaves(tree)] or [np.zeros(0)])

    ratios = [0.0]
    for net, collections in b.items():
        for name in collections:
            x, y, begun = (flat(tree[net][name]) for tree in (a, b, start))
            ratios.append(np.linalg.norm(x - y) / max(np.linalg.norm(y - begun), 1e-12))
    return max(ratios)
