"""DenseNet-121 and Inception-v3: sizes, keys there and back, pooling against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import heads, weights
from reid_jax.models.backbones import densenet, inception

TINY = {
    "densenet": dict(backbone="densenet121", densenet_counts=(2, 1), densenet_growth=4),
    "inception": dict(backbone="inception_v3", inception_width=1 / 16),
}


def net_of(**fields):
    return heads.build(namespace(defaults()["model"] | dict(neck="bnneck") | fields), 7)


def shapes_of(net, height=256, width=128):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(net).init, jax.random.key(0), image)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone, count, channels, size",
    [  # torchvision's 7,978,856 and 23,834,568 (without the auxiliary head), less their classifiers
        ("densenet121", 7_978_856 - 1_025_000, 1024, (8, 4)),
        ("densenet121_double", 7_978_856 - 1_025_000, 2048, (8, 4)),
        ("inception_v3", 23_834_568 - 2_049_000, 2048, (6, 2)),
    ],
)
def test_sizes_are_torchvisions(backbone, count, channels, size):
    net = net_of(backbone=backbone)
    shapes = shapes_of(net)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"]["base"])) == count
    variables = {k: v["base"] for k, v in shapes.items()}
    image = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    found = jax.eval_shape(lambda v, x: net.base.apply(v, x, False), variables, image)
    assert found.shape == (1, *size, channels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, keys",
    [
        (
            "densenet",
            ("features.conv0.weight", "features.denseblock1.denselayer2.norm2.running_mean")
            + ("features.transition1.conv.weight", "features.norm5.bias"),
        ),
        (
            "inception",
            ("Conv2d_1a_3x3.conv.weight", "Mixed_6c.branch7x7dbl_5.bn.running_var")
            + ("Mixed_7a.branch7x7x3_4.conv.weight", "Mixed_7b.branch3x3dbl_3b.bn.weight"),
        ),
    ],
)
def test_keys_are_torchvisions(layout, keys):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: np.float32(rng.uniform(0.5, 1.5, s.shape)), shapes_of(net_of(**TINY[layout]), 96, 96)
    )
    entries = weights.to_torch(variables, layout)
    assert set(keys) <= set(entries)
    assert weights.recognise(entries).layout == layout
    if layout == "densenet":  # norm.1 in torchvision's files of it
        entries = {k.replace("denselayer1.norm1", "denselayer1.norm.1"): v for k, v in entries.items()}
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded, report = weights.load(entries, zeros)
    assert not report["missing"] and not report["unused"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded, variables)))


def test_pooling_is_the_loops():
    x = np.random.default_rng(0).normal(size=(1, 8, 7, 2)).astype(np.float32)
    got, mean = inception.half_max_pool(jnp.asarray(x)), inception.average(jnp.asarray(x))
    assert got.shape == (1, 3, 3, 2) and mean.shape == x.shape
    for i in range(3):
        for j in range(3):
            window = x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            np.testing.assert_allclose(got[0, i, j], window.max((0, 1)), rtol=1e-6)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(mean[0, 0, 6], padded[0, 0:3, 6:9].sum((0, 1)) / 9, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", TINY)
def test_a_pass_in_training_moves_the_statistics(layout):
    net = net_of(**TINY[layout])
    encoder, image = heads.encoder(net), np.random.default_rng(0).normal(size=(2, 96, 96, 3))
    variables = jax.jit(encoder.init)(jax.random.key(0), jnp.float32(image))
    out, stats = jax.jit(lambda v, x: encoder.apply(v, x, True))(variables, jnp.float32(image))
    assert np.isfinite(out.test).all() and out.test.shape[0] == 2
    assert not np.allclose(
        jax.tree.leaves(stats["base"])[0], jax.tree.leaves(variables["batch_stats"]["base"])[0]
    )


def test_double_and_transition():
    x = jnp.float32(np.random.default_rng(0).normal(size=(1, 5, 4, 2)))
    found = densenet.Transition().init_with_output(jax.random.key(0), x, False)[0]
    assert found.shape == (1, 2, 2, 1)  # the odd row is left out, as in torchvision


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="75 or more"):
        shapes_of(net_of(**TINY["inception"]), 64, 128)
    with pytest.raises(ConfigError, match="map of 2 x 0 of them: make config.data.height"):
        shapes_of(net_of(**TINY["densenet"]), 8, 4)
    with pytest.raises(ConfigError, match="inception_width is 0"):
        net_of(backbone="inception_v3", inception_width=0)
    with pytest.raises(ConfigError, match="densenet_counts is"):
        net_of(backbone="densenet121", densenet_counts=())
    with pytest.raises(ConfigError, match="batch norm only"):
        net_of(backbone="densenet121", norm="ibn_a")
