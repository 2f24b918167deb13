"""HA-CNN: windows by a loop over pixels, keys and sizes of torchreid's net, what is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import heads, weights
from reid_jax.models.backbones import hacnn
from reid_jax.parity import case

CASES = pathlib.Path(__file__).parents[1] / "cases"
TINY = dict(backbone="hacnn", head="pair", hacnn_widths=(2, 16, 16, 16), hacnn_dim=4)


def net_of(classes=5, **fields):
    return heads.build(namespace(defaults()["model"] | fields), classes)


def shapes_of(net, height=160, width=64):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(net).init, jax.random.key(0), image)


def pixel(x, row, column):
    """Bilinear value of x [H,W,C] at a fractional place, zeros outside."""
    total = np.zeros(x.shape[-1])
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * x[i, j]
    return total


def window(x, shift, size, align_corners):
    """An affine grid of scale (1, 1/4), sampled, then resized with the corners' pixels in place."""

    def place(i, n, scale, move):
        at = scale * (2 * i / (n - 1) - 1 if align_corners else (2 * i + 1) / n - 1) + move
        return (at + 1) / 2 * (n - 1) if align_corners else ((at + 1) * n - 1) / 2

    h, w = x.shape[:2]
    rows, columns = (
        [place(i, n, s, m) for i in range(n)] for n, s, m in ((h, 0.25, shift[1]), (w, 1, shift[0]))
    )
    seen = np.array([[pixel(x, r, c) for c in columns] for r in rows])
    steps = [[i * (n - 1) / (m - 1) for i in range(m)] for n, m in zip((h, w), size, strict=True)]
    return np.array([[pixel(seen, r, c) for c in steps[1]] for r in steps[0]])


@pytest.mark.parametrize("align_corners", [False, True])
def test_windows_are_sampled_pixel_by_pixel(align_corners):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 6, 3))
    shifts = rng.uniform(-1.2, 1.2, (2, 2, 2))
    shifts[0, 0] = (0, -0.635)  # columns in place
    run = jax.jit(hacnn.windows, static_argnums=(2, 3))
    got = run(jnp.asarray(x, jnp.float32), jnp.asarray(shifts, jnp.float32), (5, 7), align_corners)
    want = [[window(x[b], shifts[b, r], (5, 7), align_corners) for b in range(2)] for r in range(2)]
    np.testing.assert_allclose(got.reshape(2, 2, 5, 7, 3), want, atol=1e-5)


@pytest.mark.slow
def test_keys_are_torchreids():
    """Every entry of the reference's state dictionary, by key and shape, and no other; and back."""
    recorded = case.load(CASES / "sup__hacnn.npz")
    theirs = {k: tuple(v) for k, v in recorded.under("shape/").items()}
    shapes = shapes_of(net_of(recorded.config.classes, backbone="hacnn", head="pair"))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes)
    entries = weights.to_torch(variables, "hacnn", counters=True)
    assert {k: v.shape for k, v in entries.items()} == theirs
    own = [t for k, t in shapes["params"].items() if "classifier" not in k]
    assert sum(np.prod(s.shape) for s in jax.tree.leaves(own)) == 2_929_112
    file = weights.recognise({f"module.{k}": v for k, v in entries.items()})
    widths = dict(hacnn_widths=(32, 128, 256, 384), hacnn_dim=512)
    assert file.layout == "hacnn"
    assert weights.implied(file) == {"backbone": "hacnn", "head": "pair"} | widths
    found, report = weights.load(entries, jax.tree.map(np.zeros_like, variables))
    assert not report["missing"] and not report["unused"]
    jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.slow
def test_without_parts_of_it():
    """The global branch alone, fixed windows, maps as they are: fewer modules, the other shapes the same."""
    whole = shapes_of(net_of(**TINY))["params"]
    alone = shapes_of(net_of(**TINY | dict(hacnn_local=False)))["params"]
    assert whole.keys() - alone.keys() == {"classifier_local"}
    gone = {"fc_local_0", "fc_local_1", "local_conv1", "local_conv2", "local_conv3"}
    assert whole["base"].keys() - alone["base"].keys() == gone
    assert alone["base"]["ha2"].keys() == {"soft_attn"}
    fixed = shapes_of(net_of(**TINY | dict(hacnn_hard=False, hacnn_soft=False)))["params"]["base"]
    assert whole["base"].keys() - fixed.keys() == {"ha1", "ha2", "ha3"}
    entries = {f"{k}.weight": np.zeros(2, np.float32) for k in ("ha1.hard_attn.fc", "classifier_global")}
    assert weights.implied(weights.recognise(entries))["hacnn_local"] is False


def test_fixed_windows_are_those_of_the_start():
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 16)).astype(np.float32)
    made = {hard: hacnn.Attention(soft=False, hard=hard) for hard in (True, False)}
    both = [net.init_with_output(jax.random.key(0), x, False)[0] for net in made.values()]
    np.testing.assert_allclose(both[0][1], both[1][1], rtol=1e-6)
    np.testing.assert_allclose(both[1][1][2], np.tanh(np.reshape(hacnn.SHIFTS, (4, 2))), rtol=1e-6)
    assert both[0][0] == both[1][0] == 1


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="config.data.height=160 and config.data.width=64"):
        shapes_of(net_of(**TINY), 128, 64)
    for fields, text in (
        (dict(head="global"), "config.model.head=pair"),
        (dict(hacnn_widths=(2, 16, 20, 16)), "multiples of 16"),
        (dict(norm="ibn_a"), "batch norm only"),
    ):
        with pytest.raises(ConfigError, match=text):
            net_of(**TINY | fields)
    with pytest.raises(ConfigError, match="backbones of two vectors"):
        shapes_of(net_of(head="pair", backbone="narrow"), 32, 16)


@pytest.mark.slow
def test_clips_frame_by_frame():
    """The map is one row of two vectors."""
    net = net_of(**TINY)
    clip = jax.ShapeDtypeStruct((3, 2, 160, 64, 3), jnp.float32)
    maps = jax.eval_shape(lambda x: net.base.init_with_output(jax.random.key(0), x, False)[0], clip)
    assert maps.shape == (3, 2, 1, 2, 4)


def test_feature_is_both_vectors_at_unit_length():
    net = net_of(**TINY)
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda: net.top.init(jax.random.key(0), x, False))
    out = net.top.apply(jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes), x, False)
    alone = net_of(**TINY | dict(hacnn_local=False)).top
    shapes_alone = jax.eval_shape(lambda: alone.init(jax.random.key(0), x[:, :4], False))
    only = alone.apply(jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes_alone), x[:, :4], False)
    np.testing.assert_allclose(only.test, out.test[:, :4], rtol=1e-6)
    unit = [v / np.linalg.norm(v, axis=1)[:, None] for v in (x[:, :4], x[:, 4:])]
    np.testing.assert_allclose(out.test, np.concatenate(unit, 1), rtol=1e-5)
    for logits, v in zip(out.logits, (x[:, :4], x[:, 4:]), strict=True):
        np.testing.assert_allclose(logits, 1 + np.tile(v.sum(1)[:, None], 5), rtol=1e-4, atol=1e-5)
