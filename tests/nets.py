"""Nets of a few fields, as shapes or with random numbers; nothing is compiled for them."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.config import defaults, namespace
from reid_jax.models import heads


def net_of(classes=5, **fields):
    """ReIDNet of config.model with these fields changed."""
    return heads.build(namespace(defaults()["model"] | fields), classes)


def shapes_of(net, height=64, width=32):
    """Its variables as ShapeDtypeStructs."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(net).init, jax.random.key(0), image)


def random(shapes, seed=0):
    """Numbers of 0.5 to 1.5 in these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes)
