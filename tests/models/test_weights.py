"""Weight files and key layouts: exact round trips, nothing dropped unsaid, nothing in a file ever runs."""

import json
import pathlib
import struct
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torchfile import Raw, View, code, write_legacy, write_zip

from reid_jax.config import defaults, namespace
from reid_jax.errors import WeightsError
from reid_jax.models import heads, weights

CASES = pathlib.Path(__file__).parents[1] / "cases"
TORCH = ("torchvision", "imagenet", "mmt", "fastreid", "ap3d")


def shapes_of(backbone="narrow", classes=5, neck="ap3d", clip=(), **fields):
    small = dict(narrow_widths=(4, 8), narrow_stripes=2, narrow_dim=6) | fields
    model = namespace(defaults()["model"] | small | dict(backbone=backbone, neck=neck))
    image = jax.ShapeDtypeStruct((1, *clip, 64, 32, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(heads.build(model, classes)).init, jax.random.key(0), image)


def random_variables(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def zeros(shapes, dtype=np.float32):
    return jax.tree.map(lambda s: np.zeros(s.shape, dtype), shapes)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- layouts


@pytest.mark.parametrize(
    "layout,path,key",
    [
        ("torchvision", "base/conv1/kernel", "conv1.weight"),
        ("torchvision", "base/layer2_3/downsample_1/scale", "layer2.3.downsample.1.weight"),
        ("torchvision", "base/layer1_0/bn1/IN/scale", "layer1.0.bn1.IN.weight"),
        ("torchvision", "base/layer1_0/bn1/BN/mean", "layer1.0.bn1.BN.running_mean"),
        ("torchvision", "base/conv1_3/kernel", "conv1.3.weight"),
        ("torchvision", "base/layer1_0/conv2/fc1/bias", "layer1.0.conv2.fc1.bias"),
        ("imagenet", "classifier/kernel", "fc.weight"),
        ("mmt", "base/conv1/kernel", "base.0.weight"),
        ("mmt", "base/bn1/var", "base.1.running_var"),
        ("mmt", "base/layer4_2/bn3/bias", "base.6.2.bn3.bias"),
        ("mmt", "neck/scale", "feat_bn.weight"),
        ("mmt", "feat/kernel", "feat.weight"),
        ("fastreid", "base/layer1_0/conv1/kernel", "backbone.layer1.0.conv1.weight"),
        ("fastreid", "neck/mean", "heads.bottleneck.0.running_mean"),
        ("fastreid", "classifier/kernel", "heads.weight"),
        ("ap3d", "neck/scale", "bn.weight"),
        ("ap3d", "base/layer2_2/W_1/var", "layer2.2.W.1.running_var"),
        (
            "ap3d",
            "base/layer2_0/conv2/APM/contrastive_att_net_0/kernel",
            "layer2.0.conv2.APM.contrastive_att_net.0.weight",
        ),
        ("direid", "base/layer4_0/conv2/kernel", "E_id.model.layer4.0.conv2.weight"),
        ("reid_jax", "base/conv1/kernel", "params.base.conv1.kernel"),
    ],
)
def test_key(layout, path, key):
    assert weights.torch_key(tuple(path.split("/")), layout) == key


LEAVES = {  # of every sort that nets have
    *("base/conv1/kernel", "base/bn1/scale", "base/layer1_0/bn1/mean", "base/layer1_0/bn1/bat_n/mean"),
    *(
        "base/layer1_0/adaptive_weight",
        "base/conv9/adaptive_weight",
        "base/conv2_0/adaptive_weight",
        "base/conv2_0/bn1/bat_n/gate",
    ),
    *("base/NL_2_0/W_1/mean", "base/conv9/conv/kernel", "base/blocks_0/attn/qkv/kernel", "base/cls_token"),
    *("base/layer1_0/bn1/IN/scale", "base/layer1_0/bn1/BN/mean", "base/layer1_0/conv2/conv_0/kernel"),
    *("base/conv2_0/downsample/bn/bias", "base/conv4_1/gate/fc2/kernel", "base/conv4_0/IN/scale"),
    *("base/conv0/kernel", "base/stem/bn/var", "classifier/kernel", "classifier_1/bias", "neck/scale"),
    *("classifier/add_block_0/kernel", "reduce_0/conv/kernel", "part_1/bn/mean", "pool/p"),
}


@pytest.mark.parametrize("layout", [n for n in weights.names.layouts() if n != "reid_jax"])
def test_any_file_is_asked_for_any_leaf(layout):
    """A file of another net is told by the keys that match: no leaf may have none, or end in an error."""
    for path in sorted(LEAVES):
        keys = weights.names.keys(("params", *path.split("/")), layout)
        assert keys and all(isinstance(key, str) and key for key in keys), path


@pytest.mark.parametrize(
    "case,backbone,layout,clip",
    [
        ("efl__resnet50_mmt", "resnet50", "mmt", ()),
        ("efl__resnest50", "resnest50", "imagenet", ()),
        ("efl__ap3dnl_resnet50", "ap3dnl_resnet50", "ap3d", (2,)),
    ],
)
def test_keys_and_shapes_are_the_references(case, backbone, layout, clip):
    """All of a state dictionary that the reference wrote has its place, and nothing else is written."""
    recorded = np.load(CASES / f"{case}.npz")
    want = {n[6:]: tuple(recorded[n]) for n in recorded.files if n.startswith("shape/")}
    classes = next(s[0] for k, s in want.items() if k in ("classifier.weight", "fc.weight"))
    neck = "none" if layout == "imagenet" else "ap3d" if layout == "ap3d" else "bnneck"
    tree = zeros(shapes_of(backbone, classes, neck, clip), np.int8)
    got = {k: v.shape for k, v in weights.to_torch(tree, layout, counters=True).items()}
    for table in (got, want):  # recorded without the counters
        for key in [k for k in table if k.endswith("num_batches_tracked")]:
            del table[key]
    assert got == want
    assert weights.guess(dict.fromkeys(want)) == ("torchvision" if layout == "imagenet" else layout)


@pytest.mark.parametrize("neck", ["ap3d", "bnneck", "none"])
@pytest.mark.parametrize("layout", [*TORCH, "reid_jax"])
def test_round_trip_from_here(layout, neck):
    shapes = shapes_of(neck=neck)
    variables = random_variables(shapes)
    entries = weights.to_torch(variables, layout, counters=True)
    back, report = weights.load(
        {f"module._orig_mod.{k}": v for k, v in entries.items()}, zeros(shapes), layout
    )
    assert_same(back, variables)
    assert not report["unused"] + report["missing"] + report["cast"] + report["inflated"]
    norms = sum(k.endswith("running_mean") for k in entries)
    assert len(report["ignored"]) == norms and (norms > 3 or layout == "reid_jax")


@pytest.mark.parametrize("layout", TORCH)
def test_round_trip_from_there(layout):
    """State dictionary -> variables -> the same bits, and every axis in its place."""
    shapes = shapes_of()
    rng = np.random.default_rng(1)
    entries = {
        k: rng.standard_normal(v.shape).astype(v.dtype)
        for k, v in weights.to_torch(zeros(shapes), layout).items()
    }
    variables = weights.load(entries, zeros(shapes), layout)[0]
    back = weights.to_torch(variables, layout)
    assert back.keys() == entries.keys()
    for key, value in entries.items():
        assert value.tobytes() == back[key].tobytes() and value.shape == back[key].shape
    kernel = variables["params"]["base"]["conv1"]["kernel"]
    there = entries[weights.torch_key(("base", "conv1", "kernel"), layout)].reshape(4, 3, 5, 5)
    for o, i, h, w in ((0, 1, 2, 3), (3, 2, 4, 0)):
        assert kernel[h, w, i, o] == there[o, i, h, w]
    linear = entries[weights.torch_key(("classifier", "kernel"), layout)]
    assert variables["params"]["classifier"]["kernel"][5, 2] == linear[2, 5]


@pytest.mark.parametrize(
    "keys,layout",
    [
        (["conv1.weight", "fc.weight"], "torchvision"),
        (["conv1.0.weight", "layer1.0.conv2.fc1.bias"], "torchvision"),
        (["base.0.weight", "feat_bn.weight"], "mmt"),
        (["pixel_mean", "backbone.conv1.weight", "heads.weight"], "fastreid"),
        (["conv1.weight", "bn1.weight", "bn.weight"], "ap3d"),
        (["base.0.weight", "base.1.bias", "base.4.0.conv1.weight", "base.7.0.conv1.weight"], "spcl"),
        (["base.0.weight", "base.3.0.conv1.weight", "base.6.0.conv1.weight", "gap.p"], "mmt"),
        (["base.conv1.weight", "bottleneck.weight"], "strong_baseline"),
        (["backbone.conv1.weight", "head.feat_bn.weight"], "openunreid"),
        (["backbone.conv1.weight", "heads.bnneck.weight"], "fastreid_old"),
        (["model.conv1.weight", "classifier.0.weight"], "iics"),
        (["E_con.model.conv1.weight", "G.dec.res.0.weight"], "direid"),
        (["model.layer1.0.conv1.weight"], "direid"),
        (["params.base.conv1.kernel"], "reid_jax"),
    ],
)
def test_guess(keys, layout):
    assert weights.guess(dict.fromkeys(keys)) == layout


def test_fastreid_of_older_versions():
    shapes = shapes_of(neck="bnneck")
    variables = random_variables(shapes)
    entries = weights.to_torch(variables, "fastreid")
    entries["heads.classifier.weight"] = entries.pop("heads.weight")
    entries["pixel_mean"] = np.zeros((1, 3, 1, 1), np.float32)
    back, report = weights.load(entries, zeros(shapes))
    assert_same(back, variables)
    assert report["layout"] == "fastreid" and report["unused"] == ["pixel_mean"] and not report["missing"]


@pytest.mark.parametrize("own_stem", [True, False])
def test_direid_takes_the_identity_encoder_and_the_stem_it_has(own_stem):
    """Both encoders have a stem in the paper's form, E_id's counts; the journal's E_id has only its top."""
    shapes = shapes_of(neck="none", pool="avg")
    ours, other = random_variables(shapes), random_variables(shapes, 1)
    sensitive, stem = (
        {k: v for k, v in weights.to_torch(v).items() if "classifier" not in k} for v in (ours, other)
    )
    top = {k: v for k, v in sensitive.items() if own_stem or k.startswith("layer1")}
    entries = {f"E_id.model.{k}": v for k, v in top.items()}
    entries |= {f"E_con.model.{k}": v for k, v in stem.items() if not k.startswith("layer1")}
    entries |= {"G.dec.weight": np.zeros(3), "E_id.classifier.classifier.0.weight": np.zeros((2, 3))}
    back, report = weights.load(entries, zeros(shapes))
    want = ours if own_stem else other
    assert_same(back["params"]["base"]["conv1"], want["params"]["base"]["conv1"])
    assert_same(back["params"]["base"]["layer1_0"], ours["params"]["base"]["layer1_0"])
    assert {"G.dec.weight", "E_id.classifier.classifier.0.weight"} <= set(report["unused"])
    assert ("E_con.model.conv1.weight" in report["unused"]) == own_stem
    assert sorted(report["missing"]) == ["classifier.bias", "classifier.weight"]


# ---- what does not fit


def test_classifiers_of_other_tasks():
    shapes = shapes_of()
    fresh = random_variables(shapes, 2)
    entries = weights.to_torch(random_variables(shapes))
    entries |= {"classifier.weight": np.zeros((9, 6)), "classifier.bias": np.zeros(9)}
    entries |= {"fc.weight": np.zeros((5, 6)), "fc.bias": np.zeros(5)}  # fits, but is another task's
    filled, report = weights.load(entries, fresh)
    assert report["unused"] == ["classifier.bias", "classifier.weight", "fc.bias", "fc.weight"]
    assert sorted(report["missing"]) == ["classifier.bias", "classifier.weight"]
    assert_same(filled["params"]["classifier"], fresh["params"]["classifier"])
    assert any("another number of classes" in n for n in report["notes"])
    assert any("ImageNet" in n for n in report["notes"])


def test_every_entry_and_leaf_is_accounted_for():
    shapes = shapes_of()
    entries = weights.to_torch(random_variables(shapes), counters=True)
    entries |= {"extra.weight": np.zeros(3)}
    del entries["neck.bias"], entries["layer1.0.conv1.weight"]
    _, report = weights.load(entries, zeros(shapes))
    assert sorted(report["used"] + report["unused"] + report["ignored"]) == sorted(entries)
    assert len(report["used"]) + len(report["missing"]) == len(jax.tree.leaves(shapes))
    assert report["unused"] == ["extra.weight"]
    assert sorted(report["missing"]) == ["layer1.0.conv1.weight", "neck.bias"]
    assert report["mapping"]["conv1.weight"] == "params.base.conv1.kernel"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_casts_are_said(dtype):
    shapes = shapes_of()
    entries = weights.to_torch(random_variables(shapes))
    entries["conv1.weight"] = entries["conv1.weight"].astype(dtype)
    filled, report = weights.load(entries, zeros(shapes))
    kernel = filled["params"]["base"]["conv1"]["kernel"]
    assert kernel.dtype == jnp.float32
    want = entries["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, want)
    assert report["cast"] == [f"conv1.weight: {np.dtype(dtype)} -> float32"]


def test_errors_of_mapping():
    shapes = shapes_of()
    entries = weights.to_torch(random_variables(shapes))
    with pytest.raises(WeightsError, match=r"conv1.weight has shape \(1, 2\).*\(4, 3, 5, 5\)"):
        weights.load(entries | {"conv1.weight": np.zeros((1, 2))}, zeros(shapes))
    with pytest.raises(WeightsError, match="not known here: it has encoder.x.*--backbone"):
        weights.load({"encoder.x": np.zeros(3)}, zeros(shapes))
    with pytest.raises(WeightsError, match="conv1.weight twice"):
        weights.load(entries | {"module.conv1.weight": entries["conv1.weight"]}, zeros(shapes))
    with pytest.raises(WeightsError, match="type complex64"):
        weights.load(entries | {"neck.bias": np.zeros(6, np.complex64)}, zeros(shapes))
    del entries["neck.bias"]
    with pytest.raises(WeightsError, match="1 entries are missing: neck.bias"):
        weights.from_torch(entries, zeros(shapes))


# ---- clips


def clip_tree():
    """Stage 2 of an AP3D-NL net in small: B0 (AP3D), B1, non-local, B2 (AP3D), B3."""

    def plain():
        return {"conv1": {"kernel": np.zeros((1, 1, 3, 2))}, "conv2": {"kernel": np.zeros((3, 3, 2, 3))}}

    def ap3d():
        inside = {"spatial_conv3d": (3, 3, 2, 3), "temporal_conv3d": (3, 1, 1, 2, 3)}
        return plain() | {"conv2": {k: {"kernel": np.zeros(s)} for k, s in inside.items()}}

    attention = {"theta": {"kernel": np.zeros((1, 1, 3, 1)), "bias": np.zeros(1)}}
    blocks = (ap3d(), plain(), attention, ap3d(), plain())
    return {"params": {"base": {f"layer2_{i}": block for i, block in enumerate(blocks)}}}


def flat_file(layout="torchvision"):
    rng = np.random.default_rng(3)
    block = {"conv1": (1, 1, 3, 2), "conv2": (3, 3, 2, 3)}
    tree = {
        f"layer2_{i}": {k: {"kernel": rng.standard_normal(s)} for k, s in block.items()} for i in range(4)
    }
    return tree, weights.to_torch({"params": {"base": tree}}, layout)


@pytest.mark.parametrize("layout", ["torchvision", "mmt", "reid_jax"])
def test_flat_net_inflates_into_clips(layout):
    """A ResNet's third block is the clip net's fourth module, its 3x3 convolution the one over space."""
    flat, entries = flat_file(layout)
    filled, report = weights.load(entries, clip_tree(), inflate=True)
    base = filled["params"]["base"]
    for there, here in enumerate((0, 1, 3, 4)):
        want = flat[f"layer2_{there}"]
        np.testing.assert_array_equal(
            base[f"layer2_{here}"]["conv1"]["kernel"], np.float32(want["conv1"]["kernel"])
        )
        conv2 = base[f"layer2_{here}"]["conv2"]
        conv2 = conv2.get("spatial_conv3d", conv2)
        np.testing.assert_array_equal(conv2["kernel"], np.float32(want["conv2"]["kernel"]))
    assert len(report["used"]) == 8 and not report["unused"]
    assert (
        len(report["missing"]) == 4 and len(report["inflated"]) == 5
    )  # theta, temporal; blocks 2, 3 and conv2
    assert "2-D net" in report["notes"][0]
    with pytest.raises(WeightsError, match="2-D net.*inflation"):
        weights.load(entries, clip_tree())


def test_ap3d_file_without_non_local_blocks():
    """Only the places move: AP3D's own convolutions keep their names."""
    tree = clip_tree()["params"]["base"]
    blocks = [tree[f"layer2_{i}"] for i in (0, 1, 3, 4)]
    file = {"params": {"base": {f"layer2_{i}": b for i, b in enumerate(blocks)}}}
    entries = weights.to_torch(jax.tree.map(lambda x: x + 1, file), "ap3d")
    filled, report = weights.load(entries, clip_tree(), inflate=True)
    assert report["layout"] == "ap3d" and not report["unused"] and len(report["missing"]) == 2
    assert filled["params"]["base"]["layer2_3"]["conv2"]["temporal_conv3d"]["kernel"].min() == 1


def test_ap3d_round_trip_and_axes():
    tree = jax.tree.map(lambda x: np.random.default_rng(0).standard_normal(x.shape, np.float32), clip_tree())
    entries = weights.to_torch(tree, "ap3d")
    assert entries["layer2.0.conv2.temporal_conv3d.weight"].shape == (3, 2, 3, 1, 1)
    assert entries["layer2.0.conv2.spatial_conv3d.weight"].shape == (3, 2, 1, 3, 3)
    kernel = tree["params"]["base"]["layer2_0"]["conv2"]["temporal_conv3d"]["kernel"]
    assert entries["layer2.0.conv2.temporal_conv3d.weight"][2, 1, 0, 0, 0] == kernel[0, 0, 0, 1, 2]
    back, report = weights.load(entries, jax.tree.map(np.zeros_like, tree))
    assert report["layout"] == "ap3d" and not report["missing"] + report["unused"] + report["inflated"]
    assert_same(back, tree)


def test_clip_file_of_another_net_is_refused():
    entries = weights.to_torch(clip_tree(), "ap3d")
    flat, _ = flat_file()
    with pytest.raises(WeightsError, match="non-local blocks.*layer2.2.theta"):
        weights.load(entries, {"params": {"base": flat}}, inflate=True)


def test_kernel_in_the_middle_of_time():
    tree = {"params": {"base": {"conv1": {"kernel": np.ones((3, 2, 2, 1, 4), np.float32)}}}}
    entry = np.random.default_rng(0).standard_normal((4, 1, 2, 2)).astype(np.float32)
    filled, report = weights.load({"conv1.weight": entry}, tree, inflate=True)
    kernel = np.asarray(filled["params"]["base"]["conv1"]["kernel"])
    np.testing.assert_array_equal(kernel[1], entry.transpose(2, 3, 1, 0))
    assert not kernel[[0, 2]].any() and report["inflated"] == ["conv1.weight"]
    with pytest.raises(WeightsError, match="has shape"):
        weights.load({"conv1.weight": entry}, tree)


# ---- files


def some_entries():
    rng = np.random.default_rng(4)
    return {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.standard_normal(5),
        "half": rng.standard_normal(5).astype(np.float16),
        "brain": rng.standard_normal(5).astype(ml_dtypes.bfloat16),
        "steps": np.array(7, np.int64),
        "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "yes": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }


def write_big(path, value):
    write_zip(path, value, "big")


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_big])
def test_pytorch_files_are_read_exactly(tmp_path, write):
    entries = some_entries()
    write(tmp_path / "w.pth", entries)
    found = weights.read(tmp_path / "w.pth")
    assert found.entries.keys() == entries.keys() and found.skipped == 0
    for key, value in entries.items():
        got = found.entries[key]
        assert got.dtype == value.dtype and got.shape == value.shape and got.tobytes() == value.tobytes()
    assert any("big-endian" in n for n in found.notes) == (write is write_big)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_views_into_a_storage(tmp_path, write):
    flat = np.arange(24, dtype=np.float32)
    views = {"t": View(flat, 0, (6, 4), (1, 6)), "part": View(flat, 8, (2, 3), (6, 1))}
    write(tmp_path / "w.pth", views)
    found = weights.read(tmp_path / "w.pth").entries
    np.testing.assert_array_equal(found["t"], flat.reshape(4, 6).T)
    np.testing.assert_array_equal(found["part"], flat.reshape(4, 6)[1:3, 2:5])


def test_other_files(tmp_path):
    entries = some_entries()
    plain = {k: v for k, v in entries.items() if k != "brain"}
    np.savez_compressed(tmp_path / "w.npz", fortran=np.asfortranarray(plain["a.weight"]), **plain)
    found = weights.read(tmp_path / "w.npz").entries
    np.testing.assert_array_equal(found["fortran"], plain["a.weight"])
    for key, value in plain.items():
        np.testing.assert_array_equal(found[key], value)
    weights.save(tmp_path / "w.safetensors", plain, {"format": "pt"})
    found = weights.read(tmp_path / "w.safetensors")
    assert found.metadata == {"format": "pt"} and sorted(p.name for p in tmp_path.iterdir()) == [
        "w.npz",
        "w.safetensors",
    ]
    for key, value in plain.items():
        np.testing.assert_array_equal(found.entries[key], value)
        assert found.entries[key].dtype == value.dtype
    bits = entries["brain"].view(np.uint16)
    header = json.dumps({"x": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())
    assert weights.read(tmp_path / "b.safetensors").entries["x"].tobytes() == entries["brain"].tobytes()


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, {"x": np.ones(3, np.float32)}, {})
    with pytest.raises(TypeError):
        weights.save(path, {"x": np.ones(3, np.float32)}, {"bad": 3})
    assert safetensors.numpy.load_file(path)["x"].sum() == 3
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    with pytest.raises(WeightsError, match="cannot be written"):
        weights.save(tmp_path / "no" / "w.safetensors", {"x": np.ones(3, np.float32)}, {})


def test_network_in_a_checkpoint(tmp_path):
    net = {f"conv{i}.weight": np.full(2, i, np.float32) for i in range(3)}
    teacher = {k: v + 10 for k, v in net.items()}
    moments = {i: {"exp_avg": np.zeros(2, np.float32)} for i in range(9)}
    checkpoint = {
        "epoch": 3,
        "mean": np.ones(3, np.float32),
        "teacher": teacher,
        "state_dict": net | {"note": "text"},
        "optimizer": {"state": moments, "groups": [{"lr": 0.1, "on": True, "of": None}]},
    }
    write_zip(tmp_path / "c.pth", checkpoint)
    found = weights.read(tmp_path / "c.pth")
    np.testing.assert_array_equal(found.entries["conv2.weight"], net["conv2.weight"])
    assert found.entries.keys() == net.keys()
    assert found.skipped == 1 + 1 + 3 + 1 + 9 + 3  # epoch, mean, teacher, note, moments, group
    assert "'state_dict'" in found.notes[0] and "teacher (3)" in found.notes[1]
    found = weights.read(tmp_path / "c.pth", "teacher")
    assert found.entries["conv2.weight"][0] == 12
    assert weights.read(tmp_path / "c.pth", "optimizer.state.4").entries["exp_avg"].sum() == 0
    with pytest.raises(WeightsError, match="c.pth: has no part 'other'; it has .*'teacher'"):
        weights.read(tmp_path / "c.pth", "other")
    write_zip(tmp_path / "flat.pth", {f"teacher.{k}": v for k, v in teacher.items()} | net)
    assert weights.read(tmp_path / "flat.pth", "teacher").entries["conv2.weight"][0] == 12
    write_zip(tmp_path / "two.pth", {"E_con": net, "E_id": teacher})
    assert set(weights.read(tmp_path / "two.pth").entries) == {
        f"{e}.{k}" for e in ("E_con", "E_id") for k in net
    }


def test_harmless_objects_are_passed_over(tmp_path):
    """What checkpoints hold beside tensors: numpy scalars, a Namespace, a set, a parameter."""
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8tRC\x08" + bytes(8) + b"tR"
    namespace_ = b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb"
    values = []
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + code(np.ones(2, np.float32), values) + b"\x88}tR"
    checkpoint = {"best": Raw(scalar), "args": Raw(namespace_), "state_dict": {"p": np.ones(2, np.float32)}}
    write_zip(tmp_path / "c.pth", checkpoint)
    found = weights.read(tmp_path / "c.pth")
    assert list(found.entries) == ["p"] and found.skipped == 2
    body = b"\x80\x02}X\x01\x00\x00\x00w" + parameter + b"s."
    with zipfile.ZipFile(tmp_path / "p.pth", "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/data/0", values[0].tobytes())
    assert weights.read(tmp_path / "p.pth").entries["w"].tolist() == [1, 1]


def test_checkpoints_of_lightning(tmp_path):
    """Its settings are classes of its own, some of them keys; the network is under `state_dict`."""
    settings = b"cpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81}X\x02\x00\x00\x00lrK\x01sb"
    callbacks = b"}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}X\x01\x00\x00\x00aK\x01ss"
    omega = b"comegaconf.dictconfig\nDictConfig\n)\x81}b"
    moments = [{"state": {i: {"exp_avg": np.zeros(2, np.float32)} for i in range(20)}}]
    net = {f"model.conv{i}.weight": np.full(2, i, np.float32) for i in range(3)}
    checkpoint = {"state_dict": net, "hyper_parameters": Raw(settings), "callbacks": Raw(callbacks)}
    checkpoint |= {"optimizer_states": moments, "cfg": Raw(omega), "epoch": 3}
    write_zip(tmp_path / "c.ckpt", checkpoint)
    found = weights.read(tmp_path / "c.ckpt")
    assert found.entries.keys() == net.keys()
    assert "optimizer_states.0.state.0 (1)" in found.notes[1] and "and 8 more" in found.notes[1]


# ---- hostile files


def in_zip(path, body):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)


def attacks(marker):
    """{name in the message: pickle that would create the marker file if it ran}."""
    command = f"touch {marker}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    quoted = b"S'" + command + b"'\n"
    python = f"open({str(marker)!r}, 'w')".encode()
    source = b"X" + struct.pack("<I", len(python)) + python
    return {
        "os.system": b"\x80\x02cos\nsystem\n" + text + b"\x85R.",
        "builtins.eval": b"\x80\x02c__builtin__\neval\n" + source + b"\x85R.",
        "builtins.exec": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + source + b"\x85R.",
        "posix.system": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        "nt.system": b"(" + quoted + b"int\nsystem\n.",  # INST
        "subprocess.call": b"\x80\x02(csubprocess\ncall\n" + text + b"o.",  # OBJ
        "subprocess.Popen": b"\x80\x02csubprocess\nPopen\n" + text + b"\x85\x81.",  # NEWOBJ
        "builtins.getattr": b"\x80\x02cbuiltins\ngetattr\n(ctorch\nfloat32\nX\x08\x00\x00\x00__init__tR.",
        "torch.load": b"\x80\x02ctorch\nload\n" + text + b"\x85R.",
        "torch.storage._load_from_bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + text + b"\x85R.",
        "torch.hub.load": b"\x80\x02ctorch.hub\nload\n" + text + b"\x85R.",
        # BUILD with a __setstate__ of the file's own
        "shutil.rmtree": b"\x80\x02ccollections\nOrderedDict\n)R"
        b"X\x0c\x00\x00\x00__setstate__cshutil\nrmtree\nsb.",
        # a dotted name under an allowed module
        "collections.OrderedDict.__init__.__globals__": b"\x80\x04\x8c\x0bcollections"
        b"\x8c\x24OrderedDict.__init__.__globals__.sys\x93.",
        "EXT1": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("form", ["zip", "bare", "legacy"])
def test_nothing_in_a_file_runs(tmp_path, form):
    marker = tmp_path / "marker"
    for i, (name, body) in enumerate(attacks(marker).items()):
        path = tmp_path / f"attack{i}.pth"
        if form == "zip":
            in_zip(path, body)
        elif form == "bare":
            path.write_bytes(body)
        else:
            write_legacy(path, {"x": Raw(body.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04")[:-1])})
        with pytest.raises(WeightsError) as caught:
            weights.read(path)
        assert name in str(caught.value) and path.name in str(caught.value)
        assert not marker.exists()


def test_own_setstate_is_not_called(tmp_path):
    """BUILD that gives a dictionary a __setstate__, and BUILD again, which would call it: neither happens."""
    setstate = b"(X\x0c\x00\x00\x00__setstate__c__builtin__\nlist\ndb"
    in_zip(tmp_path / "a.pth", b"\x80\x02ccollections\nOrderedDict\n)R" + setstate + b"N\x85b.")
    with pytest.raises(WeightsError, match="no dictionary of tensors"):
        weights.read(tmp_path / "a.pth")


def tensor_body(offset, shape, strides, numel=4):
    flat = np.zeros(numel, np.float32)
    return b"\x80\x02}X\x01\x00\x00\x00w" + code(View(flat, offset, shape, strides), []) + b"s."


@pytest.mark.parametrize(
    "offset,shape,strides",
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (10**12,), (0,)),
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (4,), (1, 1)),
    ],
)
def test_tensors_stay_in_their_storage(tmp_path, offset, shape, strides):
    in_zip(tmp_path / "w.pth", tensor_body(offset, shape, strides))
    with pytest.raises(WeightsError, match="w.pth: holds a tensor of shape"):
        weights.read(tmp_path / "w.pth")


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "w.pth"
    in_zip(path, tensor_body(0, (10**9,), (1,), 4).replace(b"J\x04\x00\x00\x00tQ", b"J\x00\xca\x9a\x3btQ"))
    with pytest.raises(WeightsError, match="w.pth"):
        weights.read(path)  # 4 GB claimed, no storage in the file
    write_zip(path, {"w": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="more than its own size|compressed"):
        weights.read(path)
    in_zip(path, b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.")
    with pytest.raises(WeightsError, match="w.pth: cut off"):
        weights.read(path)
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.")
    with pytest.raises(WeightsError, match="w.pth: cut off"):
        weights.read(path)
    head = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", head + struct.pack("<H", len(text)) + text)
    with pytest.raises(WeightsError, match="w.npz: w.npy claims shape"):
        weights.read(tmp_path / "w.npz")
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w") as f,
    ):
        for _ in range(300):
            f.write(bytes(2**20))
    with pytest.raises(WeightsError, match="far more than its size"):
        weights.read(tmp_path / "bomb.npz")
    np.savez(tmp_path / "o.npz", x=np.array([{}], object))
    with pytest.raises(WeightsError, match="o.npz.*plain arrays"):
        weights.read(tmp_path / "o.npz")


def test_deep_cyclic_and_exploding_pickles(tmp_path):
    tensor = code(np.ones(1, np.float32), [])
    item = b"X\x01\x00\x00\x00w" + tensor + b"s"
    deep = b"\x80\x02}" + item + b"X\x01\x00\x00\x00d" + b"]" * 20000 + b"a" * 19999 + b"s."
    deep_dicts = b"\x80\x02" + b"}X\x01\x00\x00\x00d" * 20000 + b"N" + b"s" * 20000 + b"."
    cyclic = b"\x80\x02}q\x00" + item + b"X\x01\x00\x00\x00dh\x00s."
    # a tuple of 2^60 entries by reference, used as a key: hashing it would take for ever
    doubled = b"".join(b"h" + bytes([i, 104, i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60))
    exploding = b"\x80\x02}" + item + b")q\x000" + doubled + b"h\x3cNs."
    for name, body in {"deep": deep, "cyclic": cyclic, "exploding": exploding}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.pth", "w") as archive:
            archive.writestr("archive/data.pkl", body)
            archive.writestr("archive/data/0", np.ones(1, np.float32).tobytes())
        assert weights.read(tmp_path / f"{name}.pth").entries["w"].tolist() == [1], name
    in_zip(tmp_path / "dicts.pth", deep_dicts)
    with pytest.raises(WeightsError, match="no dictionary of tensors"):
        weights.read(tmp_path / "dicts.pth")


@pytest.mark.parametrize("name", ["z.pth", "l.pth", "w.npz", "w.safetensors"])
def test_damaged_files_raise_weights_errors(tmp_path, name):
    """Random cuts and flipped bits: read as something, or WeightsError that names the file."""
    entries = {k: v for k, v in some_entries().items() if k != "brain"}
    path = tmp_path / name
    if name == "w.npz":
        np.savez(path, **entries)
    elif name == "w.safetensors":
        weights.save(path, entries, {})
    else:
        (write_zip if name == "z.pth" else write_legacy)(path, {"state_dict": entries, "epoch": 1})
    data, rng, failed = path.read_bytes(), np.random.default_rng(5), 0
    for i in range(100):
        broken = bytearray(data)
        if i % 2:
            del broken[rng.integers(len(data)) :]
        else:
            for at in rng.integers(len(data), size=3):
                broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            weights.read(path)
        except WeightsError as error:
            failed += 1
            assert name in str(error)
    assert failed >= 50


def test_files_that_are_none(tmp_path):
    for name, data in {
        "a.pth": b"hello",
        "b.npz": b"no archive",
        "c.safetensors": b"x" * 20,
        "d.pt": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=name):
            weights.read(tmp_path / name)
    with pytest.raises(WeightsError, match="none.pth"):
        weights.read(tmp_path / "none.pth")
    with zipfile.ZipFile(tmp_path / "e.pth", "w") as archive:
        archive.writestr("x.txt", "")
    with pytest.raises(WeightsError, match="e.pth.*not of PyTorch"):
        weights.read(tmp_path / "e.pth")
    with pytest.raises(WeightsError, match="b.npz"):
        weights.load_file(tmp_path / "b.npz", {})


# ---- PyTorch itself


def test_against_pytorch(tmp_path):
    """Files that PyTorch wrote, and a strict load of what is written for it."""
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    entries = {
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "transposed": base.t(),
        "part": base[1:, 2:5],
        "brain": torch.randn(5).bfloat16(),
        "half": torch.randn(5).half(),
        "double": torch.randn(5).double(),
        "flag": torch.tensor([True, False]),
        "step": torch.tensor(3),
    }
    for new in (True, False):
        torch.save({"model": entries, "epoch": 1}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        found = weights.read(tmp_path / "w.pth").entries
        for key, value in entries.items():
            np.testing.assert_array_equal(found[key].astype(np.float64), value.detach().double().numpy())
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(WeightsError, match="torch.nn.modules.linear.Linear"):
        weights.read(tmp_path / "m.pth")

    net = torch.nn.Module()
    net.conv1, net.bn1 = torch.nn.Conv2d(3, 4, 5, bias=False), torch.nn.BatchNorm2d(4)
    net.classifier = torch.nn.Linear(4, 7)
    state = net.state_dict()
    ours = {
        "params": {
            "base": {
                "conv1": {"kernel": np.zeros((5, 5, 3, 4))},
                "bn1": {"scale": np.zeros(4), "bias": np.zeros(4)},
            },
            "classifier": {"kernel": np.zeros((4, 7)), "bias": np.zeros(7)},
        },
        "batch_stats": {"base": {"bn1": {"mean": np.zeros(4), "var": np.zeros(4)}}},
    }
    ours = jax.tree.map(np.float32, ours)
    filled = weights.load({k: v.numpy() for k, v in state.items()}, ours)[0]
    weights.save(tmp_path / "w.safetensors", weights.to_torch(filled, counters=True), {"format": "pt"})
    read = {k: torch.tensor(v) for k, v in safetensors.numpy.load_file(tmp_path / "w.safetensors").items()}
    net.load_state_dict(read, strict=True)
    assert all(torch.equal(v, state[k]) for k, v in read.items())
