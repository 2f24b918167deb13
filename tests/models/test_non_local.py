"""Non-local ResNets: blocks by the printed sums, places, keys of AGW and fast-reid; the stem's pooling."""

import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.commands import convert
from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError, WeightsError
from reid_jax.models import backbones, heads, layers, weights
from reid_jax.models.backbones import non_local
from reid_jax.train import warm

CASES = pathlib.Path(__file__).parents[1] / "cases"


def model(**fields):
    small = dict(backbone="slim_nl", slim_width=2, slim_blocks=(1, 2, 2, 1), nl_blocks=(0, 1, 2, 0))
    return namespace(defaults()["model"] | small | fields)


def shapes_of(classes=5, **fields):
    image = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    net = heads.build(model(**fields), classes)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), image)


def traced(net):
    """Shapes of a backbone's variables."""
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 16, 3)), False))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (2, 1)])
def test_pooling_without_padding(size):
    """Windows of rows 2i to 2i + 2, cut off at the border, by a loop; and where its gradient goes."""
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    height, width = (max(n // 2, 1) for n in size)
    y, back = jax.vjp(layers.ceil_max_pool, jnp.asarray(x))
    assert y.shape == (2, height, width, 3)
    for i in range(height):
        for j in range(width):
            window = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            np.testing.assert_array_equal(y[:, i, j], window.max((1, 2)))
    (grad,) = back(jnp.ones_like(y))
    assert grad.sum() == y.size and np.isfinite(grad).all()


@pytest.mark.parametrize("inner", [1, 0])
def test_block_is_the_printed_sum(inner):
    """Pixel by pixel, with the N x N products; fresh, it is the identity."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4)).astype(np.float32)
    block = non_local.LinearNonLocal(inner)
    variables = block.init(jax.random.key(0), x, False)
    np.testing.assert_array_equal(block.apply(variables, x, False), x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    assert p["theta"]["kernel"].shape == (1, 1, 4, inner or 2)
    scale = jnp.full(4, 0.7)
    variables["params"]["W_1"]["scale"] = scale
    for image, y in zip(x.reshape(2, 6, 4), block.apply(variables, x, False).reshape(2, 6, 4), strict=True):
        g, theta, phi = (image @ p[n]["kernel"][0, 0] + p[n]["bias"] for n in ("g", "theta", "phi"))
        for i in range(6):
            seen = sum((theta[i] @ phi[j]) * g[j] for j in range(6)) / 6
            w = seen @ p["W_0"]["kernel"][0, 0] + p["W_0"]["bias"]
            np.testing.assert_allclose(y[i], image[i] + 0.7 * w / np.sqrt(1 + 1e-5), atol=1e-5)


def test_blocks_stand_behind_the_last_ones():
    net = backbones.build(model())
    names = traced(net)["params"]
    assert [n for n in names if n.startswith("NL")] == ["NL_2_0", "NL_3_0", "NL_3_1"]
    assert net.bind({}).keys[1] == ("layer2_0", "layer2_1", "NL_2_0")
    for wrong in ((0, 1, 2), (0, 3, 0, 0), (0, -1, 0, 0)):
        with pytest.raises(ConfigError, match="nl_blocks"):
            backbones.build(model(nl_blocks=wrong))
    with pytest.raises(ConfigError, match="stem_pool"):
        backbones.build(model(backbone="narrow", stem_pool="ceil"))


def test_refine_is_asked_behind_every_block():
    asked = []
    fields = dict(backbone="slim", slim_blocks=(1, 2))
    net = backbones.build(model(**fields), refine=asked.append)
    traced(net)
    assert asked == ["stem", "pool", (1, 0), 1, (2, 0), (2, 1), 2]


def test_parameters_of_the_published_net():
    fields = dict(backbone="resnet50_nl", nl_blocks=(0, 2, 3, 0), neck="bnneck", pool="gem")
    tree = shapes_of(751, **fields)["params"]
    assert count(tree) == 25_078_864
    assert count({k: v for k, v in tree["base"].items() if k.startswith("NL")}) == 28_687


@pytest.mark.parametrize(
    "case, layout, front, fields",
    [
        ("agw_net", "agw", "", dict(pool="gem", neck="bnneck")),
        ("fastreid_resnet", "fastreid", "backbone.", dict(neck="none")),
    ],
)
def test_keys_and_shapes_are_the_references(case, layout, front, fields):
    recorded = np.load(CASES / f"sup__{case}.npz")
    want = {n[6:]: tuple(recorded[n]) for n in recorded.files if n.startswith("shape/")}
    want |= {n[6:]: recorded[n].shape for n in recorded.files if n.startswith("param/")}
    want = {front + k: s for k, s in want.items()}
    tree = shapes_of(6, backbone="resnet50_nl", nl_blocks=(0, 2, 3, 0), **fields)
    tree = jax.tree.map(lambda s: np.zeros(s.shape, np.int8), tree)
    got = {k: v.shape for k, v in weights.to_torch(tree, layout, counters=True).items()}
    assert want.keys() - got.keys() == set() and all(got[k] == s for k, s in want.items())
    assert {k for k in got.keys() - want.keys() if not k.startswith("heads.")} == set()
    others = {} if layout == "agw" else {"heads.weight": 0}
    assert weights.guess(dict.fromkeys(want) | others) == layout


def entries_of(layout, **fields):
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes_of(**fields))
    return weights.to_torch(tree, layout)


def test_a_file_of_a_net_that_pools_otherwise_is_told(tmp_path, caplog):
    """One sentence, not if the net pools likewise: fast-reid's file, and one of ours that says so itself."""
    weights.save(tmp_path / "w.safetensors", entries_of("fastreid", neck="bnneck"), {})
    meta = {"reid_jax": "0", "model": json.dumps({"stem_pool": "ceil"})}
    weights.save(tmp_path / "ours.safetensors", entries_of("reid_jax", neck="bnneck"), meta)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(neck="bnneck"))
    for name in ("w.safetensors", "ours.safetensors"):
        for pool, times in (("padded", 1), ("ceil", 0)):
            caplog.clear()
            with caplog.at_level(logging.INFO):
                warm.from_file(str(tmp_path / name), model(stem_pool=pool))("net", zeros)
            assert caplog.text.count("set --config.model.stem_pool=ceil") == times


def test_convert_chooses_net_and_pooling_by_the_keys(tmp_path, capsys):
    entries = entries_of("fastreid", backbone="resnet50_nl_ibn_a", nl_blocks=(0, 2, 3, 0), neck="bnneck")
    few = {k: v for k, v in entries.items() if "layer4" not in k and "layer3" not in k}
    np.savez(tmp_path / "w.npz", **few)
    assert convert.main([str(tmp_path / "w.npz"), str(tmp_path / "w.safetensors"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backbone"] == "resnet50_nl_ibn_a" and not report["unused"]
    stored = json.loads(weights.read(tmp_path / "w.safetensors").metadata["model"])
    assert stored["stem_pool"] == "ceil" and stored["neck"] == "bnneck"
    with pytest.raises(WeightsError, match="non-local blocks where the model has none"):
        weights.load(few, {"params": {"base": {"conv1": {"kernel": np.zeros((7, 7, 3, 64), np.float32)}}}})
