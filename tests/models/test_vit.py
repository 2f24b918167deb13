"""Vision transformers: parameter counts, cameras, shuffled patches, stochastic depth, weights in and out."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError
from reid_jax.models import backbones, heads, weights
from reid_jax.models.backbones import vit, vit_files, vit_grids
from reid_jax.models.heads import tokens
from reid_jax.train import embedding

NARROW = dict(backbone="vit_narrow", vit_width=8, vit_depth=2, vit_heads=2, vit_drop_path=0.0, neck="bnneck")
X = np.random.default_rng(0).standard_normal((4, 32, 16, 3)).astype(np.float32)
HEAD = (
    ("classifier", "weight"),
    *(("bottleneck", leaf) for leaf in ("weight", "bias", "running_mean", "running_var")),
)


def build(num_cams=3, classes=5, **fields):
    model = defaults()["model"] | NARROW | dict(head="jpm", vit_sie=3.0, vit_stride=6) | fields
    return heads.build(namespace(model), classes, num_cams=num_cams)


def shapes(net, x=X):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), x[:1], False))


def drawn(net, x=X, seed=0):
    """Variables of random numbers; nothing is compiled for them."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        value = rng.standard_normal(leaf.shape) / math.prod(leaf.shape[:-1]) ** 0.5
        return np.float32(abs(value) + 0.5 if path[-1].key == "var" else value)

    return jax.tree_util.tree_map_with_path(fill, shapes(net, x))


@pytest.mark.parametrize(
    "backbone, stride, cameras, count",
    [("vit_b16", 16, 0, 85746432), ("vit_b16", 12, 6, 85814016), ("deit_s16", 16, 0, 21639552)],
)
def test_parameters_of_the_published_nets(backbone, stride, cameras, count):
    fields = dict(backbone=backbone, vit_stride=stride, vit_sie=3.0 * (cameras > 0))
    base = backbones.build(namespace(defaults()["model"] | fields), num_cams=cameras)
    found = jax.eval_shape(
        lambda: base.init(jax.random.key(0), np.zeros((1, 256, 128, 3), np.float32), False)
    )
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(found["params"])) == count


def test_shuffled_patches():
    """By hand: from the fifth on, then the first four, dealt out from two halves."""
    even, odd = (np.arange(1, n + 1.0)[None, :, None] for n in (8, 9))
    assert tokens.shuffled(even, 5, 2).ravel().tolist() == [5, 1, 6, 2, 7, 3, 8, 4]
    assert tokens.shuffled(odd, 5, 2).ravel().tolist() == [5, 1, 6, 2, 7, 3, 8, 4, 9, 3]
    assert tokens.shuffled(even, 3, 4).ravel().tolist() == [3, 5, 7, 1, 4, 6, 8, 2]


def test_cameras_and_parts_of_a_batch():
    """Unknown cameras get the mean; parts that come in turn take their own cameras with them."""
    net = build()
    variables = drawn(net)
    camera = jnp.array([0, 2, 1, -1])
    test = jax.jit(lambda v, c: net.apply(v, X, False, c))
    out = test(variables, camera)
    assert len(out.logits) == 5 and out.test.shape == (4, 5 * 8)
    np.testing.assert_allclose(out.test[:, 8:16], out.before_bn[1] / 4, rtol=1e-6)
    base = variables["params"]["base"]
    mean = np.broadcast_to(base["sie_embed"].mean(0), base["sie_embed"].shape)
    blind = {**variables, "params": {**variables["params"], "base": {**base, "sie_embed": mean}}}
    without = test(blind, camera).test
    np.testing.assert_allclose(out.test[3], without[3], atol=1e-5)
    np.testing.assert_allclose(test(variables, jnp.full(4, 7)).test, without, atol=1e-5)
    assert np.abs(out.test[:3] - without[:3]).max(1).min() > 1e-2
    in_turn = jax.jit(lambda v, c: heads.encoder(net, 2).apply(v, X, True, None, c)[0])
    for ours, want in zip(in_turn(variables, camera).before_bn, out.before_bn, strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-5)


def test_stochastic_depth_drops_images():
    """The same ones on two devices as on one; what is kept is divided by the rate of keeping."""
    x, keys = jnp.ones((2, 8, 3, 2)), {"dropout": jax.random.key(1)}
    apply = functools.partial(vit.DropPath(0.25, "d").apply, {}, train=True, rngs=keys)
    several = jax.vmap(lambda x: apply(x), axis_name="d")(x).reshape(16, 3, 2)
    whole = vit.DropPath(0.25).apply({}, x.reshape(16, 3, 2), True, rngs=keys)
    np.testing.assert_array_equal(several, whole)
    assert set(np.unique(np.float32(whole))) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.ptp(np.asarray(whole), axis=(1, 2)).max() == 0
    rates = [build(vit_drop_path=0.1).base.block(i).args[1] for i in range(2)]
    np.testing.assert_allclose(rates, [0, 0.1])


def timm(width=8, grid=(2, 2), distilled=False):
    """Entries of a file as timm writes them, random."""
    net = build(head="token", vit_sie=0.0, vit_stride=8, num_cams=0)
    variables = drawn(net, np.zeros((1, 8 * grid[0], 8 * grid[1], 3), np.float32), seed=1)
    entries = weights.to_torch({"params": {"base": variables["params"]["base"]}}, "timm_vit")
    entries |= {"head.weight": np.zeros((1000, width)), "head.bias": np.zeros(1000)}
    if distilled:
        entries["dist_token"] = np.ones((1, 1, width), np.float32)
        position = entries["pos_embed"]
        extra = np.full((1, 1, width), 9, np.float32)
        entries["pos_embed"] = np.concatenate([position[:, :1], extra, position[:, 1:]], 1)
    return entries


@pytest.mark.parametrize("distilled", [False, True])
def test_timms_weights_start_all_last_blocks(distilled):
    """b1 and b2 begin as the last block; positions are resized; other tasks' heads are named and left."""
    entries, net = timm(distilled=distilled), build()
    filled, report = weights.load(entries, drawn(net))
    params = filled["params"]
    assert report["layout"] == "timm_vit"
    qkv = entries["blocks.1.attn.qkv.weight"].T
    for name in ("b1", "b2"):
        np.testing.assert_array_equal(params[f"{name}_0"]["attn"]["qkv"]["kernel"], qkv)
        np.testing.assert_array_equal(params[f"{name}_1"]["bias"], entries["norm.bias"])
    old = entries["pos_embed"][0, 1 + distilled :].reshape(2, 2, 8)
    grid = np.asarray(params["base"]["pos_embed"])
    assert grid.shape == (5, 2, 8)
    np.testing.assert_allclose(grid[[0, 2, 4]], [old[0], old.mean(0), old[1]], atol=1e-6)
    np.testing.assert_array_equal(params["base"]["cls_pos"], entries["pos_embed"][:, :1])
    said = " ".join(report["notes"])
    assert "head" in said and "4 patches resized to (5, 2)" in said and ("dist_token" in said) == distilled
    assert {"head.weight", "head.bias"} <= set(report["unused"])
    assert {k for k in report["missing"] if k.split(".")[0] not in ("bottleneck", "classifier")} <= {
        *("sie_embed", "base.sie_embed"),
        *(f"{name}_{i}.{leaf}" for i in range(1, 5) for name, leaf in HEAD),
    }


def test_round_trip_of_transreid():
    net = build()
    variables = drawn(net)
    entries = weights.to_torch(variables, "transreid")
    assert entries["base.pos_embed"].shape == (1, 11, 8)
    assert {"b1.0.attn.qkv.weight", "b2.1.bias", "bottleneck_4.running_var"} <= entries.keys()
    assert {"classifier.weight", "classifier_1.weight", "base.patch_embed.proj.bias"} <= entries.keys()
    loaded, report = weights.load(
        {f"module.{k}": v for k, v in entries.items()}, jax.tree.map(np.zeros_like, variables)
    )
    assert report["layout"] == "transreid" and not report["missing"] and not report["unused"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded, variables)))
    _, report = weights.load(entries, drawn(build(num_cams=9, classes=8)))
    assert "base.sie_embed" in report["unused"] and "of 3 cameras, the model of 9" in str(report["notes"])


def test_fields_that_follow_from_a_file():
    entries = {"base.pos_embed": np.broadcast_to(0.0, (1, 211, 384)), "base.sie_embed": np.zeros((6, 1, 384))}
    entries |= {f"base.blocks.{i}.norm1.weight": np.zeros(384) for i in range(12)} | {"b1.1.weight": 0}
    fields = vit_files.fields({k: v for k, v in entries.items() if "blocks.11" not in k})
    assert fields == vit_files.fields(entries)
    assert fields["backbone"] == "deit_s16" and fields["vit_stride"] == 12
    assert (fields["head"], fields["vit_sie"]) == ("jpm", 3.0)
    model = namespace(defaults()["model"] | fields)
    assert vit.image_size(model, entries["base.pos_embed"]) == (256, 124)  # of 21 x 10 patches
    assert [vit_grids.grid_of(n) for n in (128, 210, 242, 192, 196, 22)] == [
        (16, 8), (21, 10), (22, 11), (24, 8), (14, 14), (11, 2)
    ]  # fmt: skip


def test_fields_that_do_not_go_together():
    for fields, message in (
        (dict(head="global"), "use head=token"),
        (dict(backbone="narrow", head="token", vit_sie=0.0), "use head=global"),
        (dict(backbone="narrow"), "jpm' is for ViTs"),
        (dict(num_cams=0), "vit_sie=0"),
        (dict(style="mixstyle"), "style=none"),
        (dict(norm="aibn"), "batch norm only"),
        (dict(vit_heads=3), "vit_heads 3"),
        (dict(vit_stride=9), "vit_stride is 9"),
        (dict(jpm_parts=0), "jpm_parts"),
        (dict(token_test="behind"), "token_test"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(**fields)
    for fields, x, message in (
        (dict(jpm_parts=11), X, "use fewer parts"),
        (dict(jpm_groups=4), X, "jpm_groups is 4"),
        (dict(), X[:, :7], "patch of 8 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            shapes(build(**fields), x)


def test_cameras_that_training_has_not_seen(caplog):
    """They are unknown to the network, as are all of other sets; one warning tells of them."""
    method = SimpleNamespace(wants_camera=True, info=SimpleNamespace(num_cams=2))
    devices = SimpleNamespace(local=[0], compile_embed=lambda f: f)
    embedder = embedding.Embedder(method, "net", devices)
    records = [Record("a", 1, 0), Record("b", 1, 1), Record("c", 2, 2)]
    assert [r.camid for r in embedder.seen(records[:2], False)] == [0, 1] and not caplog.records
    assert [r.camid for r in embedder.seen(records, False)] == [0, 1, -1]
    assert [r.camid for r in embedder.seen(records, True)] == [-1, -1, -1]
    assert len(caplog.records) == 1 and "1 of 3 pictures are by cameras" in caplog.text
    method.wants_camera = False
    assert embedder.seen(records, True) is records
