"""Key layouts of nets for unseen sets: written, told apart, read back; what their files stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import namespace
from reid_jax.methods import Info, defaults, snr
from reid_jax.models import heads, restitution, weights

SLIM = dict(backbone="slim", slim_width=2, slim_blocks=(2, 2, 1))
IMAGE = jax.ShapeDtypeStruct((1, 32, 16, 3), jnp.float32)


def variables_of(net, seed=0):
    """Random variables of a net."""
    shapes = jax.eval_shape(heads.encoder(net).init, jax.random.key(0), IMAGE)
    shapes.pop(restitution.KEPT, None)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def net_of(norm="batch", **fields):
    return heads.build(SLIM | dict(norm=norm, neck="bnneck") | fields, 5)


def restoring():
    """SNR's classification form."""
    tree = defaults("snr")
    tree["model"].update(SLIM, neck="none")
    tree["snr"].update(loss="entropy", stages=(1, 2, 3), weights=(0.01,) * 3, reduction=2)
    return snr.net(namespace(tree), Info(5, 1))


CASES = {
    "dualnorm": (
        lambda: net_of("dualnorm"),
        {"layer1.1.IN.weight", "fn.running_mean", "classifier.weight", "layer2.0.downsample.0.weight"},
        dict(norm="dualnorm", last_stride=2),
    ),
    "metabin": (
        lambda: net_of("metabin"),
        {
            *("backbone.bn1.gate", "backbone.layer1.0.bn1.bat_n.running_var"),
            *("backbone.layer1.0.bn3.ins_n.bias", "backbone.layer2.0.downsample.bn.gate"),
            *("backbone.layer2.0.downsample.conv.weight", "heads.classifier_norm.weight"),
            "heads.classifier_fc.weight",
        },
        dict(norm="metabin", neck="bnneck"),
    ),
    "m3l": (
        lambda: net_of(head="contrast", contrast_bias=True),
        {"base.layer1.0.bn1.running_mean", "feat_bn.weight", "feat_bn.bias"},
        dict(head="contrast", stem_relu=False),
    ),
    "snr": (
        restoring,
        {"IN1.weight", "style_reid_laye2.fc1.weight", "fc3.bias", "fc.weight", "layer1.0.bn1.weight"},
        {},
    ),
}


@pytest.mark.parametrize("layout", CASES)
def test_layout(layout):
    make, keys, fields = CASES[layout]
    variables = variables_of(make())
    entries = weights.to_torch(variables, layout, counters=True)
    assert keys <= set(entries)
    beside = {f"feat_bn.meta_{n}{i}": np.zeros(8) for n in ("mean", "var") for i in (1, 2)}
    entries |= beside if layout == "m3l" else {}
    file = weights.recognise({f"module.{k}": v for k, v in entries.items()})
    assert file.layout == layout and fields.items() <= weights.implied(file).items()
    back, report = weights.load(entries, jax.tree.map(np.zeros_like, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert set(report["unused"]) == set(beside if layout == "m3l" else ()) and not report["missing"]


@pytest.mark.parametrize("norm", ["ibn_b", "dualnorm", "bin"])
def test_norms_of_plain_files_are_told(norm):
    """Without a head, in torchvision's names; gates and inner norms stand beside the usual ones."""
    variables = variables_of(net_of(norm))
    variables = {part: {"base": tree["base"]} for part, tree in variables.items()}
    entries = weights.to_torch(variables)
    file = weights.recognise(entries)
    assert file.layout == "torchvision" and weights.implied(file)["norm"] == norm
    assert ("bn1.running_mean" in entries) == (norm != "ibn_b")
    back, _ = weights.load(entries, jax.tree.map(np.zeros_like, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_an_ordinary_file_starts_a_net_with_restitution():
    variables = variables_of(restoring())
    entries = weights.to_torch(variables_of(net_of(neck="none"), 1))
    back, report = weights.load(entries, variables)
    new = [k for k in report["missing"] if "restitution" not in k]
    assert not new and not report["unused"]
    np.testing.assert_array_equal(
        back["params"]["base"]["layer1_0"]["conv1"]["kernel"],
        variables_of(net_of(neck="none"), 1)["params"]["base"]["layer1_0"]["conv1"]["kernel"],
    )
