"""ResNet of two stems: every picture by its own, halves of a batch apart, weights and fields."""

import jax
import numpy as np
import pytest

from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import _steps
from reid_jax.models import heads, pooling, weights

SMALL = dict(backbone="two_stream_slim", slim_width=2, slim_blocks=(1, 1), nl_blocks=(0, 1), neck="bnneck")
IMAGE = np.random.default_rng(0).standard_normal((6, 16, 8, 3)).astype(np.float32)
CAMERA = np.array([0, 2, 1, 2, 2, 0])  # 2: infrared


def build(**fields):
    return heads.build(SMALL | dict(second_stem=(2,), pool="power_mean") | fields, 3, num_cams=3)


@pytest.fixture(scope="module")
def made():
    net = build()
    encoder = heads.encoder(net)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(encoder.init, jax.random.key(0), IMAGE)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return np.float32(rng.standard_normal(leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    return net, encoder, jax.tree_util.tree_map_with_path(fill, shapes)


def exchanged(variables):
    """Variables with the stems in each other's place."""
    other = {"conv1": "second_conv1", "bn1": "second_bn1"}
    other |= {there: here for here, there in other.items()}
    return {
        kind: tree | {"base": {other.get(name, name): leaf for name, leaf in tree["base"].items()}}
        for kind, tree in variables.items()
    }


def test_every_picture_goes_through_its_own_stem(made):
    _, encoder, variables = made

    @jax.jit
    def tested(variables, camera):
        return encoder.apply(variables, IMAGE, False, None, camera)[0].test

    first, second = tested(variables, CAMERA * 0), tested(exchanged(variables), CAMERA * 0)
    assert np.abs(first - second).max() > 1e-3
    expected = np.where((CAMERA == 2)[:, None], second, first)
    np.testing.assert_allclose(tested(variables, CAMERA), expected, atol=1e-5)
    np.testing.assert_array_equal(tested(variables, CAMERA * 0 - 1), first)  # unknown cameras


def test_norms_of_the_stems_see_their_half_in_any_order(made):
    _, encoder, variables = made
    trained = jax.jit(lambda x, camera: encoder.apply(variables, x, True, None, camera))
    out, stats = trained(IMAGE, CAMERA)
    order = np.array([3, 0, 5, 4, 2, 1])
    mixed, _ = trained(IMAGE[order], CAMERA[order])
    np.testing.assert_allclose(mixed.before_bn[0], out.before_bn[0][order], atol=1e-5)
    kernel = variables["params"]["base"]["second_conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        IMAGE[CAMERA == 2], kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(stats["base"]["second_bn1"]["mean"], 0.1 * maps.mean((0, 1, 2)), atol=1e-5)


def test_pretrained_weights_fill_both_stems_and_published_keys_return(made):
    _, _, variables = made
    entries = weights.to_torch(variables, "agw_infrared")
    assert {"thermal_module.thermal.conv1.weight", "NL_2.0.g.0.weight", "bottleneck.weight"} <= set(entries)
    again, report = weights.load(entries, jax.tree.map(np.zeros_like, variables))
    assert report["layout"] == "agw_infrared" and not report["missing"] and not report["unused"]
    jax.tree.map(np.testing.assert_array_equal, again, dict(variables))
    plain = {k: v for k, v in weights.to_torch(variables).items() if not k.startswith("second_")}
    filled, report = weights.load(plain, jax.tree.map(np.zeros_like, variables))
    assert not report["missing"]
    for kind, name in (("params", "conv1"), ("params", "bn1"), ("batch_stats", "bn1")):
        tree = filled[kind]["base"]
        jax.tree.map(np.testing.assert_array_equal, tree[f"second_{name}"], variables[kind]["base"][name])


def test_fields_that_do_not_go_together():
    with pytest.raises(ConfigError, match=r"second_stem is \(\); .* \(1,\) for RegDB"):
        build(second_stem=())
    zeros = np.zeros(4, np.int32)
    rows = Rows(0, zeros, np.int32([0, 1, 2, 2]), np.int32([0, 0, 1, 1]), {})
    data = dict(batches="domains", domains="modality")
    _steps.check_halves(build(), namespace(data), rows)
    with pytest.raises(ConfigError, match="set batches=domains"):
        _steps.check_halves(build(), namespace(data | dict(batches="pk")), rows)
    with pytest.raises(ConfigError, match=r"infrared cameras of the training set are \(2,\)"):
        _steps.check_halves(build(second_stem=(1,)), namespace(data), rows)


def test_pool_counts_negative_entries_as_nothing():
    x = np.float32([-3, 0, 1, 2]).reshape(1, 2, 2, 1)
    value, grad = jax.value_and_grad(lambda x: pooling.PowerMean()(x).sum())(x)
    assert value == pytest.approx((9 / 4) ** (1 / 3), rel=1e-6)
    expected = np.array([0, 0, 1, 4]) / 4 * (9 / 4) ** (-2 / 3)
    np.testing.assert_allclose(np.ravel(grad), expected, rtol=1e-5)
