"""Files of ViTs' weights, TransReID's and timm's: keys, positions and cameras, fields that follow."""

import functools

import numpy as np

from reid_jax.errors import WeightsError
from reid_jax.models import Keys
from reid_jax.models.backbones import vit_grids
from reid_jax.models.backbones.vit import SIZES

_BLOCKS = 64  # that files may have


def names(modules, leaf, front="base."):
    """Keys of a leaf in files of TransReID and, without `base.`, of timm; see models.Keys.

    A head's own last block and norm start from those of the backbone where the file has none of them.
    """
    from reid_jax.models.weights.names import dotted, leaf_name

    top, inner = modules[0], ".".join([*map(dotted, modules[1:]), leaf_name(leaf)])
    fronts = (front, "base." if not front else "")
    if top == "base":
        return [f + inner for f in fronts]
    if top in ("b1_0", "b2_0"):
        last = (f"blocks.{i}.{inner}" for i in reversed(range(_BLOCKS)))
        return [f"{dotted(top)}.{inner}", *(f + key for key in last for f in fronts)]
    if top in ("b1_1", "b2_1"):
        return [f"{dotted(top)}.{inner}", *(f"{f}norm.{inner}" for f in fronts)]
    return [f"{top.replace('neck', 'bottleneck')}.{inner}"]


def read(entries, leaf):
    """Positions of a file as ours: the class token's apart, the others resized to the model's grid.

    entries: {key: array}; leaf: {path: leaf of the model}. Resized bilinearly, corners not aligned. DeiT's
    second token goes by the presence of its own. Returns ({key: (key in the file, array)}, sentences).
    """
    positions, notes = {}, _heads(entries)
    for key in ("base.pos_embed", "pos_embed"):
        like = leaf.get(("params", "base", "pos_embed"))
        if like is not None and key in entries:
            front, value = key.removesuffix("pos_embed"), np.asarray(entries[key])
            if value.ndim != 3 or value.shape[-1] != like.shape[-1]:
                raise WeightsError(
                    f"{key} has shape {value.shape}, the model is {like.shape[-1]} wide; is the file of "
                    "another backbone?"
                )
            distilled = f"{front}dist_token" in entries
            grid = vit_grids.resized(value[0, 1 + distilled :], like.shape[:2])
            positions |= {f"{front}cls_pos": (key, value[:, :1]), key: (key, grid)}
            if grid.shape[0] * grid.shape[1] != value.shape[1] - 1 - distilled:
                notes.append(
                    f"positions of {value.shape[1] - 1 - distilled} patches resized to {grid.shape[:2]}"
                )
        positions |= _cameras(entries, leaf, key.replace("pos", "sie"), notes)
    return positions, notes


def _heads(entries):
    """Sentences on what belongs to other tasks."""
    tops = {k.removeprefix("base.").partition(".")[0] for k in entries}
    foreign = sorted(tops & {"head", "head_dist", "fc", "pre_logits", "dist_token"})
    return [f"{', '.join(foreign)}: of ImageNet's classes; not used"] if foreign else []


def _cameras(entries, leaf, key, notes):
    """Embeddings of another number of cameras, put aside."""
    like = leaf.get(("params", "base", "sie_embed"))
    if like is None or key not in entries or entries[key].shape == like.shape:
        return {}
    counts = len(entries[key]), like.shape[0]
    notes.append(f"{key} is of {counts[0]} cameras, the model of {counts[1]}; it is not used")
    return {f"{key}.other_cameras": (key, entries[key])}


def write(entries):
    """The inverse of `read`, for files: {key: array} with whole positions [1,1+N,C]."""
    joined = dict(entries)
    for key in [k for k in entries if k.endswith("cls_pos")]:
        grid = key.replace("cls_pos", "pos_embed")
        parts = joined.pop(key), np.asarray(entries[grid]).reshape(1, -1, entries[grid].shape[-1])
        joined[grid] = np.concatenate(parts, 1)
    return joined


def fields(entries):
    """Fields of config.model that follow from a file."""
    front = "base." if "base.pos_embed" in entries else ""
    _, count, width = entries[f"{front}pos_embed"].shape
    count -= 1 + (f"{front}dist_token" in entries)
    jigsaw = any(k.startswith("b1.") for k in entries)  # beside it our own files have no last block
    blocks = {k.split("blocks.")[1].split(".")[0] for k in entries if "blocks." in k}
    depths = (len(blocks), len(blocks) + jigsaw)
    backbones = [n for n, s in SIZES.items() if s.width == width and s.depth in depths]
    strides = (
        s for size in vit_grids.IMAGES for s in vit_grids.STRIDES if vit_grids.patches(size, s) == count
    )
    implied = {"head": "jpm" if jigsaw else "token", "vit_stride": next(strides, 16)}
    implied |= {"backbone": backbones[0]} if backbones else {}
    return implied | ({"vit_sie": 3.0} if f"{front}sie_embed" in entries else {})


def _matches(front):
    return lambda entries: f"{front}cls_token" in entries and f"{front}patch_embed.proj.weight" in entries


KEYS = {
    "transreid": Keys(names, _matches("base."), read=read, write=write, fields=fields, bare=True),
    "timm_vit": Keys(
        functools.partial(names, front=""), _matches(""), read=read, write=write, fields=fields, bare=True
    ),
}
