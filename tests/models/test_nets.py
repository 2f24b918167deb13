"""Backbones and heads: parameter counts, shapes, modes (recorded outputs: tests/parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.methods import _optim
from reid_jax.models import heads, layers, pooling
from reid_jax.models.backbones import ap3d
from reid_jax.models.norms import ibn


def model_config(**fields):
    return namespace(defaults()["model"] | fields)


def shapes_of(model, classes=751, size=(256, 128), **build):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(heads.build(model, classes, **build)).init, jax.random.key(0), image)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_parameter_counts():
    """MMT's ResNet50 (25,050,176 with 751 classes), and torchvision's trunks without fc."""
    assert count(shapes_of(model_config(neck="bnneck"))["params"]) == 25_050_176
    trunks = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160}
    trunks["resnet50_ibn_a"] = trunks["resnet50"]
    for name, number in trunks.items():
        assert count(shapes_of(model_config(backbone=name))["params"]["base"]) == number


@pytest.mark.slow
def test_parameter_counts_of_resnest_and_video():
    """ResNeSt-50 with 10 classes; C2D, AP3D, AP3D-NL with MARS' 625."""
    assert count(shapes_of(model_config(backbone="resnest50", neck="none"), 10)["params"]) == 25_454_730
    numbers = {"c2d_resnet50": 24_792_753, "ap3d_resnet50": 25_523_953, "ap3dnl_resnet50": 32_882_417}
    for name, number in numbers.items():
        shapes = shapes_of(model_config(backbone=name), 625, (4, 256, 128))
        assert count(shapes["params"]) == number


@pytest.mark.parametrize("backbone", ["resnet50", "resnest50", "resnet50_ibn_a"])
@pytest.mark.parametrize("last_stride,size", [(1, (16, 8)), (2, (8, 4))])
def test_last_stride(backbone, last_stride, size):
    base = heads.build(model_config(backbone=backbone, last_stride=last_stride), 2).base
    image = jnp.zeros((1, 256, 128, 3))
    out = jax.eval_shape(lambda: base.init_with_output(jax.random.key(0), image, False)[0])
    assert out.shape == (1, *size, 2048)


@pytest.mark.parametrize("size", [(64, 32), (50, 30)])
def test_narrow_net(size):
    net = heads.encoder(heads.build(model_config(backbone="narrow"), 10))
    image = jax.random.normal(jax.random.key(0), (4, *size, 3))
    variables = jax.jit(net.init)(jax.random.key(1), image)
    features, stats = jax.jit(net.apply, static_argnums=2)(variables, image, True)
    assert features.before_bn[0].shape == features.after_bn[0].shape == (4, 128)
    assert features.logits[0].shape == (4, 10)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


@pytest.mark.parametrize("height,stripes", [(8, 4), (7, 4), (5, 2), (3, 4)])
def test_stripe_pool_is_adaptive_average(height, stripes):
    x = np.random.default_rng(0).standard_normal((2, height, 3, 5)).astype(np.float32)
    got = pooling.stripe_pool(jnp.asarray(x), stripes)
    for i in range(stripes):
        first, last = int(np.floor(i * height / stripes)), int(np.ceil((i + 1) * height / stripes))
        np.testing.assert_allclose(got[:, i], x[:, first:last].mean((1, 2)), atol=1e-6)


def run(net, x, train=False):
    """(features, variables) of a fresh net."""
    variables = jax.jit(net.init)(jax.random.key(1), x)
    return jax.jit(net.apply, static_argnums=2)(variables, x, train)[0], variables


def test_resnest_takes_clips():
    net = heads.build(model_config(backbone="resnest50"), 3)
    clip = jax.ShapeDtypeStruct((2, 3, 33, 17, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, False)[0], clip)
    assert shapes.before_bn[0].shape == (2, 2048)


@pytest.mark.slow
def test_a_clip_is_the_mean_of_its_frames():
    """Any image backbone takes clips, frame by frame."""
    net = heads.encoder(heads.build(model_config(backbone="narrow"), 3))
    clip = jax.random.normal(jax.random.key(0), (2, 3, 32, 16, 3))
    features, variables = run(net, clip)
    frames, _ = jax.jit(net.apply, static_argnums=2)(variables, clip.reshape(6, 32, 16, 3), False)
    want = frames.before_bn[0].reshape(2, 3, -1).mean(1)
    np.testing.assert_allclose(features.before_bn[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fresh_ap3d_starts_as_c2d():
    """Kernels over time and non-local norms start at zero: fresh modules change nothing."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 4, 32))
    conv = ap3d.App3dConv(8)
    y, variables = conv.init_with_output(jax.random.key(1), x)
    spatial = layers.conv(x, variables["params"]["spatial_conv3d"]["kernel"], 1, 1)
    np.testing.assert_allclose(y, spatial, atol=1e-6)
    y, _ = ap3d.NonLocal().init_with_output(jax.random.key(1), x, False)
    np.testing.assert_array_equal(y, x)
    with pytest.raises(ConfigError, match="clips"):
        heads.build(model_config(backbone="ap3dnl_resnet50"), 3).init(
            jax.random.key(0), x[0, :, :, :, :3], False
        )


def test_convolution_and_pooling_of_clips_are_those_of_frames():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4, 6))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 6, 2))
    frames = x.reshape(6, 5, 4, 6)
    for function in (lambda x: layers.conv(x, kernel, 2, 1), layers.max_pool):
        got, want = function(x), function(frames)
        np.testing.assert_array_equal(got.reshape(want.shape), want)


def test_instance_batch_norm_is_the_loop():
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 6)).astype(np.float32) + 2
    net = ibn.InstanceBatchNorm()
    y, _ = net.apply(net.init(jax.random.key(0), x, True), x, True, mutable=["batch_stats"])
    want = np.empty_like(x)
    for c in range(6):
        for i in range(3):
            part = x[i, :, :, c] if c < 3 else x[..., c]
            want[i, :, :, c] = (x[i, :, :, c] - part.mean()) / np.sqrt(part.var() + 1e-5)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_other_fields_reach_ap3d():
    base = heads.build(
        model_config(backbone="ap3d_resnet50", ap3d_temperature=2.0, ap3d_contrastive=False), 3
    ).base
    assert (base.temperature, base.contrastive, base.last_stride) == (2.0, False, 1)


def small(**fields):
    return model_config(
        **(dict(backbone="narrow", narrow_widths=(4, 8), narrow_stripes=2, narrow_dim=6) | fields)
    )


def small_variables(model, **build):
    image = jax.random.normal(jax.random.key(0), (4, 16, 8, 3))
    net = heads.encoder(heads.build(model, 5, **build))
    net = net._replace(init=jax.jit(net.init), apply=jax.jit(net.apply, static_argnums=2))
    return net, net.init(jax.random.key(1), image), image


def test_bfloat16_returns_float32():
    net, variables, image = small_variables(small(dtype="bfloat16"))
    features, stats = net.apply(variables, image.astype(jnp.bfloat16), True)
    assert {f.dtype for f in jax.tree.leaves(features)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, stats))} == {jnp.dtype("float32")}


def test_eval_keeps_statistics_and_uses_them():
    net, variables, image = small_variables(small())
    whole, stats = net.apply(variables, image, False)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    alone, _ = net.apply(variables, image[:1], False)
    np.testing.assert_allclose(whole.test[:1], alone.test, atol=1e-5)


@pytest.mark.parametrize("neck,frozen", [("ap3d", False), ("bnneck", True), ("none", False)])
def test_frozen_leaves(neck, frozen):
    net, variables, image = small_variables(small(neck=neck))
    mask = _optim.trained(heads.build(small(neck=neck), 5).frozen)(variables["params"])
    assert jax.tree.structure(mask) == jax.tree.structure(variables["params"])
    off = [jax.tree_util.keystr(p) for p, m in jax.tree_util.tree_leaves_with_path(mask) if not m]
    assert off == (["['neck']['bias']"] if frozen else [])
    assert ("bias" in variables["params"]["classifier"]) == (neck != "bnneck")
    if neck == "none":
        features, _ = net.apply(variables, image, True)
        assert np.array_equal(features.before_bn[0], features.after_bn[0])


def test_mmt_embedding_has_relu_in_training_only():
    net, variables, image = small_variables(small(neck="bnneck"), num_features=7)
    train, _ = net.apply(variables, image, True)
    test, _ = net.apply(variables, image, False)
    assert train.before_bn[0].shape == (4, 6) and train.after_bn[0].shape == (4, 7)
    assert train.after_bn[0].min() == 0 and test.after_bn[0].min() < 0


def test_bn_group_decides_the_axis():
    for group, axis in (("global", "d"), ("device", None)):
        net = heads.build(small(bn_group=group), 5, axis_name="d")
        assert net.top.axis_name == axis and net.base.axis_name == axis


@pytest.mark.parametrize(
    "field,value",
    [
        ("backbone", "vgg"),
        ("pool", "sum"),
        ("neck", "x"),
        ("dtype", "int8"),
        ("bn_group", "all"),
        ("last_stride", 3),
    ],
)
def test_unknown_names_raise(field, value):
    with pytest.raises(ConfigError, match=f"model.{field}"):
        heads.build(model_config(**{field: value}), 5)


@pytest.mark.parametrize(
    "field,value",
    [
        ("narrow_widths", ()),
        ("narrow_widths", (4, 0)),
        ("narrow_widths", (-4, 8)),
        ("narrow_stripes", 0),
        ("narrow_dim", 0),
        ("narrow_dim", -1),
    ],
)
def test_sizes_below_one_raise(field, value):
    with pytest.raises(ConfigError, match=f"model.{field}"):
        heads.build(small(**{field: value}), 5)
