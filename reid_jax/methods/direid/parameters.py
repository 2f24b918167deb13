"""Trained parameters of the first stage: what rests, and groups that have an optimiser state of their own."""

from flax import traverse_util

from reid_jax.methods.direid.stage import STEM

GENERATOR = ("E_con", "E_deg", "G")
DISCRIMINATORS = ("D_real", "D_deg")
FROZEN = {"E_con": (STEM,)}  # modules of the trained networks that rest; the teacher E_id rests as a whole


def group_of(path):
    """Group of a parameter by its path (network, module, ...): each group has an optimiser state of its own.

    "identity" (identity branch and classifier of E_con) and "sync" (E'_d) rest in phases without gradient.
    """
    if path[0] in DISCRIMINATORS:
        return path[0]
    if path[0] == "E_con" and (path[1] == "classifier" or path[2].startswith("identity_")):
        return "identity"
    return "sync" if path[0] == "E_deg" and path[1] in ("trunk_sync", "conv3_sync") else "generator"


def trained(nets, names):
    """{name: params} of networks, without the modules that are FROZEN."""
    return {
        name: {k: v for k, v in nets[name]["params"].items() if k not in FROZEN.get(name, ())}
        for name in names
    }


def with_params(nets, params):
    """nets with the params of some networks' modules replaced."""
    new = {n: {**nets[n], "params": {**nets[n]["params"], **p}} for n, p in params.items()}
    return {**nets, **new}


def split_groups(params):
    """{group: {"net/module/.../leaf": array}} of {name: params}."""
    groups = {}
    for path, leaf in sorted(traverse_util.flatten_dict(params).items()):
        groups.setdefault(group_of(path), {})["/".join(path)] = leaf
    return dict(sorted(groups.items()))  # the same order in every process


def join_groups(groups):
    """The inverse of `split_groups`."""
    leaves = {k: v for group in groups.values() for k, v in group.items()}
    return traverse_util.unflatten_dict(leaves, sep="/")
