"""Files of published repositories: recognised by their keys, every entry in its place or told of.

Each repository's keys are written down here from its code, as renamings of torchvision's.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax import models
from reid_jax.commands import convert
from reid_jax.config import defaults, namespace
from reid_jax.errors import WeightsError
from reid_jax.models import heads, weights

NARROW = dict(backbone="narrow", pool="gem")


def shapes_of(classes=5, neck="bnneck", features=0, **fields):
    model = namespace(defaults()["model"] | NARROW | dict(neck=neck) | fields)
    net = heads.build(model, classes, num_features=features)
    image = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(net).init, jax.random.key(0), image)


def random_variables(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def zeros(shapes):
    return jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


HEADS = {"neck": "neck", "classifier": "classifier", "pooling": "pooling", "feat": "feat"}


def renamed(variables, trunk, front="", stage=None, **modules):
    """A state dictionary: `trunk` before the trunk's keys, `front` before all; stage: number of layer1."""
    names, found = HEADS | modules, {}
    for key, value in weights.to_torch(variables, "torchvision", counters=True).items():
        first, _, rest = key.partition(".")
        if first in names:
            found[f"{front}{names[first]}.{rest}"] = value
            continue
        if stage is not None:
            number = {"conv1": 0, "bn1": 1}.get(first) if first[:5] != "layer" else stage + int(first[5]) - 1
            key = f"{number}.{rest}"
        found[f"{front}{trunk}{key}"] = value
    return found


REPOSITORIES = {  # name: (layout, what `renamed` is told)
    "cluster-contrast": (
        "spcl",
        dict(trunk="base.", front="module.", stage=4, neck="feat_bn", pooling="gap"),
    ),
    "SpCL": ("spcl", dict(trunk="base.", front="module.", stage=4, neck="feat_bn", pooling="gap")),
    "MMT": ("mmt", dict(trunk="base.", stage=3, neck="feat_bn", pooling="gap")),
    "reid-strong-baseline": ("strong_baseline", dict(trunk="base.", neck="bottleneck", pooling="gap")),
    "AGW": ("agw", dict(trunk="base.", neck="bottleneck", pooling="global_pool")),
    "OpenUnReID": (
        "openunreid",
        dict(trunk="backbone.", front="module.", neck="head.feat_bn", pooling="global_pooling"),
    ),
    "fast-reid": (
        "fastreid",
        dict(trunk="backbone.", neck="heads.bottleneck.0", classifier="heads", pooling="heads.pool_layer"),
    ),
    "fast-reid 0.1": (
        "fastreid_old",
        dict(
            trunk="backbone.",
            neck="heads.bnneck",
            classifier="heads.classifier",
            pooling="heads.pool_layer.0",
        ),
    ),
    "IICS": ("iics", dict(trunk="model.", neck="classifier.0", classifier="classifier.1")),
    "Lightning, a strong baseline": (
        "strong_baseline",
        dict(trunk="base.", front="model.", neck="bottleneck", pooling="gap"),
    ),
    "Lightning, torchreid": ("torchvision", dict(trunk="", front="net._orig_mod.")),
    "Lightning, a trunk of any name": (
        "strong_baseline",
        dict(trunk="encoder.", neck="bnneck", pooling="gem"),
    ),
    "Lightning, a sequence": ("spcl", dict(trunk="features.", front="model.", stage=4, classifier="fc")),
    "a bare sequence": ("spcl", dict(trunk="", stage=4)),
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_every_entry_finds_its_place(name):
    layout, names = REPOSITORIES[name]
    shapes = shapes_of()
    variables = random_variables(shapes)
    back, report = weights.load(renamed(variables, **names), zeros(shapes))
    assert_same(back, variables)
    assert report["layout"] == layout
    assert not report["unused"] + report["missing"]


@pytest.mark.parametrize("layout", [t for t in weights.targets() if t not in ("reid_jax", *models.keys())])
def test_layouts_that_are_written_are_read_again(layout):
    shapes = shapes_of(features=6)
    variables = random_variables(shapes)
    entries = weights.to_torch(variables, layout, counters=True)
    back, report = weights.load({f"net.{k}": v for k, v in entries.items()}, zeros(shapes), layout)
    assert_same(back, variables)
    assert not report["unused"] + report["missing"]


def converted(tmp_path, capsys, entries, *flags):
    """(report, what is written) of the command on these entries."""
    np.savez(tmp_path / "w.npz", **entries)
    target = tmp_path / "ours.safetensors"
    argv = [str(tmp_path / "w.npz"), str(target), "--backbone=narrow", "--json", *flags]
    assert convert.main(argv) == 0
    return json.loads(capsys.readouterr().out), weights.read(target)


@pytest.mark.parametrize("name", ["cluster-contrast", "Lightning, a strong baseline", "fast-reid 0.1"])
def test_convert_makes_the_model_of_the_file(name, tmp_path, capsys):
    """Pooling, neck and classes as in the file; GeM's exponent is among what is used."""
    variables = random_variables(shapes_of(7))
    report, written = converted(tmp_path, capsys, renamed(variables, **REPOSITORIES[name][1]))
    assert (report["pool"], report["neck"]) == ("gem", "bnneck")
    assert not report["missing"] + report["unused"]
    assert written.entries.keys() == weights.to_torch(variables, "reid_jax").keys()
    np.testing.assert_array_equal(written.entries["params.pooling.p"], variables["params"]["pooling"]["p"])


def test_an_exponent_that_the_model_does_not_have_is_told():
    shapes = shapes_of()
    entries = renamed(random_variables(shapes), **REPOSITORIES["fast-reid"][1])
    entries["heads.pool_layer.p"] = np.array([2.5], np.float32)
    plain = shapes_of(pool="avg")
    _, report = weights.load(entries, zeros(plain))
    assert report["unused"] == ["heads.pool_layer.p"]
    assert any("exponent 2.5" in n and "config.model.pool=gem" in n for n in report["notes"])
    scalar = entries | {"heads.pool_layer.p": np.array(2.5, np.float32)}
    back, report = weights.load(scalar, zeros(shapes))
    assert back["params"]["pooling"]["p"].tolist() == [2.5] and not report["unused"]
    wide = entries | {"heads.pool_layer.p": np.full(64, 2.5, np.float32)}  # an exponent for each channel
    _, report = weights.load(wide, zeros(shapes))
    assert report["unused"] == ["heads.pool_layer.p"] and report["missing"] == ["heads.pool_layer.p"]
    assert any("heads.pool_layer.p has shape (64,)" in n for n in report["notes"])


def test_a_teacher_beside_the_network():
    """OpenUnReID's TeacherStudentNetwork: it tests the mean net; every entry of the other is told."""
    shapes = shapes_of()
    student, teacher = random_variables(shapes), random_variables(shapes, 1)
    _, names = REPOSITORIES["OpenUnReID"]
    sides = {front: names | {"front": f"module.{front}."} for front in ("net", "mean_net")}
    entries = renamed(student, **sides["net"]) | renamed(teacher, **sides["mean_net"])
    back, report = weights.load(entries, zeros(shapes))
    assert_same(back, teacher)
    assert not report["missing"] and all(k.startswith("net.") for k in report["unused"])
    assert sorted(report["used"] + report["unused"] + report["ignored"]) == sorted(
        k.removeprefix("module.") for k in entries
    )
    assert any("'mean_net.backbone', not 'net.backbone'" in n for n in report["notes"])


@pytest.mark.parametrize("source, target", [("BN_S", "BN_T"), ("dsbn.0", "dsbn.1")])
def test_norms_of_two_domains(source, target):
    """SpCL's and OpenUnReID's adapted nets: the target's norms, as both test; the source's are told."""
    shapes = shapes_of()
    ours, theirs = random_variables(shapes), random_variables(shapes, 1)
    _, names = REPOSITORIES["SpCL"]
    norm = re.compile(
        r"(.*(?:bn\d?|\.1|downsample\.1|feat_bn))\.(weight|bias|running_\w+|num_batches_tracked)"
    )
    entries = {}
    for variables, domain in ((theirs, source), (ours, target)):
        for key, value in renamed(variables, **names).items():
            entries[norm.sub(rf"\1.{domain}.\2", key) if norm.fullmatch(key) else key] = value
    back, report = weights.load(entries, zeros(shapes))
    assert_same(back, ours)
    assert not report["missing"] and all(f".{source}." in k for k in report["unused"])
    assert sum(len(report[n]) for n in ("used", "unused", "ignored")) == len(entries)
    assert any(target in n and "target" in n for n in report["notes"])


def test_fast_reids_embedding_and_its_reduction_head():
    """A 1x1 convolution without bias before the norm is `feat`; a head with more in it is left out, aloud."""
    shapes = shapes_of(features=6)
    variables = random_variables(shapes)
    entries = renamed(variables, **REPOSITORIES["fast-reid"][1])
    bottleneck = {k: entries.pop(k) for k in list(entries) if k.startswith("heads.bottleneck.0.")}
    entries |= {k.replace(".0.", ".1."): v for k, v in bottleneck.items()}
    entries["heads.bottleneck.0.weight"] = entries.pop("feat.weight")[:, :, None, None]
    bias = entries.pop("feat.bias")
    back, report = weights.load(entries, zeros(shapes))
    assert report["missing"] == ["feat.bias"] and not report["unused"]
    want = variables | {
        "params": variables["params"] | {"feat": variables["params"]["feat"] | {"bias": 0 * bias}}
    }
    assert_same(back, want)
    entries |= {k.replace("bottleneck.0", "bnneck"): v for k, v in bottleneck.items()}
    _, report = weights.load(entries, zeros(shapes_of()))
    assert report["layout"] == "fastreid_old"
    assert {"heads.bottleneck.0.weight", "heads.bnneck.weight", "heads.weight"} <= set(report["unused"])
    assert any("heads.bnneck.weight has shape (6,), this model's head (64,)" in n for n in report["notes"])


def test_mixing_weights_of_iics(tmp_path, capsys):
    """IICS writes a block's weight down again for each norm; the model gets its norms from the file."""
    shapes = shapes_of(norm="aibn")
    variables = random_variables(shapes)
    entries = renamed(variables, **REPOSITORIES["IICS"][1])
    blocks = [k.removesuffix(".adaptive_weight") for k in entries if k.endswith(".adaptive_weight")]
    copies = {
        f"{b}.{norm}.adaptive_weight": entries[f"{b}.adaptive_weight"]
        for b in blocks
        for norm in ("bn1", "bn2")
    }
    assert len(blocks) == 2
    report, _ = converted(tmp_path, capsys, entries | copies)
    assert report["layout"] == "iics" and not report["missing"] + report["unused"]
    assert set(copies) <= set(report["ignored"])
    assert any("4 copies of the blocks' mixing weights" in n for n in report["notes"])
    other = entries | {k: v + 1 for k, v in copies.items()}  # not the same: said as unused
    _, report = weights.load(other, zeros(shapes))
    assert report["unused"] == sorted(copies)


def test_entries_of_the_same_name_inside_and_outside():
    with pytest.raises(WeightsError, match="conv1.weight twice"):
        weights.recognise({"module.conv1.weight": np.zeros(1), "conv1.module.weight": np.zeros(1)})
    entries = {
        "net.layer1.0.conv1.weight": np.ones(1),
        "net.conv1.weight": np.ones(1),
        "conv1.weight": np.zeros(1),
    }
    file = weights.recognise(entries)
    assert file.entries["base.conv1.weight"] == 1 and file.entries["conv1.weight"] == 0
    assert sorted([*file.origin.values(), *file.beside]) == sorted(entries)
