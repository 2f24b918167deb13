"""Key layouts: how a leaf of our variables is called in other people's files.

The rules of a name: `layer1_0` is `layer1.0`; kernel, scale -> weight; mean, var -> running_mean,
running_var. What differs between layouts is the net's frame:

    here             torchvision  mmt             fastreid            ap3d         direid
    base.conv1       conv1        base.0          backbone.conv1      conv1        E_id.model.conv1
    base.bn1         bn1          base.1          backbone.bn1        bn1          E_id.model.bn1
    base.layerI_J    layerI.J     base.(I + 2).J  backbone.layerI.J   layerI.J     E_id.model.layerI.J
    neck             neck         feat_bn         heads.bottleneck.0  bn
    feat             feat         feat            feat                feat
    classifier       classifier   classifier      heads               classifier

torchvision is also the layout of timm, ResNeSt and deep-person-reid; imagenet is the same with the
classifier called `fc`. ap3d has five axes in every convolution. Where direid's E_id has only its top,
the rest comes from the stem it shares (E_con), and files of one network begin with `model`.
reid_jax is our own: params.base.layer1_0.conv1.kernel, arrays as they are.
"""

import re

from reid_jax.config import choice

LAYOUTS = {
    "torchvision": {"base": [""]},
    "imagenet": {"base": [""], "classifier": ["fc"]},
    "mmt": {"base": ["base"], "neck": ["feat_bn"]},
    "fastreid": {
        "base": ["backbone"],
        "neck": ["heads.bottleneck.0"],
        "classifier": ["heads", "heads.classifier"],
    },
    "ap3d": {"base": [""], "neck": ["bn"]},
    "direid": {"base": ["E_id.model", "E_con.model", "model"], "trunk": [""]},
    "reid_jax": {},
}
"""{layout: {module of ours: its names there, the first one is written}}."""
TARGETS = tuple(name for name in LAYOUTS if name != "direid")  # layouts that files are written in

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def keys(path, layout):
    """Keys that a leaf with path (collection, *modules, leaf) may have in a layout, the usual one first."""
    choice("naming", layout, tuple(LAYOUTS))
    if layout == "reid_jax":
        return [".".join(path)]
    _, *modules, leaf = path
    frame = LAYOUTS[layout].get(modules[0]) if modules else None
    inner = [_dotted(m) for m in (modules[1:] if frame else modules)]
    if layout == "mmt" and modules[:1] == ["base"]:
        inner[0] = _mmt_stage(inner[0])
    inner.append(_LEAVES.get(leaf, leaf))
    return [".".join([name, *inner] if name else inner) for name in frame or [""]]


def _dotted(module):
    return re.sub(r"_(\d+)(?=(_\d+)*$)", r".\1", module)


def _mmt_stage(module):
    """MMT's trunk is a sequence: stem convolution, its norm, max pooling, four stages."""
    module = re.sub(r"^conv1\b", "0", module)
    module = re.sub(r"^bn1$", "1", module)
    return re.sub(r"^layer(\d)", lambda m: str(int(m[1]) + 2), module)


def torch_key(path, naming="torchvision"):
    """PyTorch's key of a leaf with this path in params or batch_stats, e.g. ('base', 'conv1', 'kernel')."""
    return keys(("params", *path), naming)[0]


def strip(key):
    """A key without what nn.DataParallel and torch.compile put in front."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def guess(entries):
    """The layout of {stripped key: array}."""

    def some(pattern):
        return any(re.match(pattern, k) for k in entries)

    if some(r"(params|batch_stats)\."):
        return "reid_jax"
    if some(r"base\.\d"):
        return "mmt"
    if some(r"(backbone|heads)\."):
        return "fastreid"
    if some(r"(E_id|E_con)\.|model\.(conv1|bn1|layer\d)\."):
        return "direid"
    if some(r"bn\.(weight|running_mean)$") or any(_time(k, v) for k, v in entries.items()):
        return "ap3d"
    return "torchvision"


def _time(key, value):
    return key.endswith("weight") and getattr(value, "ndim", 0) == 5
