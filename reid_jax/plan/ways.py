"""What to change when a step does not fit: each way is tried by compiling it."""

import copy

from reid_jax import methods


def of_config(config, method):
    """[(words, changed config)] that save memory, mildest first, without those that are in use."""
    ways = []
    if config.model.dtype != "bfloat16":
        ways.append(("--config.model.dtype=bfloat16", changed(config, "model", dtype="bfloat16")))
    if not config.model.remat:
        ways.append(("--config.model.remat", changed(config, "model", remat=True)))
    if method.accumulates:
        turns = 2 * config.train.accumulate
        for count in (turns, 2 * turns):
            ways.append((f"--config.train.accumulate={count}", changed(config, "train", accumulate=count)))
    return ways


def changed(config, section, **fields):
    """The config with fields of a section replaced."""
    other = copy.deepcopy(config)
    for name, value in fields.items():
        setattr(getattr(other, section), name, value)
    return other


def with_ids(config, ids):
    """The config with batches of that many identities."""
    return changed(config, "data", ids=ids)


def largest(fits, start, limit=4096):
    """The largest n up to limit for which fits(n): doubled or halved from start, then bisected; 0 for none.

    fits: n -> bool, true below some n and false above; it is asked about 2 log2(limit) times.
    """
    low, high, n = 0, limit + 1, max(start, 1)
    while 0 < n <= limit and (low == 0 or high > limit):
        low, high = (n, high) if fits(n) else (low, n)
        if high <= limit and low:
            break
        n = 2 * n if high > limit else n // 2
    while high - low > 1 and low:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def stage_method(config, name, info):
    """The Method of a stage, to ask what it can do."""
    return methods.build(config, name, info)
