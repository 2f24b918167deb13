"""Exports: every file gives the run's features, or nothing is kept; what the files are loaded with."""

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from runs import tiny

import reid_jax
from reid_jax import methods, models
from reid_jax.commands import export as command
from reid_jax.errors import ConfigError, ReidError, WeightsError
from reid_jax.fields import plain
from reid_jax.models import backbones, heads, layers
from reid_jax.serve import card, check, embedder, export, nets
from reid_jax.serve import hub as pushing
from reid_jax.serve import onnx as emitter
from reid_jax.train import stages

FILES = ["model.safetensors", "model.stablehlo", "model.onnx", "model_nchw.onnx"]
BLOCKED = ("jax", "jaxlib", "flax", "orbax", "grain", "tensorflow_datasets", "sklearn", "tensorflow", "optax")


@pytest.fixture(scope="session")
def made(trained):
    """(folder of an export with every format, compared in this process; its card)."""
    for package in ("onnx", "onnxruntime", "flatbuffers"):
        pytest.importorskip(package)
    folder = trained / "export"
    kinds = ("uint8", "nchw")
    about = export.export(
        str(trained / "run"),
        str(folder),
        onnx_inputs=kinds,
        folder=str(trained / "pictures"),
        compare=check.compare,
    )
    return folder, about


def test_every_file_gives_the_features_of_the_run(made, trained, files):
    folder, about = made
    assert list(about["parity"]) == FILES
    assert all(p["difference"] <= 1e-6 for p in about["parity"].values())
    run, archive, onnx = (
        reid_jax.load(trained / "run"),
        reid_jax.load(folder, backend="jax"),
        reid_jax.load(folder, backend="onnx"),
    )
    want = run(files)
    for e in (archive, onnx):
        np.testing.assert_allclose(e(files), want, atol=1e-6)
        assert e.hash == run.hash == about["hash"] and e.dim == run.dim and e.size == run.size
    assert type(reid_jax.load(folder, device="cpu").net).__name__ == "OnnxNet"
    np.testing.assert_allclose(archive.tracklet(files), run.tracklet(files), atol=1e-6)


def test_card_and_readme(made):
    folder, about = made
    with open(folder / "card.json") as file:
        assert json.load(file) == json.loads(json.dumps(about))
    for name in (*FILES, "check.npz", "config.json"):
        assert about["files"][name] == export.sha256(folder / name)
    text = (folder / "README.md").read_text()
    for part in (about["hash"], "## Privacy", "trtexec --onnx=model.onnx", "market1501", "six months"):
        assert part in text
    assert (folder / "model_nchw.onnx.metadata.json").exists()
    assert str(folder.parent) not in (folder / "config.json").read_text()  # no place of this machine


def test_onnx_needs_no_jax(made, files):
    folder, _ = made
    code = f"import sys\nfor name in {BLOCKED!r}: sys.modules[name] = None\n"
    code += f"import reid_jax\nprint(reid_jax.load({str(folder)!r}, device='cpu')({files[:2]!r}).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("(2, "), done.stderr


def test_stablehlo_is_of_any_batch_and_platform(made):
    from jax import export as exporting

    folder, about = made
    found = exporting.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert found.platforms == ("cpu", "cuda", "tpu")
    assert str(found.in_avals[0].shape[0]) == "b" and found.out_avals[0].shape[1] == about["dim"]


def test_onnx_is_lean(made):
    """Maps stay NCHW; norms are in the convolutions; the file says which model it is of."""
    import onnx

    folder, about = made
    model = onnx.load(folder / "model.onnx")
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("Transpose") <= 1 and ops.count("Relu") == 3 and ops.count("Max") == 1  # of the length
    assert {p.key: p.value for p in model.metadata_props}["hash"] == about["hash"]
    nchw = [node.op_type for node in onnx.load(folder / "model_nchw.onnx").graph.node]
    assert "Transpose" not in nchw


def test_a_file_that_differs_leaves_nothing(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    target = tmp_path / "out"
    worse = {"difference": 2e-5, "cosine": 1.0}
    with pytest.raises(WeightsError, match="model.safetensors gives other features than the run.*2e-05"):
        export.export(str(trained / "run"), str(target), ("safetensors",), compare=lambda folder, name: worse)
    assert os.listdir(tmp_path) == []


def test_damaged_and_mixed_exports(made, tmp_path):
    folder, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="holds the model .* and the card is of"):
        reid_jax.load(copy, backend="jax")
    for name, backend in (
        ("model.onnx", "onnx"),
        ("config.json", "jax"),
    ):
        data = bytearray((copy / name).read_bytes())
        data[-9] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(WeightsError, match=f"{name} is not the file that card.json tells of|is damaged"):
            reid_jax.load(copy, backend=backend)
        shutil.copy(folder / name, copy)
    about = json.loads((copy / "card.json").read_text()) | {"files": {}}
    (copy / "card.json").write_text(json.dumps(about))
    (copy / "model.onnx").write_bytes(b"no onnx")
    with pytest.raises(WeightsError, match="cannot be read by ONNX Runtime"):
        reid_jax.load(copy, backend="onnx")
    shutil.copy(folder / "model.onnx", copy)
    (copy / "card.json").write_text(json.dumps(about | {"hash": "0" * 64}))
    with pytest.raises(WeightsError, match="the files are of two exports"):
        reid_jax.load(copy, backend="onnx")
    (copy / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="config.json is damaged"):
        reid_jax.load(copy, backend="jax")
    with pytest.raises(ConfigError, match="leave checkpoint and net out"):
        reid_jax.load(folder, net="teacher")


def test_missing_extras(made, monkeypatch, tmp_path, trained):
    folder, _ = made
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime.*pip install 'reid_jax\[export\]'"):
        reid_jax.load(folder, backend="onnx")
    assert type(reid_jax.load(folder).net).__name__ == "ExportedNet"  # auto takes what there is
    with pytest.raises(ConfigError, match="--formats=onnx needs the package onnxruntime"):
        export.export(str(trained / "run"), str(tmp_path / "x"), ("onnx",))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"huggingface_hub: pip install 'reid_jax\[hub\]'"):
        reid_jax.load("hf://me/model")


def test_a_model_of_the_hub(made, monkeypatch, files):
    """A repository is a folder that is fetched, of the revision that is asked for."""
    folder, asked = made[0], []

    def snapshot_download(name, revision=None):
        asked.append((name, revision))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert reid_jax.load("hf://me/model@v1", device="cpu").hash == reid_jax.load("hf://me/model").hash
    assert asked == [("me/model", "v1"), ("me/model", None)]


class Hub:
    """Stands for huggingface_hub: repositories are folders of a place."""

    def __init__(self, place):
        self.place, self.private = place, {}

    def HfApi(self):  # noqa: N802
        return self

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.private.setdefault(repo_id, private)

    def repo_info(self, repo_id):
        return types.SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        return shutil.copytree(folder_path, self.place / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, name, revision=None):
        return str(self.place / name)


def test_pushing(made, monkeypatch, tmp_path, files):
    folder, hub = tmp_path / "export", Hub(tmp_path / "hub")
    shutil.copytree(made[0], folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    pushing.push(str(folder), "hf://me/model")
    assert hub.private == {"me/model": True}
    assert reid_jax.load("hf://me/model", device="cpu").hash == reid_jax.load(folder).hash
    hub.private["me/open"] = False
    with pytest.raises(ConfigError, match="is there and public; say --public"):
        pushing.push(str(folder), "hf://me/open")
    assert not (tmp_path / "hub" / "me" / "open").exists()
    pushing.push(str(folder), "hf://me/open", public=True)
    (folder / "query.jpg").write_text("")
    with pytest.raises(ConfigError, match="has query.jpg too, which is no part of the export"):
        pushing.push(str(folder), "hf://me/other")
    (folder / "query.jpg").unlink()
    (folder / "model.onnx").write_text("")
    with pytest.raises(WeightsError, match="model.onnx is not the file that card.json tells of"):
        pushing.push(str(folder), "hf://me/other")
    with pytest.raises(ConfigError, match="has no card.json; write an export first"):
        pushing.push(str(tmp_path), "hf://me/other")
    with pytest.raises(ConfigError, match="names a revision"):
        pushing.push(str(folder), "hf://me/other@v1")
    assert set(hub.private) == {"me/model", "me/open"}


def test_damaged_cards_and_configs(tmp_path):
    """Whatever the bytes, reading ends in a sentence."""
    good = {"input": {"size": [32, 16]}, "dim": 8, "hash": "0" * 64, "thresholds": {}}
    rng, text = np.random.default_rng(0), bytearray(json.dumps(good).encode())
    for i in range(200):
        data = bytearray(text)
        data[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "card.json").write_bytes(data[: rng.integers(len(data))] if i % 3 == 0 else data)
        try:
            assert embedder.read_card(tmp_path)["dim"] > 0
        except WeightsError as e:
            assert "card.json is no card of an export" in str(e)
    (tmp_path / "card.json").write_text(json.dumps(good))
    about = {"format": 1, "config": methods.defaults("baseline"), "stage": "train", "net": "net", "step": 1}
    about["info"] = {"num_pids": 1, "num_cams": 1, "num_images": 0, "domains": []}
    for field in (*about, "info"):
        for junk in (None, -1, "x", [], {}, {"": None}):
            (tmp_path / "config.json").write_text(json.dumps(about | {field: junk}))
            with pytest.raises(ReidError, match="config.json|config.method|model.safetensors|--key|net"):
                nets.of_export(tmp_path)


def test_flags(trained, tmp_path):
    args = command.parse(["runs/a", "--output", "x", "--formats=onnx", "--onnx-input", "uint8,nchw"])
    assert args.formats == ["onnx"] and args.onnx_input == ["uint8", "nchw"] and args.opset == 17
    run = str(trained / "run")
    with pytest.raises(ConfigError, match="--formats has tflite; it knows safetensors, stablehlo, onnx"):
        export.export(run, str(tmp_path / "x"), ("tflite",))
    with pytest.raises(ConfigError, match="--opset=9; it must be from 13 to 22"):  # before the work
        export.export(run, str(tmp_path / "x"), opset=9)
    with pytest.raises(ConfigError, match="--onnx-input has nothing"):
        export.export(run, str(tmp_path / "x"), onnx_inputs=())
    (tmp_path / "there").write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        export.export(run, str(tmp_path))


@pytest.mark.slow
def test_fresh_processes(trained, tmp_path):
    """The command itself, which loads every file in a process of its own."""
    pytest.importorskip("onnxruntime")
    assert command.main([str(trained / "run"), "--output", str(tmp_path / "x")]) == 0
    assert {*FILES[:3], "card.json"} <= {*os.listdir(tmp_path / "x")}


# ---- the emitter alone
def run_onnx(function, x, **options):
    """What ONNX Runtime makes of a function of one array."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    with layers.form("plain"):
        model = emitter.export(function, x.shape[1:], x.dtype, name="x", output="y", **options)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], model


W = np.random.default_rng(5).standard_normal((3, 3, 4, 6)).astype(np.float32)


def attention(x):
    q = x.reshape(x.shape[0], 32, 2, 2)
    a = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, q))
    return jnp.einsum("bhnm,bmhd->bnhd", a, q).reshape(x.shape[0], -1)


def convolution(x):
    y = layers.conv(x, jnp.asarray(W), 2, 1) * jnp.arange(1.0, 7) - jnp.arange(6.0)
    y = jax.nn.relu(y) + y  # seen twice: nothing more may go into the weights
    return (layers.max_pool(y) * 2).mean((1, 2))


FUNCTIONS = {
    "convolution": convolution,
    "attention": attention,
    "shifted": lambda x: jnp.roll(x, (1, 2), (1, 2)).max((1, 2)),
    "stripes": lambda x: layers.maximum(x.reshape(x.shape[0], 2, 4, 4, 4), (2, 3)).reshape(x.shape[0], -1),
    "cls": lambda x: jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(4.0), (x.shape[0], 1, 4)), x.reshape(x.shape[0], 32, 4)], 1
    )[:, :3].reshape(x.shape[0], -1),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False).sum((1, 2))[:, ::-1],
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=1.5).sum((1, 3)),
    "chosen": lambda x: jnp.where(x > 0, x**3, jnp.tanh(x))[:, ::2, np.array([3, 0, 1])].sum((1, 2)),
    "norm": lambda x: layers.instance_norm(x, jnp.arange(4.0), 1.0).std((1, 2)),
    "picked": lambda x: jnp.arange(20.0).reshape(5, 4)[:, jnp.argmax(x.mean((1, 2)), -1)].T,
    "counted": lambda x: (jnp.argmax(x.reshape(-1, 128), -1, keepdims=True) // 3 - 20) % 7 * jnp.ones(2),
    "split": lambda x: jnp.concatenate(jnp.split(x, 2, -1)[::-1], -1).mean(1).reshape(x.shape[0], -1),
    "clip": lambda x: jnp.clip(x, -0.5, 0.5).reshape(x.shape[0], -1) @ jnp.ones((128, 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_as_onnx(name):
    x = np.random.default_rng(0).standard_normal((3, 8, 4, 4)).astype(np.float32)
    want = np.asarray(jax.jit(FUNCTIONS[name])(x))
    opset = (13, 15, 17, 18, 22)[list(FUNCTIONS).index(name) % 5]  # some operations take axes otherwise
    found, _ = run_onnx(FUNCTIONS[name], x, opset=opset)
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: jnp.sort(x), "the operation sort"),
        (lambda x: x[: x.shape[0] // 2], "a part of the batch"),
        (lambda x: x[:, jnp.argmax(x[0])], "gather|depends on the picture|part of the batch"),
    ],
)
def test_what_onnx_does_not_have(function, text):
    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match=text):
        emitter.export(function, (6,), np.float32, name="x", output="y")
    with pytest.raises(ConfigError, match="--opset=9; it must be from 13 to 22"):
        emitter.export(jnp.tanh, (6,), np.float32, name="x", output="y", opset=9)


MORE = [{"norm": "aibn"}, {"norm": "ibn_b"}, {"pool": "gem"}, {"head": "stripes"}, {"head": "contrast"}]
MORE += [{"head": "pyramid"}, {"norm": "dualnorm"}, {"norm": "bin"}, {"norm": "metabin"}]
NETS = [{"backbone": name} for name in backbones.names()] + [{"backbone": "resnet18"} | more for more in MORE]
NETS += [{"backbone": "vit_narrow", "head": "jpm"}]
SIZES = {"hacnn": (160, 64), "pyramid": (96, 32), "inception_v3": (80, 80)} | {
    name: (96, 32) for name in backbones.names() if "_mgn" in name
}


def shaken(path, leaf):
    """Random weights and statistics, as a trained net's might be."""
    rng, name = np.random.default_rng(len(path) + leaf.size), path[-1].key
    if name == "kernel":
        # non-local blocks multiply maps with each other: with more they would grow without end
        size = 0.03 if path[-2].key in ("theta", "phi", "g", "W_0") else 1
        return np.float32(size * rng.standard_normal(leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5)
    size = {"bn3": 0.3, "W_1": 0.01}.get(path[-2].key, 1)  # else maps grow from block to block
    return np.float32(size * (rng.uniform(0.5, 1.5, leaf.shape) - (name in ("mean", "bias"))))


def built(fields):
    """The net of some fields, with the first head that stands on its backbone."""
    for head in (fields.get("head", "global"), *models.offers("heads")):
        try:
            return heads.build(fields | {"head": head}, 3, num_cams=2)
        except ConfigError as e:
            reason = e
    raise reason


@pytest.mark.slow
@pytest.mark.parametrize("fields", NETS, ids=lambda fields: "-".join(fields.values()))
def test_whole_nets_as_onnx(fields):
    """Nets of clips see a picture as so many equal frames; two stems by camera are refused in a sentence."""
    backbone = fields["backbone"]
    small = ("slim_nl", "resnet101_nl", "two_stream_slim")
    more = {"nl_blocks": (0, 1, 1, 0)} if backbone in small else {}
    more |= {"second_stem": (1,)} if backbone.startswith("two_stream") else {}
    net = built({"neck": "bnneck", "stripes_parts": 2, "vit_stride": 8, **more} | fields)
    known = lambda x: {"camera": jnp.ones(len(x), jnp.int32)} if net.wants_camera else {}  # noqa: E731
    size = SIZES.get(fields.get("head"), SIZES.get(backbone, (64, 32)))
    x = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.float32) / 255
    moving = backbone.startswith(("ap3d", "c2d"))
    given = (lambda x: jnp.repeat(x[:, None], 4, 1)) if moving else (lambda x: x)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), given(x), False, **known(x)))
    variables = jax.tree_util.tree_map_with_path(shaken, shapes)
    function = lambda x: nets.unit(net.apply(variables, given(x), False, **known(x)).test)  # noqa: E731
    if net.wants_camera and backbone.startswith("two_stream"):
        with pytest.raises(ConfigError, match="cannot be written as ONNX: it has the operation"):
            run_onnx(function, x)
        return
    found, model = run_onnx(function, x)
    want = jax.jit(function)(x)
    assert np.abs(want[0] - want[1]).max() > 1e-4  # nothing saturates
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
    print(*fields.values(), len(model.graph.node), "nodes")


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_every_method_as_onnx(name):
    """The last stage's first network with random weights; what cannot be is refused in a sentence."""
    domains = [3, 3] if name in ("lifelong", "metabin") else []
    info = {"num_pids": 6, "num_cams": 3, "num_images": 12, "domains": domains}
    config = tiny(name)
    stage = methods.stage_names(config)[-1]
    _, method = stages.build(config, stage, methods.Info(**info))
    leaves, _ = nets.flat(small.random_state(method))
    origin = nets.Origin(plain(config), stage, "auto", info, 0)
    try:
        net = nets.Net(origin, leaves)
    except ConfigError as e:
        assert "write them with reid_jax embed" in str(e)
        return
    images = np.random.default_rng(0).integers(0, 256, (3, *net.size, 3), np.uint8)
    arrays = jax.tree.map(jnp.asarray, net.arrays)
    found, model = run_onnx(lambda x: net.features(arrays, x), images)
    np.testing.assert_allclose(found, net(images), rtol=0, atol=1e-5)
    print(name, len(model.graph.node), "nodes")


def test_readme_without_figures():
    assert "not evaluated" in card._shown({})
