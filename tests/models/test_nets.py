"""Backbones and heads against recorded PyTorch outputs and hand-counted shapes."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError, WeightsError
from reid_jax.models import heads, narrow, weights

CASES = pathlib.Path(__file__).parents[1] / "cases"


def model_config(**fields):
    return namespace(defaults()["model"] | fields)


def recipe(case, meta):
    """The recorded case's weights, which follow from key, shape and seed."""
    entries = {}
    for name in case.files:
        kind, _, key = name.partition("/")
        if kind != "shape":
            continue
        shape = tuple(case[name])
        rng = np.random.default_rng([meta["seed"], zlib.crc32(key.encode())])
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif key.endswith("running_mean"):
            value = 0.1 * rng.standard_normal(shape)
        elif key.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2 and key.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape)
        elif len(shape) < 2:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
        entries[key] = value.astype(np.float32)
    return entries


def run_case(name, **fields):
    """Runs a recorded case in float64: (case, features, variables after the call, intermediates)."""
    case = np.load(CASES / f"{name}.npz")
    meta = json.loads(str(case["meta"]))
    config = meta["config"]
    model = model_config(last_stride=config["last_stride"], stem_relu=config["stem_relu"], **fields)
    net = heads.build(model, config.get("num_classes", 6), num_features=config.get("num_features", 0))
    image = case["in/image"].transpose(0, 2, 3, 1).astype(np.float64)
    shapes = jax.eval_shape(heads.encoder(net).init, jax.random.key(0), image)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float64), shapes)
    variables, report = weights.load(recipe(case, meta), zeros)
    assert set(report["missing"]) <= {"classifier.weight", "classifier.bias"}
    train = meta["mode"] == "train"

    def stages(module, method):
        return method == "__call__" and module.name in ("layer1_2", "layer2_3", "layer3_5", "layer4_2")

    def forward(variables, image):
        mutable = ["batch_stats", "intermediates"]
        return net.apply(variables, image, train, mutable=mutable, capture_intermediates=stages)

    features, changed = jax.jit(forward)(variables, image)
    return case, features, changed


def assert_matches(got, case, name):
    want = case[name]
    error = np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), 1e-6)
    assert error < 1e-5, f"{name}: {error:.1e}"


def assert_stages_match(case, changed):
    for stage, block in enumerate(("layer1_2", "layer2_3", "layer3_5", "layer4_2"), 1):
        (out,) = changed["intermediates"]["base"][block]["__call__"]
        assert_matches(out.mean((1, 2)), case, f"out/mean_layer{stage}")
        assert_matches(out.std((1, 2)), case, f"out/std_layer{stage}")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_resnet50_mmt(x64):
    case, features, changed = run_case("efl__resnet50_mmt", neck="bnneck")
    assert_stages_match(case, changed)
    assert_matches(features.before_bn, case, "out/pooled")
    unit = features.after_bn / np.linalg.norm(features.after_bn, axis=1, keepdims=True)
    assert_matches(unit, case, "out/feature")


def test_resnet50_mmt_train(x64):
    case, features, changed = run_case("efl__resnet50_mmt_train", neck="bnneck")
    assert_matches(features.before_bn, case, "out/pooled")
    assert_matches(features.logits, case, "out/logits")
    after = weights.to_torch({"batch_stats": changed["batch_stats"]}, "mmt")
    names = [n for n in case.files if n.startswith("out/after/")]
    assert len(names) == 10
    for name in names:
        assert_matches(after[name.removeprefix("out/after/")], case, name)


def test_resnet50_plain(x64):
    case, features, changed = run_case("efl__resnet50_plain", neck="none")
    assert_stages_match(case, changed)
    assert_matches(features.before_bn, case, "out/pooled")
    (last,) = changed["intermediates"]["base"]["layer4_2"]["__call__"]
    assert_matches(heads.spatial_pool(last, "max"), case, "out/pooled_max")


def shapes_of(model, classes=751, size=(256, 128), **build):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(heads.build(model, classes, **build)).init, jax.random.key(0), image)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_parameter_counts():
    """MMT's ResNet50 (25,050,176 with 751 classes), and torchvision's trunks without fc."""
    assert count(shapes_of(model_config(neck="bnneck"))["params"]) == 25_050_176
    trunks = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160}
    for name, number in trunks.items():
        assert count(shapes_of(model_config(backbone=name))["params"]["base"]) == number


@pytest.mark.parametrize("last_stride,size", [(1, (16, 8)), (2, (8, 4))])
def test_last_stride(last_stride, size):
    base = heads.build(model_config(last_stride=last_stride), 2).base
    image = jnp.zeros((1, 256, 128, 3))
    out = jax.eval_shape(lambda: base.init_with_output(jax.random.key(0), image, False)[0])
    assert out.shape == (1, *size, 2048)


@pytest.mark.parametrize("size", [(64, 32), (50, 30)])
def test_narrow_net(size):
    net = heads.encoder(heads.build(model_config(backbone="narrow"), 10))
    image = jax.random.normal(jax.random.key(0), (4, *size, 3))
    variables = jax.jit(net.init)(jax.random.key(1), image)
    features, stats = jax.jit(net.apply, static_argnums=2)(variables, image, True)
    assert features.before_bn.shape == features.after_bn.shape == (4, 128)
    assert features.logits.shape == (4, 10)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


@pytest.mark.parametrize("height,stripes", [(8, 4), (7, 4), (5, 2), (3, 4)])
def test_stripe_pool_is_adaptive_average(height, stripes):
    x = np.random.default_rng(0).standard_normal((2, height, 3, 5)).astype(np.float32)
    got = narrow.stripe_pool(jnp.asarray(x), stripes)
    for i in range(stripes):
        first, last = int(np.floor(i * height / stripes)), int(np.ceil((i + 1) * height / stripes))
        np.testing.assert_allclose(got[:, i], x[:, first:last].mean((1, 2)), atol=1e-6)


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
    assert {f.dtype for f in features} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, stats))} == {jnp.dtype("float32")}


def test_eval_keeps_statistics_and_uses_them():
    net, variables, image = small_variables(small())
    whole, stats = net.apply(variables, image, False)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    alone, _ = net.apply(variables, image[:1], False)
    np.testing.assert_allclose(whole.after_bn[:1], alone.after_bn, atol=1e-5)


@pytest.mark.parametrize("neck,frozen", [("ap3d", False), ("bnneck", True), ("none", False)])
def test_trainable_mask(neck, frozen):
    net, variables, image = small_variables(small(neck=neck))
    mask = heads.trainable_mask(variables["params"])
    assert jax.tree.structure(mask) == jax.tree.structure(variables["params"])
    off = [jax.tree_util.keystr(p) for p, m in jax.tree_util.tree_leaves_with_path(mask) if not m]
    assert off == (["['neck']['bias']"] if frozen else [])
    assert ("bias" in variables["params"]["classifier"]) == (neck != "bnneck")
    if neck == "none":
        features, _ = net.apply(variables, image, True)
        assert np.array_equal(features.before_bn, features.after_bn)


def test_mmt_embedding_has_relu_in_training_only():
    net, variables, image = small_variables(small(neck="bnneck"), num_features=7)
    train, _ = net.apply(variables, image, True)
    test, _ = net.apply(variables, image, False)
    assert train.before_bn.shape == (4, 6) and train.after_bn.shape == (4, 7)
    assert train.after_bn.min() == 0 and test.after_bn.min() < 0


def test_bn_group_decides_the_axis():
    for group, axis in (("global", "d"), ("device", None)):
        net = heads.build(small(bn_group=group), 5, axis_name="d")
        assert net.axis_name == axis and net.base.axis_name == axis


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
    "naming,key", [("torchvision", "layer1.0.downsample.0.weight"), ("mmt", "base.3.0.downsample.0.weight")]
)
def test_weights_round_trip(tmp_path, naming, key):
    _, variables, _ = small_variables(small())
    entries = weights.to_torch(variables, naming)
    assert entries[key].shape == (8, 4, 1, 1)
    np.savez(tmp_path / "w.npz", **{"module." + k: v for k, v in entries.items()})
    zeros = jax.tree.map(jnp.zeros_like, variables)
    back, report = weights.load_npz(tmp_path / "w.npz", zeros)
    assert not report["unused"] and not report["missing"]
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch(entries, zeros), variables)


def test_weights_of_another_task():
    """Another class count and extra entries are reported; anything else that does not fit raises."""
    _, variables, _ = small_variables(small())
    entries = weights.to_torch(variables)
    entries |= {"classifier.weight": np.zeros((9, 6)), "fc.weight": np.zeros((3, 6))}
    del entries["classifier.bias"]
    filled, report = weights.load(entries, variables)
    assert report["unused"] == ["classifier.weight", "fc.weight"]
    assert sorted(report["missing"]) == ["classifier.bias", "classifier.weight"]
    assert filled["params"]["classifier"]["kernel"] is variables["params"]["classifier"]["kernel"]
    with pytest.raises(WeightsError, match=r"conv1.weight has shape \(1, 2\).*\(4, 3, 5, 5\)"):
        weights.load(entries | {"conv1.weight": np.zeros((1, 2))}, variables)
    with pytest.raises(WeightsError, match="missing: classifier"):
        weights.from_torch(entries, variables)
    with pytest.raises(WeightsError, match="no entry fits"):
        weights.load({"encoder.x": np.zeros(3)}, variables)


def test_broken_weight_file_is_named(tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="broken.npz"):
        weights.load_npz(path, {"params": {}, "batch_stats": {}})
