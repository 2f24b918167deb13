"""Key layouts: how a leaf of our variables is called in other people's files.

The rules of a name: `layer1_0` is `layer1.0`; kernel, scale -> weight; mean, var -> running_mean,
running_var. What differs between layouts is the net's frame:

    here          torchvision  mmt             spcl            strong_baseline  openunreid
    base.conv1    conv1        base.0          base.0          base.conv1       backbone.conv1
    base.bn1      bn1          base.1          base.1          base.bn1         backbone.bn1
    base.layerI_J layerI.J     base.(I + 2).J  base.(I + 3).J  base.layerI.J    backbone.layerI.J
    neck          neck         feat_bn         feat_bn         bottleneck       head.feat_bn
    feat          feat         feat            feat            feat             head.feat_reduction
    classifier    classifier   classifier      classifier      classifier       classifier
    pooling       pooling      gap             gap             gap              global_pooling

    here          fastreid             fastreid_old       iics           ap3d        direid
    base.conv1    backbone.conv1       backbone.conv1     model.conv1    conv1       E_id.model.conv1
    base.bn1      backbone.bn1         backbone.bn1       model.bn1      bn1         E_id.model.bn1
    base.layerI_J backbone.layerI.J    backbone.layerI.J  model.layerI.J layerI.J    E_id.model.layerI.J
    neck          heads.bottleneck.0   heads.bnneck       classifier.0   bn          neck
    feat          feat                 -                  -              feat        feat
    classifier    heads                heads.classifier   classifier.1   classifier  classifier
    pooling       heads.pool_layer     heads.pool_layer   -              pooling     pooling

torchvision is also the layout of timm, ResNeSt and deep-person-reid; imagenet is the same with the
classifier called `fc`. spcl is also that of cluster-contrast: a sequence as mmt's, but with its ReLU.
fast-reid's bottleneck is a norm, or an embedding and then a norm, which
are read as feat and neck.
ap3d has five axes in every convolution. Where direid's E_id has only its top, the rest comes from the stem
it shares (E_con), and files of one network begin with `model`. pgfa is the trunk as `model` and classifiers
called global and partial0, partial1, ...; its repository keeps each in a file of its own. reid_jax is our
own: params.base.layer1_0.conv1.kernel, arrays as they are.

Norms by domain are called X.dsbn.0, X.dsbn.1, ... (OpenUnReID), or X.BN_S and X.BN_T (SpCL: source, target).
A backbone or head with layouts of its own has them in its module (`models.Keys`).
Names of heads of other repositories are tried after these (_HEADS). What a trainer puts in front of all
keys, and other names of the trunk: `wrapped`.
"""

import re

from reid_jax import models
from reid_jax.config import choice

_HEADS = {
    "neck": ("neck", "bottleneck", "bnneck", "feat_bn", "bn_neck"),
    "feat": ("feat",),
    "classifier": ("classifier",),
    "pooling": ("pooling", "gap", "global_pool", "global_pooling", "pool", "pool_layer", "gem", "avgpool"),
}


def _frame(base, **heads):
    """{module of ours: its names}, those of `heads` before the usual ones."""
    names = {module: [*heads.get(module, ()), *usual] for module, usual in _HEADS.items()}
    return {"base": base} | {module: list(dict.fromkeys(each)) for module, each in names.items()}


_AFTER_TRUNK = ("classifier", "fc")  # beside a trunk with a name of its own `fc` is no ImageNet classifier
_POOL_LAYER = ("heads.pool_layer", "heads.pool_layer.0")

LAYOUTS = {
    "torchvision": _frame([""]),
    "imagenet": _frame([""], classifier=["fc"]),
    "mmt": _frame(["base"], neck=["feat_bn"], pooling=["gap"], classifier=_AFTER_TRUNK),
    "spcl": _frame(["base"], neck=["feat_bn"], pooling=["gap"], classifier=_AFTER_TRUNK),
    "strong_baseline": _frame(
        ["base"], neck=["bottleneck", "bn"], pooling=["gap", "global_pool"], classifier=_AFTER_TRUNK
    ),
    "openunreid": _frame(
        ["backbone"], neck=["head.feat_bn"], feat=["head.feat_reduction"], pooling=["global_pooling"]
    ),
    "fastreid": _frame(
        ["backbone"],
        neck=["heads.bottleneck.0", "heads.bottleneck.1", "bn"],
        feat=["feat", "heads.bottleneck.0"],
        classifier=["heads", "heads.classifier", *_AFTER_TRUNK],
        pooling=_POOL_LAYER,
    ),
    "fastreid_old": _frame(
        ["backbone"], neck=["heads.bnneck"], classifier=["heads.classifier"], pooling=_POOL_LAYER
    ),
    "iics": _frame(["model"], neck=["classifier.0"], classifier=["classifier.1"]),
    "ap3d": _frame([""], neck=["bn"]),
    "pgfa": _frame(["model"]),
    "direid": _frame(["E_id.model", "E_con.model", "model"]) | {"trunk": [""]},
    "reid_jax": {},
}
"""{layout: {module of ours: its names there, the first one is written}}."""
ALSO = {"torchvision": "timm and ResNeSt", "spcl": "cluster-contrast", "strong_baseline": "BoT"}
"""{layout: whose it is too}."""
STEMS = {"fastreid": {"stem_pool": "ceil"}}  # {layout: fields of config.model that its ResNets have}
_READ_ONLY = ("direid", "iics", "fastreid_old")

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_SEQUENCES = {"mmt": 2, "spcl": 3}  # layouts whose trunk is numbered: the number of stage 1, less 1
_WRAPPERS = (
    *("module", "_orig_mod", "_forward_module"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
)


def layouts():
    """Names of all layouts."""
    return (*LAYOUTS, *models.keys())


def targets():
    """Names of the layouts that files are written in."""
    written = (name for name, layout in models.keys().items() if layout.written)
    return (*(name for name in LAYOUTS if name not in _READ_ONLY), *written)


def keys(path, layout):
    """Keys that a leaf with path (collection, *modules, leaf) may have in a layout, the usual one first."""
    choice("naming", layout, layouts())
    if layout == "reid_jax":
        return [".".join(path)]
    if len(path) > 2 and (domain := re.fullmatch(r"dsbn_(\d+)", path[-2])):
        names = _domain_names(int(domain[1]), layout)
        parts = (key.rpartition(".") for key in keys((*path[:-2], path[-1]), layout))
        return [".".join(filter(None, (module, n, leaf))) for module, _, leaf in parts for n in names]
    _, *modules, leaf = path
    if modules == ["base"] and not getattr(models.keys().get(layout), "bare", False):
        return [".".join(["base", leaf_name(leaf)])]
    if layout in models.keys():
        return models.keys()[layout].names(tuple(modules), leaf)
    frame = LAYOUTS[layout].get(modules[0]) if modules else None
    inner = [dotted(m) for m in (modules[1:] if frame else modules)]
    if layout in _SEQUENCES and modules[:1] == ["base"]:
        inner[0] = _numbered(inner[0], _SEQUENCES[layout])
    inner.append(leaf_name(leaf))
    return [".".join([name, *inner] if name else inner) for name in frame or [""]]


def _domain_names(number, layout):
    """What a domain's norm is called, the layout's name first."""
    names = [f"dsbn.{number}", *({0: ["BN_S"], 1: ["BN_T"]}.get(number, []))]
    return names[::-1] if layout == "spcl" else names


def dotted(module):
    """`layer1_0` -> `layer1.0`, `NL_2_0` -> `NL_2.0`."""
    return re.sub(r"(?<!^NL)_(\d+)(?=(_\d+)*$)", r".\1", module)


def leaf_name(leaf):
    """PyTorch's name of a leaf: weight, bias, running_mean, running_var, or its own."""
    return _LEAVES.get(leaf, leaf)


def _numbered(module, before):
    """A trunk as a sequence: stem convolution, its norm, perhaps its ReLU, max pooling, four stages."""
    module = re.sub(r"^conv1\b", "0", module)
    module = re.sub(r"^bn1$", "1", module)
    return re.sub(r"^layer(\d)", lambda m: str(int(m[1]) + before), module)


def torch_key(path, naming="torchvision"):
    """PyTorch's key of a leaf with this path in params or batch_stats, e.g. ('base', 'conv1', 'kernel')."""
    return keys(("params", *path), naming)[0]


def strip(key):
    """A key without what nn.DataParallel, torch.compile and the like put into it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS) or key


def guess(entries):
    """The layout of {stripped key: array}, see `wrapped`."""

    def some(pattern):
        return any(re.match(pattern, k) for k in entries)

    if some(r"(params|batch_stats)\."):
        return "reid_jax"
    for name, layout in models.keys().items():
        if layout.matches(entries):
            return name
    if some(r"(global|partial\d+)\.add_block\."):
        return "pgfa"
    if some(r"base\.\d"):
        relu = some(r"base\.7\.") or (some(r"base\.[01]\.\w+$") and not some(r"base\.3\."))
        return "spcl" if relu and some(r"base\.[4-7]\.") else "mmt"
    if some(r"base\.(conv1|bn1|layer\d)\."):
        return "strong_baseline"
    if some(r"backbone\.") and some(r"(head|global_pooling)\."):
        return "openunreid"
    if some(r"(backbone|heads)\."):
        return "fastreid_old" if some(r"heads\.bnneck\.(weight|running_mean)$") else "fastreid"
    trunk = some(r"model\.(conv1|bn1|layer\d)\.")
    if trunk and (some(r"classifier\.\d+\.") or some(r"model\..*\.adaptive_weight$")):
        return "iics"
    if trunk or some(r"(E_id|E_con)\."):
        return "direid"
    if some(r"bn\.(weight|running_mean)$") or any(_time(k, v) for k, v in entries.items()):
        return "ap3d"
    return "torchvision"


def _time(key, value):
    return key.endswith("weight") and getattr(value, "ndim", 0) == 5
