"""Modules with modes applied: to one batch, or to several parts one after the other."""

import jax

from reid_jax.models.layers import BatchNorm


def call(module, variables, *args, train, method=None, key=None):
    """Applies a module: (output, its batch_stats, moved in training); key: of dropout, where there is."""
    if not train:
        return module.apply(variables, *args, False, method=method), variables.get("batch_stats", {})
    rngs = None if key is None else {"dropout": key}
    out, changed = module.apply(variables, *args, True, method=method, mutable=["batch_stats"], rngs=rngs)
    return out, changed.get("batch_stats", {})


def each(module, variables, x, *, train, method=None, key=None):
    """`call` on every part x [P,B,...], one after the other: ([P,...] outputs, batch_stats).

    Each part has its own batch statistics; together they are one call, less work to compile.
    """
    keys = None if key is None else jax.random.split(key, len(x))

    def part(x, key=None):
        return call(module, variables, x, train=train, method=method, key=key)

    out, stats = jax.vmap(part)(x) if keys is None else jax.vmap(part)(x, keys)
    if not train:
        return out, variables.get("batch_stats", {})

    def in_turn(old, new):
        """From m old + (1 - m) a_i for every part to m (...) + (1 - m) a_P."""
        value = old
        for moved in new:
            value = moved + BatchNorm.momentum * (value - old)
        return value

    return out, jax.tree.map(in_turn, variables.get("batch_stats", {}), stats)
