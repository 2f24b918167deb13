"""OSNet: keys and sizes of torchreid's nets, its head, what is refused."""

import pathlib
import re

import jax
import numpy as np
import pytest
from nets import net_of, random, shapes_of

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import backbones, heads, weights
from reid_jax.models.backbones import osnet
from reid_jax.parity import case

CASES = pathlib.Path(__file__).parents[1] / "cases"
TINY = dict(backbone="osnet", head="fc", osnet_widths=(4, 8, 8, 8), osnet_streams=2, fc_dim=6)


def parameters(shapes, without="classifier"):
    return sum(
        np.prod(s.shape) for k, t in shapes["params"].items() if k != without for s in jax.tree.leaves(t)
    )


SIZES = {"x1_0": 2_169_508, "x0_75": 1_285_754, "x0_5": 630_034, "x0_25": 201_864}
COUNTS = {f"{form}_{size}": count for form in ("osnet", "osnet_ain") for size, count in SIZES.items()}


@pytest.mark.parametrize(
    "backbone, count",
    [
        ("osnet_ibn_x1_0", 2_170_532),
        *[pytest.param(*item, marks=pytest.mark.slow) for item in COUNTS.items()],
    ],
)
def test_parameters_without_classifier(backbone, count):
    assert parameters(shapes_of(net_of(backbone=backbone, head="fc"))) == count


@pytest.mark.parametrize("name", ["osnet", pytest.param("osnet_ain", marks=pytest.mark.slow)])
def test_keys_are_torchreids(name):
    """Every entry of the reference's state dictionary, by key and shape, and no other."""
    recorded = case.load(CASES / f"sup__{name}.npz")
    theirs = {k: tuple(v) for k, v in recorded.under("shape/").items()}
    net = net_of(recorded.config.classes, backbone=recorded.config.variant, head="fc")
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes_of(net))
    ours = {k: v.shape for k, v in weights.to_torch(zeros, name, counters=True).items()}
    assert ours == theirs
    assert weights.guess(zeros_of(theirs)) == name
    assert weights.implied(weights.recognise(zeros_of(theirs))) == {
        "backbone": recorded.config.variant,
        "head": "fc",
    }


def zeros_of(shapes):
    return {k: np.zeros(v, np.float32) for k, v in shapes.items()}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("osnet", "osnet_ain")]


@pytest.mark.parametrize("backbone", ["osnet_ibn", *SLOW])
def test_there_and_back(backbone):
    """Through the keys and back; with a trainer's words in front; fast-reid's trunk and head."""
    net = net_of(**TINY | dict(backbone=backbone))
    layout = "osnet_ain" if backbone == "osnet_ain" else "osnet"
    shapes = shapes_of(net)
    variables, empty = random(shapes), jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    entries = weights.to_torch(variables, layout, counters=True)
    assert not any("_" in re.sub("num_batches_tracked|running_mean|running_var", "", k) for k in entries)
    for front in ("", "module.", "module.backbone."):
        found, report = weights.load({front + k: v for k, v in entries.items()}, empty)
        heads_only = [k for k in report["missing"] if not k.startswith(("fc.", "classifier."))]
        assert report["layout"] == layout and not heads_only
        want, got = variables, found
        if "backbone" in front:  # the head stands beside such a trunk
            want, got = ({kind: tree["base"] for kind, tree in v.items()} for v in (want, got))
        jax.tree.map(np.testing.assert_array_equal, got, want)
    other = net_of(**TINY | dict(backbone=backbone, head="global", neck="bnneck"))
    entries = {f"backbone.{k}": v for k, v in entries.items() if not k.startswith(("fc.", "classifier."))}
    entries |= {
        "heads.weight": np.ones((5, 8), np.float32),
        "heads.bottleneck.0.weight": np.ones(8, np.float32),
    }
    entries |= {
        f"heads.bottleneck.0.{k}": np.ones(8, np.float32) for k in ("bias", "running_mean", "running_var")
    }
    found, report = weights.load(entries, shapes_and_zeros(other))
    assert not report["missing"] and not report["unused"]
    np.testing.assert_array_equal(found["params"]["classifier"]["kernel"], 1)


def shapes_and_zeros(net):
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(net))


def test_head_has_its_relu_in_test_mode_too():
    head = heads.build(namespace(defaults()["model"] | TINY), 5).top
    x = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)
    variables = random(jax.eval_shape(lambda: head.init(jax.random.key(0), x, False)))
    out = head.apply(variables, x, False)
    p, stats = variables["params"], variables["batch_stats"]["fc_1"]
    y = (x @ p["fc_0"]["kernel"] + p["fc_0"]["bias"] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    y = np.maximum(y * p["fc_1"]["scale"] + p["fc_1"]["bias"], 0)
    assert (y == 0).any() and (y > 0).any()
    np.testing.assert_allclose(out.test, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        out.logits[0], y @ p["classifier"]["kernel"] + p["classifier"]["bias"], rtol=1e-4
    )


def test_means_of_four_pixels_leave_an_odd_row_out():
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32)
    want = np.stack(
        [[x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in (0, 1)] for i in (0, 1)]
    )
    np.testing.assert_allclose(osnet.halved(x), want.transpose(2, 0, 1, 3), atol=1e-6)


def test_gates_and_joins_of_streams():
    """Separate gates of equal weights are the shared one, none: open ones; joined under one kernel: added."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 8)).astype(np.float32)

    def run(params, **fields):
        block = osnet.OSBlock(8, streams=2, reduction=2, gate_reduction=2, **fields)
        return jax.jit(lambda v: block.apply(v, x, False))({**variables, "params": params})

    block = osnet.OSBlock(8, streams=2, reduction=2, gate_reduction=2)
    variables = random(jax.eval_shape(lambda: block.init(jax.random.key(0), x, False)))
    shared, rest = variables["params"]["gate"], dict(variables["params"])
    del rest["gate"]
    want = run(rest | {"gate": shared})
    np.testing.assert_allclose(run(rest | {"gate_0": shared, "gate_1": shared}, gate="separate"), want)
    wide = jax.tree.map(lambda kernel: np.concatenate([kernel] * 2, -2), rest["conv3"]["conv"])
    joined = rest | {"gate": shared, "conv3": rest["conv3"] | {"conv": wide}}
    np.testing.assert_allclose(run(joined, join="concat"), want, rtol=1e-4, atol=1e-5)
    opened = shared | {"fc2": {"kernel": 0 * shared["fc2"]["kernel"], "bias": np.full(4, 50, np.float32)}}
    np.testing.assert_allclose(run(rest, gate="none"), run(rest | {"gate": opened}), rtol=1e-5)


def test_what_cannot_be():
    for fields, text in (
        (dict(osnet_widths=(4, 8)), "osnet_widths"),
        (dict(osnet_streams=0), "osnet_streams"),
        (dict(osnet_gate="open"), "osnet_gate"),
        (dict(osnet_join="mean"), "osnet_join"),
        (dict(norm="aibn"), "batch norm only"),
        (dict(fc_dim=0), "fc_dim"),
    ):
        with pytest.raises(ConfigError, match=text):
            net_of(**TINY | fields)
    with pytest.raises(ConfigError, match=r"config.data.height and width"):
        shapes_of(net_of(**TINY), 8, 4)
    with pytest.raises(ConfigError, match="embedding of its own"):
        heads.build(namespace(defaults()["model"] | TINY), 5, num_features=4)


def test_styles_have_their_places():
    """MixStyle after the first two stages, transitions included."""
    net = backbones.build(namespace(defaults()["model"] | TINY | dict(style="mixstyle")))
    assert net.places == ("stem", "pool", 1, 2, 3, 4)
    assert [place for place in net.places if net.style(place) is not None] == [1, 2]
