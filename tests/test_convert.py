"""The command `python -m reid_jax.convert`: reports, files out, runs in, errors."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from small import small
from torchfile import write_legacy, write_zip

from reid_jax.commands import convert
from reid_jax.config import defaults, namespace
from reid_jax.errors import WeightsError
from reid_jax.methods import State
from reid_jax.models import heads, weights
from reid_jax.train import checkpoint

BACKBONE = "--backbone=narrow"


def variables(seed=0, classes=5, neck="bnneck", **fields):
    """Random variables of the command's narrow net."""
    model = namespace(defaults()["model"] | dict(backbone="narrow", neck=neck) | fields)
    image = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    shapes = jax.eval_shape(heads.encoder(heads.build(model, classes)).init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key], key)


def run(capsys, *argv):
    assert convert.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("layout", ["torchvision", "imagenet", "mmt", "fastreid", "ap3d"])
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_there_and_back(tmp_path, capsys, layout, write):
    """A checkpoint -> our file -> its layout again: the same keys, shapes and bits."""
    neck = "none" if layout == "imagenet" else "bnneck"
    entries = weights.to_torch(variables(neck=neck), layout, counters=True)
    write(tmp_path / "in.pth", {"state_dict": {f"module.{k}": v for k, v in entries.items()}, "epoch": 3})
    source = [f"--from={layout}"] if layout == "imagenet" else []
    text = run(capsys, tmp_path / "in.pth", tmp_path / "ours.safetensors", BACKBONE, *source)
    assert "took 'state_dict'" in text and "unused    0" in text and "missing   0" in text
    ours = weights.read(tmp_path / "ours.safetensors")
    assert_same(ours.entries, weights.to_torch(variables(neck=neck), "reid_jax"))
    assert (
        ours.metadata["format"] == "reid_jax" and json.loads(ours.metadata["model"])["backbone"] == "narrow"
    )
    run(
        capsys, tmp_path / "ours.safetensors", tmp_path / "back.safetensors", f"--to={layout}"
    )  # says its own net
    back = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in entries.items()}
    assert_same(back, entries)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.safetensors", "in.pth", "ours.safetensors"]


OSNET = dict(head="fc", osnet_widths=(4, 8, 8, 8), osnet_streams=1)
HACNN = dict(backbone="hacnn", head="pair", hacnn_widths=(2, 16, 16, 16), hacnn_dim=4)
MOBILE = dict(backbone="mobilenet_v2", mobilenet_width=0.25, last_stride=2, neck="ap3d")


@pytest.mark.parametrize(
    "layout, fields",
    [
        ("osnet", OSNET | dict(backbone="osnet_ibn")),
        pytest.param("osnet_ain", OSNET | dict(backbone="osnet_ain"), marks=pytest.mark.slow),
        pytest.param("hacnn", HACNN, marks=pytest.mark.slow),
        pytest.param("mobilenetv2_fastreid", MOBILE, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", MOBILE, marks=pytest.mark.slow),
    ],
)
def test_files_that_say_their_own_net(tmp_path, capsys, layout, fields):
    """Backbone, head and sizes follow from the keys: there and back without a flag but --to."""
    model = namespace(defaults()["model"] | fields)
    image = jax.ShapeDtypeStruct((1, *heads.image_size(model), 3), jnp.float32)
    shapes = jax.eval_shape(heads.encoder(heads.build(model, 5)).init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    net = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    entries = weights.to_torch(net, layout, counters=True)
    write_zip(tmp_path / "in.pth", {"state_dict": {f"module.{k}": v for k, v in entries.items()}})
    text = run(capsys, tmp_path / "in.pth", tmp_path / "ours.safetensors")
    assert f"layout    {layout}" in text and "unused    0" in text and "missing   0" in text
    assert_same(weights.read(tmp_path / "ours.safetensors").entries, weights.to_torch(net, "reid_jax"))
    run(capsys, tmp_path / "ours.safetensors", tmp_path / "back.safetensors", f"--to={layout}")
    back = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in entries.items()}
    assert_same(back, entries)


def test_report(tmp_path, capsys):
    entries = weights.to_torch(variables())
    entries["conv1.weight"] = entries["conv1.weight"].astype(np.float64)
    entries |= {f"other.{i}": np.ones(2, np.float32) for i in range(20)}
    del entries["neck.bias"]
    np.savez(tmp_path / "w.npz", **entries)
    report = json.loads(run(capsys, tmp_path / "w.npz", BACKBONE, "--json", "--report", tmp_path / "r.json"))
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["unused"] == sorted(f"other.{i}" for i in range(20))
    assert report["missing"] == ["neck.bias"] and report["cast"] == ["conv1.weight: float64 -> float32"]
    assert report["tensors"] == len(entries) and report["dtypes"]["float64"] == 1
    assert report["numbers"] == sum(v.size for v in entries.values())
    assert len(report["used"]) == len(entries) - 20 and report["neck"] == "bnneck"
    text = run(capsys, tmp_path / "w.npz", BACKBONE)
    assert "other.9" not in text and "and 12 more" in text and "missing   1: neck.bias" in text
    assert "other.9" in run(capsys, tmp_path / "w.npz", BACKBONE, "--all")
    assert list(tmp_path.glob("*.safetensors")) == []


def test_partial_files_for_pytorch_are_said(tmp_path, capsys):
    entries = {k: v for k, v in weights.to_torch(variables(neck="ap3d")).items() if k != "neck.bias"}
    np.savez(tmp_path / "w.npz", **entries)
    text = run(capsys, tmp_path / "w.npz", tmp_path / "w.safetensors", BACKBONE, "--to=fastreid")
    assert "strict=False" in text and "fast-reid's own head has no heads.bias" in text
    assert "heads.bottleneck.0.bias" not in safetensors.numpy.load_file(tmp_path / "w.safetensors")


def test_another_class_count_leaves_the_classifier_out(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", **weights.to_torch(variables()))
    report = json.loads(run(capsys, tmp_path / "w.npz", BACKBONE, "--classes=9", "--json"))
    assert report["unused"] == report["missing"] == ["classifier.weight"]
    assert any("another number of classes" in n for n in report["notes"])


def test_a_part_of_a_checkpoint(tmp_path, capsys):
    student, teacher = variables(0), variables(1)
    parts = {"student": weights.to_torch(student), "teacher": weights.to_torch(teacher)}
    write_zip(tmp_path / "w.pth", parts)
    text = run(capsys, tmp_path / "w.pth", tmp_path / "s.safetensors", BACKBONE)
    assert "took 'student'" in text and "teacher (" in text
    run(capsys, tmp_path / "w.pth", tmp_path / "t.safetensors", BACKBONE, "--key=teacher")
    for name, tree in (("s", student), ("t", teacher)):
        assert_same(
            weights.read(tmp_path / f"{name}.safetensors").entries, weights.to_torch(tree, "reid_jax")
        )


def test_flat_net_into_clip_net(tmp_path, capsys):
    """--inflate moves the blocks of a ResNet-50 past AP3D-NL's non-local ones (one block of the net here)."""
    block = {"conv1.weight": np.ones((128, 512, 1, 1)), "conv2.weight": np.full((128, 128, 3, 3), 2.0)}
    entries = {f"layer2.2.{k}": v.astype(np.float32) for k, v in block.items()}
    np.savez(tmp_path / "w.npz", **entries)
    command = (tmp_path / "w.npz", tmp_path / "w.safetensors", "--backbone=ap3dnl_resnet50")
    with pytest.raises(WeightsError, match="w.npz.*2-D net.*inflation"):
        convert.main([str(a) for a in command])
    assert "inflated  2" in run(capsys, *command, "--inflate")
    got = weights.read(tmp_path / "w.safetensors").entries
    assert {k: v.shape for k, v in got.items()} == {
        "params.base.layer2_3.conv1.kernel": (1, 1, 512, 128),
        "params.base.layer2_3.conv2.spatial_conv3d.kernel": (3, 3, 128, 128),
    }


def test_mmt_embedding_follows_from_the_file(tmp_path, capsys):
    entries = weights.to_torch(variables(), "mmt")
    embedding = {"feat.weight": np.ones((7, 128), np.float32), "feat.bias": np.ones(7, np.float32)}
    head = {
        k: np.ones((5, 7) if k == "classifier.weight" else 7, np.float32) for k in entries if "base" not in k
    }
    np.savez(tmp_path / "w.npz", **entries | embedding | head)
    run(capsys, tmp_path / "w.npz", tmp_path / "w.safetensors", BACKBONE, "--to=mmt")
    got = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    counters = {k: v for k, v in got.items() if k.endswith("num_batches_tracked")}
    assert_same(got, entries | embedding | head | counters)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, teacher's variables) of a run with two networks."""
    workdir = tmp_path_factory.mktemp("run")
    fields = dict(narrow_widths=(4, 8), narrow_stripes=1, narrow_dim=8)
    nets = {name: variables(i, 6, "ap3d", **fields) for i, name in enumerate(("phi1", "m1"))}
    c = checkpoint.Checkpoints(workdir, "train")
    c.save(3, State(np.int32(3), nets, {}), {"step": 3}, wait=True)
    c.close()
    config = small()
    tree = {"model": vars(config.model) | fields}
    checkpoint.write_json(workdir / "config.json", tree)
    checkpoint.write_json(workdir / "titles.json", {"nets": {"train": ["mean", "m1", "phi1"]}})
    return workdir, nets


def test_trained_network_to_pytorch_and_back(finished, tmp_path, capsys):
    workdir, nets = finished
    text = run(capsys, workdir, tmp_path / "m1.safetensors", "--to=mmt")
    assert "network 'm1'; the run also has phi1" in text
    got = safetensors.numpy.load_file(tmp_path / "m1.safetensors")
    assert_same(got, weights.to_torch(nets["m1"], "mmt", counters=True))
    assert got["classifier.weight"].shape == (6, 8) and "base.3.0.conv1.weight" in got
    run(capsys, workdir, tmp_path / "phi1.safetensors", "--net=phi1")
    assert_same(
        weights.read(tmp_path / "phi1.safetensors").entries, weights.to_torch(nets["phi1"], "reid_jax")
    )
    with pytest.raises(WeightsError, match="no network 'm9'; --net may be m1, phi1"):
        convert.main([str(workdir), "--net=m9"])


def test_which_network_of_an_older_run(finished, tmp_path, capsys):
    """Without titles.json the network that stands for the run in eval/final.json; without that you choose."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "titles.json").write_text("{ broken")
    with pytest.raises(WeightsError, match="several networks; choose with --net: m1, phi1"):
        convert.main([str(workdir)])
    (workdir / "eval").mkdir()
    (workdir / "eval" / "final.json").write_text('{"net": "phi1"}')
    assert "network 'phi1'; the run also has m1" in run(capsys, workdir)


def test_errors(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, weights.to_torch(variables()), {})
    before = path.read_bytes()
    for argv, message in (
        ([path, path, BACKBONE], "would overwrite the input"),
        ([path, tmp_path / "." / "w.safetensors", BACKBONE], "would overwrite the input"),
        ([path, BACKBONE, "--report", path], "would overwrite the input"),
        ([path, tmp_path / "out.pth", BACKBONE], "must end in .safetensors"),
        ([path, tmp_path / "no" / "out.safetensors", BACKBONE], "does not exist"),
        ([path, BACKBONE, "--net=m1"], "needs the --workdir"),
        ([path, BACKBONE, "--key=teacher"], "nothing under 'teacher'"),
        ([path, "--backbone=resnet18"], "(?s)w.safetensors: .*another backbone.*holds"),
        ([path, BACKBONE, "--from=mmt"], "(?s)w.safetensors: .*layout mmt"),
        ([tmp_path / "none.pth"], "none.pth"),
        ([tmp_path], "holds no checkpoints"),
        ([path, BACKBONE, "--report", tmp_path / "no" / "r.json"], "r.json.*does not exist"),
        ([path, BACKBONE, "--report", tmp_path], "--report=.* cannot be written"),
    ):
        with pytest.raises(WeightsError, match=message):
            convert.main([str(a) for a in argv])
    assert path.read_bytes() == before


def test_command_ends_with_a_message(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    command = [sys.executable, "-m", "reid_jax.convert", str(tmp_path / "w.pth")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "w.pth: wants to use os.system" in done.stderr
