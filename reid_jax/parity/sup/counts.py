"""Numbers of parameters of full-size nets."""

import re

import jax
import numpy as np

from reid_jax import methods
from reid_jax.config import defaults, namespace
from reid_jax.errors import DataError
from reid_jax.methods.dgnet import nets as dgnet
from reid_jax.models import backbones, cyclegan, heads
from reid_jax.models.heads import pose

IMAGE = (1, 256, 128, 3)


def param_counts(case):
    """numbers of parameters of full-size nets, by name"""
    names = case.meta["config"]["counts"]
    return {"out/counts": np.array([count(name) for name in names], np.int64)}


def count(name):
    """Parameters of the net that a case calls so: "NET (7 classes)", "NET without classifier"; DataError."""
    classes = int(match[1]) if (match := re.search(r"\((\d+) classes", name)) else 751
    short = re.sub(r" \(.*| without .*", "", name)
    if short.startswith("dgnet "):
        return total(dgnet_net(short.removeprefix("dgnet "), classes))
    if short in OTHERS:
        module, shape, *more = OTHERS[short](classes)
        return total(params(module, shape, *more))
    if name.startswith(("vit_", "deit_")):
        return total(params(transformer(name), IMAGE, False))
    if short not in NETS and not short.startswith("osnet"):
        raise DataError(f"no net is known as {name!r}")
    fields = NETS.get(short) or dict(backbone=short, head="fc")
    net = heads.build(net_model(fields), classes)
    tree = params(net, (1, 160, 64, 3) if short == "hacnn" else (1, 384, 128, 3), False)
    classifiers = () if "without classifier" not in name else net.top.classifiers
    return total({k: v for k, v in tree.items() if k not in classifiers})


NETS = {
    "hacnn": dict(backbone="hacnn", head="pair"),
    "pcb": dict(head="stripes"),
    "rpp": dict(head="refined"),
    "agw": dict(backbone="resnet50_nl", neck="bnneck", pool="gem"),
    "mgn": dict(backbone="resnet50_mgn", head="mgn"),
}
OTHERS = {
    "pgfa global classifier": lambda classes: (pose.ClassBlock(classes), (1, 4096), False),
    "pgfa part classifier": lambda classes: (pose.ClassBlock(classes), (1, 2048), False),
    "cyclegan generator": lambda classes: (cyclegan.Generator(), IMAGE, False),
    "cyclegan discriminator": lambda classes: (cyclegan.Discriminator(), IMAGE),
}


def net_model(fields):
    return namespace(defaults()["model"] | fields)


def transformer(name):
    """The backbone of 'vit_base 256x128 stride 12, 6 cameras'."""
    stride, cameras = re.search(r"stride (\d+)(?:, (\d+) cameras)?", name).groups()
    fields = dict(backbone="vit_b16" if name.startswith("vit_base") else "deit_s16", vit_stride=int(stride))
    return backbones.build(net_model(fields | dict(vit_sie=3.0 * bool(cameras))), num_cams=int(cameras or 0))


def dgnet_net(part, classes):
    """Parameters of a part of DG-Net at its published size."""
    config = namespace(methods.defaults("dgnet"))
    if part == "structure encoder":
        return params(dgnet.structure_encoder(config), (*IMAGE[:-1], 1))
    if part == "discriminator":
        return params(dgnet.discriminator(config), IMAGE)
    if part == "identity net":
        config.model.pool = "max"
        return params(dgnet.appearance_encoder(config, methods.Info(classes, 6)), IMAGE, False)
    tree = params(dgnet.generator(config), (1, 64, 32, dgnet.content_dim(config.dgnet)), np.zeros((1, 8192)))
    return {k: v for k, v in tree.items() if (k == "dec") == (part == "decoder")}


def params(module, shape, *more):
    """Shapes of a module's parameters for an input of a shape and further arguments."""
    x = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *more), x)["params"]


def total(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
