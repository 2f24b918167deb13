"""What runners share: networks with the sizes that a case's weights have, gradients by key, the config."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import methods
from reid_jax.config import namespace
from reid_jax.errors import ConfigError
from reid_jax.methods import Info, direid
from reid_jax.methods.direid import nets as modules
from reid_jax.models import gan
from reid_jax.models.backbones import resnet
from reid_jax.models.blocks import ClassBlock
from reid_jax.parity import nets


def _count(entries, pattern):
    """Number of different values of a pattern's group among the keys."""
    return len({match[1] for k in entries if (match := re.match(pattern, k))})


def _trunk(entries, config=None):
    """ResNet of the keys model.*; stages may be absent."""
    if getattr(config, "backbone", "base") != "base":
        raise ConfigError(f"backbone {config.backbone!r} is not supported, only 'base'")
    counts = tuple(_count(entries, rf"model\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    there = next(i for i, count in enumerate(counts) if count)
    width = len(entries[f"model.layer{there + 1}.0.conv1.weight"])
    return resnet.ResNet(resnet.Bottleneck, counts, 2, width=width // 2**there)


def class_block(entries, prefix="classifier."):
    dim, classes = (len(entries[f"{prefix}{k}.bias"]) for k in ("add_block.0", "classifier.0"))
    return ClassBlock(classes, dim, 0.0)


def content_encoder(entries, config=None):
    def size(key):
        return len(entries[f"head.{key}.bias"])

    last = _count(entries, r"head\.content\.(\d+)\.") - 1
    widths = size("aspp.fuse.conv"), size("content.0.conv.conv")
    head = modules.Head(size(f"content.{last}.conv"), size(f"identity.{last}.conv"), widths)
    return modules.ContentEncoder(_trunk(entries, config), head, class_block(entries))


def identity_encoder(entries, shared, config=None):
    trunk = _trunk(entries, config)
    return modules.IdentityEncoder(trunk, class_block(entries), first=4 if shared else 0)


def degradation_encoder(entries):
    dim, width = len(entries["conv3_real.bias"]), len(entries["conv1.conv.bias"])
    return modules.DegradationEncoder(dim, width, share=True)


def generator(entries):
    content, hidden = (
        len(entries[k]) for k in ("dec.res.model.0.model.0.conv.bias", "mlp_w1.model.0.fc.bias")
    )
    return gan.Generator(content, hidden, _count(entries, r"mlp_w(\d+)\."))


def discriminator(entries):
    scales, blocks = _count(entries, r"nets\.(\d+)\."), _count(entries, r"nets\.0\.(\d+)\.model")
    return gan.Discriminator(scales, len(entries["nets.0.0.conv.bias"]), blocks)


def fill(case, module, entries, *args):
    """Variables of a module with a case's weights."""
    shapes = jax.eval_shape(lambda: modules.init(module, jax.random.key(0), *args))
    return jax.tree.map(jnp.asarray, nets.fill(shapes, entries, case.dtype, layout="direid"))


def entries(variables, prefix=""):
    """{the reference's key: array}."""
    entries = nets.torch_entries(variables, "direid")
    return {prefix + re.sub(r"^E_id\.model", "model", k): v for k, v in entries.items()}


def norms(case, name, grads):
    """Norms of the gradients {key: array} and their names, in the case's order as far as it has them."""
    recorded = case.arrays.get(f"out/gradnorm_names/{name}", np.array([], str)).tolist()
    names = [n for n in recorded if n in grads] + sorted(set(grads) - set(recorded))
    return {
        f"out/gradnorm_names/{name}": np.array(names),
        f"out/gradnorm/{name}": np.array([np.linalg.norm(grads[n]) for n in names]),
    }


def image(case, name):
    return nets.channels_last(case.input(name))


def only(grads, pattern):
    return {k: v for k, v in grads.items() if re.match(pattern, k)}


INFO = Info(num_pids=1, num_cams=1)  # the number of identities is that of a case's classifiers


def config(case, **sections):
    """The journal's config with fields of sections changed; networks that it says by itself are small."""
    tree = methods.defaults("direid")
    tree["direid"].update(direid.PRESETS["journal"])
    tree["model"].update(backbone="slim")
    tree["data"].update(height=64, width=32)
    tree["loss"].update(triplet="euclidean", feature="before_bn", label_smooth=0.0)
    for section, fields in sections.items():
        tree[section].update(fields)
    return namespace(tree)
