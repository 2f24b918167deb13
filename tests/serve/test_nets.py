"""Networks that depend on more than the picture: cameras, mirror images, visible parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from runs import tiny

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.fields import plain
from reid_jax.serve import nets
from reid_jax.train import stages

INFO = {"num_pids": 5, "num_cams": 3, "num_images": 0, "domains": []}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 16, 3), np.uint8)


def net_of(method, **changes):
    """(Net of random weights, its method and State)."""
    config = tiny(method, data__height=32, data__width=16, **changes)
    _, built = stages.build(config, "train", methods.Info(5, 3))
    state = small.random_state(built)
    return nets.Net(nets.Origin(plain(config), "train", "auto", INFO, 0), nets.flat(state)[0]), built, state


def test_cameras_are_unknown():
    """TransReID's embeddings of cameras: their mean, as embed gives to cameras that training has not seen."""
    net, method, state = net_of(
        "baseline", model__backbone="vit_narrow", model__head="token", model__vit_sie=3.0, model__vit_width=8,
        model__vit_heads=2, model__vit_depth=2, model__vit_stride=8,
    )  # fmt: skip
    state = jax.tree.map(jnp.asarray, state)
    embed = jax.jit(lambda i, c: nets.unit(method.embed_batch(state, {"image": i, "camid": c}, "net")))
    unknown, known = (np.asarray(embed(IMAGES, np.full(3, c))) for c in (-1, 1))
    found = np.asarray(net(IMAGES))
    np.testing.assert_allclose(found, unknown, atol=1e-6)
    assert np.abs(found - known).max() > 1e-3
    assert any("sie_embed" in path for path in net.used) and "mean" in net.card["input"]["camera"]


def test_mirror_images():
    """As the run's evaluation: the sum of a picture's features and its mirror image's."""
    net, method, state = net_of("baseline", model__narrow_widths=(4, 8), eval__mirror=True)
    embed = jax.jit(lambda i: method.embed_batch(state, {"image": i}, "net"))
    want = nets.unit(embed(IMAGES) + embed(IMAGES[:, :, ::-1]))
    np.testing.assert_allclose(net(IMAGES), want, atol=1e-6)
    np.testing.assert_allclose(net(IMAGES[:, :, ::-1]), net(IMAGES), atol=1e-6)


def test_features_that_are_no_directions():
    config = plain(tiny("pgfa", data__height=32, data__width=16))
    with pytest.raises(ConfigError, match="compared by config.eval.distance=ratio3.*reid_jax score"):
        nets.Net(nets.Origin(config, "train", "auto", INFO, 0), {})
