"""MGN: branches and their strides, vectors and their order, weights in and out, variants, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import heads, weights

SLIM = dict(slim_width=2, slim_blocks=(1, 1, 2, 1), last_stride=2)


def build(classes=5, **fields):
    fields = SLIM | dict(backbone="slim_mgn", head="mgn", mgn_dim=3) | fields
    return heads.build(namespace(defaults()["model"] | fields), classes)


def shapes_of(net, size=(96, 48)):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *size, 3)), False))


def random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_published_net():
    """70,351,800 parameters at 751 people; maps of 12 x 4 and 24 x 8; MGN-pytorch's keys."""
    net = build(751, backbone="resnet50_mgn", mgn_dim=256)
    image = jnp.zeros((1, 384, 128, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), image, False))
    assert count(shapes["params"]) == 70_351_800
    base = {name: tree["base"] for name, tree in shapes.items()}
    maps = jax.eval_shape(lambda v: net.base.apply(v, image, False), base)
    assert [m.shape for m in maps] == [(1, 12, 4, 2048), (1, 24, 8, 2048), (1, 24, 8, 2048)]
    entries = weights.to_torch(jax.tree.map(lambda s: np.zeros(s.shape, np.int8), shapes), "mgn")
    want = {
        "backone.0.weight": (64, 3, 7, 7),
        "backone.1.running_var": (64,),
        "backone.4.2.conv3.weight": (256, 64, 1, 1),
        "backone.6.downsample.0.weight": (1024, 512, 1, 1),
        "p1.0.4.conv1.weight": (256, 1024, 1, 1),
        "p3.1.0.downsample.1.bias": (2048,),
        "reduction_7.0.weight": (256, 2048, 1, 1),
        "reduction_0.1.weight": (256,),
        "fc_id_2048_2.weight": (751, 256),
        "fc_id_256_1_1.bias": (751,),
        "fc_id_256_2_2.weight": (751, 256),
    }
    assert {k: entries[k].shape for k in want} == want
    assert not any(k.startswith(("backone.7", "p1.0.5", "p4", "reduction_8", "layer")) for k in entries)


FASTREID = dict(neck="bnneck", mgn_relu=False, mgn_metric="joined", pool="gem", last_stride=1)


def test_fast_reids_files():
    """Their keys, from its code; net and settings by them."""
    variables = random(shapes_of(build(**FASTREID)))
    entries = weights.to_torch(variables, "mgn_fastreid", counters=True)
    for head, vector in (("b1", 0), ("b3", 2), ("b21", 3), ("b33", 7)):
        pool = variables["params"][f"pooling_{vector}"]["p"]
        np.testing.assert_array_equal(entries[f"{head}_head.pool_layer.p"], pool)
        kernel = variables["params"][f"reduction_{vector}"]["conv"]["kernel"]
        np.testing.assert_array_equal(entries[f"{head}_head.bottleneck.0.weight"][:, :, 0, 0], kernel[0, 0].T)
        assert entries[f"{head}_head.weight"].shape == (5, 3)
    assert {"backbone.4.0.conv1.weight", "backbone.6.bn3.bias", "b2.0.0.conv1.weight"} < {*entries}
    assert {"b3.1.0.downsample.1.running_var", "b22_head.bottleneck.1.running_mean"} < {*entries}
    back, report = weights.load(entries, jax.tree.map(np.zeros_like, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert report["layout"] == "mgn_fastreid" and not report["unused"] + report["missing"]
    told = weights.implied(weights.recognise(entries))
    assert told | FASTREID == told | {"last_stride": 1} and told["stem_pool"] == "ceil"


def test_weights_go_there_and_back():
    variables = random(shapes_of(build()))
    entries = {f"module.{k}": v for k, v in weights.to_torch(variables, "mgn", counters=True).items()}
    back, report = weights.load(entries, jax.tree.map(np.zeros_like, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert report["layout"] == "mgn" and not report["unused"] + report["missing"]
    file = weights.recognise(entries)
    assert weights.implied(file) == {"backbone": "resnet50_mgn", "head": "mgn", "last_stride": 2}


def test_all_branches_begin_with_the_weights_of_an_ordinary_net():
    plain = heads.build(namespace(defaults()["model"] | SLIM | dict(backbone="slim", neck="none")), 5)
    trunk = random({k: {"base": v["base"]} for k, v in shapes_of(plain).items()})
    back, report = weights.load(
        weights.to_torch(trunk), jax.tree.map(jnp.zeros_like, random(shapes_of(build())))
    )
    for collection in ("params", "batch_stats"):
        base, there = back[collection]["base"], trunk[collection]["base"]
        for branch in ("branch1", "branch2", "branch3"):
            assert set(base[branch]) == {"layer3_1", "layer4_0"}
            for block, tree in base[branch].items():
                jax.tree.map(np.testing.assert_array_equal, tree, there[block])
        jax.tree.map(np.testing.assert_array_equal, base["layer3_0"], there["layer3_0"])
    assert not report["unused"] and all(k.startswith(("reduction", "fc_id")) for k in report["missing"])


def test_vectors_in_their_order():
    """Whole maps, halves of the second branch, thirds of the third; reduced and classified one by one."""
    head, rng = build().top, np.random.default_rng(0)
    maps = tuple(rng.normal(size=(2, h, w, 4)).astype(np.float32) for h, w in ((3, 2), (6, 4), (6, 4)))
    vectors = head.apply({}, lambda x, train: x, maps, False, method="pooled")
    a, b, c = maps
    pieces = [a, b, c, b[:, :3], b[:, 3:], c[:, :2], c[:, 2:4], c[:, 4:]]
    np.testing.assert_array_equal(vectors, np.concatenate([p.max((1, 2)) for p in pieces], 1))
    variables = random(jax.eval_shape(lambda: head.init(jax.random.key(0), vectors, False)))
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    out = head.apply(variables, vectors, False)
    p, stats = variables["params"], variables["batch_stats"]
    for i, (name, piece) in enumerate(zip(head.classifiers, pieces, strict=True)):
        own, s = p[f"reduction_{i}"], stats[f"reduction_{i}"]["norm"]
        y = piece.max((1, 2)) @ own["conv"]["kernel"][0, 0] - s["mean"]
        y = y / np.sqrt(s["var"] + 1e-5) * own["norm"]["scale"] + own["norm"]["bias"]
        y = np.maximum(y, 0)
        np.testing.assert_allclose(out.test[:, 3 * i : 3 * i + 3], y, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            out.logits[i], y @ p[name]["kernel"] + p[name]["bias"], rtol=1e-3, atol=1e-3
        )
    assert len(out.after_bn) == len(out.before_bn) == 3


def test_classifiers_by_cosines():
    """fast-reid's: of all vectors, scaled cosines to the columns of a kernel without a bias."""
    head = build(classifier="circle", classifier_scale=16.0, neck="bnneck", mgn_relu=False).top
    x = np.random.default_rng(0).normal(size=(2, 8 * 4)).astype(np.float32)
    variables = random(jax.eval_shape(lambda: head.init(jax.random.key(0), x, False)))
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    out = head.apply(variables, x, False)
    for i, name in enumerate(head.classifiers):
        v, kernel = out.test[:, 3 * i : 3 * i + 3], variables["params"][name]["kernel"]
        want = 16 * (v @ kernel) / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
        np.testing.assert_allclose(out.logits[i], want, rtol=1e-4, atol=1e-4)
        assert variables["params"][name].keys() == {"kernel"}


def test_variants():
    x = jnp.ones((2, 8 * 4))

    def outputs(**fields):
        head = build(**fields).top
        return jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), x, False))

    out, variables = outputs(mgn_shared=True)
    assert [n for n in variables["params"] if n.startswith("reduction")] == ["reduction_0"]
    out, variables = outputs(mgn_wide=True)
    kernels = [variables["params"][n]["kernel"].shape[0] for n in ("fc_id_2048_2", "fc_id_256_1_0")]
    assert kernels == [4, 3]
    out, variables = outputs(mgn_metric="joined", neck="bnneck", mgn_relu=False, pool="gem")
    assert [f.shape[1] for f in out.after_bn] == [3, 3, 3, 6, 9]
    assert "bias" not in variables["params"]["fc_id_256_2_0"]
    assert out.margin is None
    out, _ = outputs(mgn_metric="joined", neck="bnneck", classifier="circle", classifier_scale=16.0)
    assert (out.margin.kind, out.margin.scale, len(out.logits)) == ("circle", 16.0, 8)
    assert build(neck="bnneck").frozen == (r"^reduction_\d+/norm/bias$",)
    assert build(mgn_parts=(1, 2)).top.classifiers == (
        *("fc_id_2048_0", "fc_id_2048_1"),
        *("fc_id_256_1_0", "fc_id_256_1_1"),
    )


@pytest.mark.parametrize(
    "fields, word",
    [
        (dict(backbone="slim"), "belong together"),
        (dict(head="global"), "belong together"),
        (dict(mgn_parts=(1, 5)), "must divide"),
        (dict(mgn_parts=()), "mgn_parts"),
        (dict(mgn_metric="all"), "mgn_metric"),
        (dict(pool="stripes"), "pool"),
    ],
)
def test_what_cannot_be(fields, word):
    with pytest.raises(ConfigError, match=word):
        shapes_of(build(**fields), (48, 24))
