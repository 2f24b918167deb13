"""Testing tracklets: means over all frames whatever the chunks, devices and padding; a run end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import video_trees as trees

from reid_jax import cli, methods
from reid_jax.commands import embed
from reid_jax.data import clips, datasets, images
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError
from reid_jax.eval import store
from reid_jax.methods import Method, State
from reid_jax.train import checkpoint, evaluate, parallel, sequence, stages

ROOT = Path(__file__).parent.parent.parent
LENGTHS = (5, 1, 21, 8, 3)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("tracklets"), []
    for i, length in enumerate(LENGTHS):
        frames = [trees.picture(folder / f"{i}_{f:03d}.png", [i, f], (8, 16)) for f in range(length)]
        found.append(Record(frames[0], i, i % 2, tuple(frames)))
    return found


def config_of(name, **fields):
    config = small.small(**{"data__frames": 4, "data__chunk": 8, "eval__batch_size": 16, **fields})
    config.method = name
    return config


def start(config):
    """(method, state after a training step, so that the necks' statistics are not the fresh ones)."""
    method = methods.find(config.method).stages(config, small.info())["train"]
    batch = small.random_batch(size=8)
    clip = np.random.default_rng(1).integers(0, 256, (8, 4, 16, 8, 3), np.uint8)
    state = jax.jit(method.init)(jax.random.key(0), stages.example_batch(config))
    state, _ = jax.jit(method.step)(state, {**batch, "image": clip})
    return method, state


def read(frames):
    return np.stack([images.read(f, 16, 8) for f in frames])


@pytest.fixture(scope="module", params=["baseline", "efl"])
def trained(request):
    return config_of(request.param), *start(config_of(request.param))


def features(config, method, state, records, net, runner=None):
    runner = runner or parallel.Runner("jit")
    embedder = evaluate.Embedder(method, net, runner)
    state = runner.local_state(runner.replicate(state))
    return evaluate.feature_set(config, embedder, state, {"query": records}, "/").feature


def by_frames(method, state, record, net):
    """The definition: head(mean over frames of the vectors), one frame at a time, in float64."""
    vectors = [method.embed_frames(state, read([f])[None], net)[0, 0] for f in record.frames]
    mean = np.mean(np.asarray(vectors, np.float64), 0)
    return np.asarray(method.embed_pooled(state, jnp.asarray(mean, jnp.float32)[None], net))[0]


def test_mean_over_all_frames(trained, records):
    config, method, state = trained
    net = "mean" if config.method == "efl" else "net"
    want = np.stack([by_frames(method, state, r, net) for r in records])
    for chunk, backend in ((8, "jit"), (3, "jit"), (32, "pmap")):
        config.data.chunk = chunk
        got = features(config, method, state, records, net, parallel.Runner(backend))
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    assert np.abs(want[0] - want[2]).max() > 1e-2


def test_a_clip_is_the_mean_of_its_frames(trained, records):
    """embed of a clip, the head of the mean vector and the net as built agree."""
    config, method, state = trained
    clip = read(records[2].frames[:4])[None]
    for net in methods.choose_net(method, "all"):
        whole = method.embed(state, clip, net)
        mean = method.embed_frames(state, clip, net).mean(1)
        assert mean.ndim == 2 and whole.shape[0] == 1
        np.testing.assert_allclose(whole, method.embed_pooled(state, mean, net), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["begin", "rrs"])
def test_one_clip_tests(trained, records, how):
    config, method, state = trained
    config.data.test_clip = how
    pick = clips.begin_crop if how == "begin" else clips.rrs_test
    got = features(config, method, state, records, method.nets[0])
    config.data.test_clip = "all"
    for row, r in zip(got, records, strict=True):
        clip = read([r.frames[i] for i in pick(len(r), 4)])[None]
        want = method.embed(state, clip, method.nets[0])[0]
        np.testing.assert_allclose(row, want, rtol=2e-4, atol=2e-5)


def test_run_on_images_takes_all_frames(records):
    """A net of images (data.frames=0) tests tracklets by all frames, and images as before."""
    config = config_of("baseline", data__frames=0)
    method = methods.find("baseline").stages(config, small.info())["train"]
    state = jax.jit(method.init)(jax.random.key(0), stages.example_batch(config))
    got = features(config, method, state, records, "net")
    want = np.stack([by_frames(method, state, r, "net") for r in records])
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    still = [Record(r.path, r.pid, r.camid) for r in records]
    want = method.embed(state, read([r.path for r in still]), "net")
    np.testing.assert_allclose(features(config, method, state, still, "net"), want, rtol=2e-4, atol=2e-5)


# ---- methods of other kinds -----------------------------------------------------------------------------
def stub(frames_apart=False, **fields):
    """A method whose vector of a frame is the mean brightness of all frames of its chunk so far."""

    def embed_frames(state, image, net):
        value = image.astype(jnp.float32).mean((2, 3))
        count = jnp.arange(1, image.shape[1] + 1)[None, :, None]
        return jnp.cumsum(value[:, ::-1], 1)[:, ::-1] / count[:, ::-1]

    given = dict(embed_frames=embed_frames, embed_pooled=lambda state, mean, net: mean) | fields
    embed = lambda state, image, net: image.astype(jnp.float32).mean((1, 2, 3))  # noqa: E731
    return Method(None, None, embed, ("net",), frames_apart=frames_apart, **given)


def empty_state():
    return State(jnp.int32(0), {}, {})


@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_frames_that_see_each_other_get_no_padding(records, backend):
    """Each frame's vector depends on the later frames of its chunk: short chunks stay short."""
    method, config = stub(), config_of("baseline")
    got = features(config, method, empty_state(), records, "net", parallel.Runner(backend))
    for row, r in zip(got, records, strict=True):
        vectors = []
        for start_ in range(0, len(r), 8):
            value = read(r.frames[start_ : start_ + 8]).astype(np.float64).mean((1, 2))
            vectors += [value[i:].mean(0) for i in range(len(value))]
        np.testing.assert_allclose(row, np.mean(vectors, 0), rtol=1e-5)
    wrong = features(config, stub(frames_apart=True), empty_state(), records, "net")
    assert np.abs(wrong - got).max() > 1  # what padding would do


@pytest.mark.parametrize("how", ["interleaved", "consecutive"])
def test_one_vector_for_a_clip(records, how):
    """Vectors [B,1,C] count for all frames of their clip: the mean over the clips of a tracklet."""
    method = stub(embed_frames=lambda state, image, net: image.astype(jnp.float32).mean((1, 2, 3))[:, None])
    config = config_of("baseline", data__test_clip=how)
    got = features(config, method, empty_state(), records, "net")
    for row, r in zip(got, records, strict=True):
        frames = getattr(clips, how)(len(r), 4)
        want = [read([r.frames[i] for i in clip]).astype(np.float64).mean((0, 1, 2)) for clip in frames]
        np.testing.assert_allclose(row, np.mean(want, 0), rtol=1e-5)


def test_method_without_frames_says_so(records):
    with pytest.raises(ConfigError, match="data.test_clip is 'all', but method baseline embeds whole clips"):
        features(config_of("baseline"), stub(embed_frames=None), empty_state(), records, "net")


# ---- whole runs -----------------------------------------------------------------------------------------
def fields_of(root, **fields):
    return dict(name="mars", root=root, frames=4, ids=2, instances=4, chunk=5, height=32, width=16) | fields


def mars(folder):
    return trees.mars(folder / "MARS", lengths=(3, 12, 9), pid_color=True, size=(16, 32))


@pytest.mark.slow
def test_efl_trains_and_tests_on_a_mars_tree(tmp_path):
    """python -m reid_jax.main on tracklets, to the report; all frames are tested."""
    fields = fields_of(mars(tmp_path))
    command = [sys.executable, "-m", "reid_jax.main", "--config=configs/efl.py:smoke"]
    command += [f"--workdir={tmp_path / 'run'}", *(f"--config.data.{k}={v}" for k, v in fields.items())]
    command += ["--config.train.steps=4", "--config.train.eval_every=0", "--config.train.backend=jit"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "eval" / "final.json").read_text())["step"] == 4
    found = store.load(tmp_path / "run" / "eval" / "final.npz")
    assert (found.split == "query").sum() == 6 and (found.split == "gallery").sum() == 13
    assert np.isfinite(found.feature).all() and found.path[0].endswith("0001C1T0001F001.jpg")
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {x["step"]: x["loss"] for x in lines if "loss" in x}
    assert max(losses) == 4 and np.isfinite(list(losses.values())).all()
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_baseline_run_resumes_and_embeds_tracklets(tmp_path):
    """Clips are the same after a restart; `embed` gives the features of the run's own test."""
    config = cli.load_config("configs/baseline.py:smoke")
    config.data.update(fields_of(mars(tmp_path)))
    config.train.update(eval_every=0)
    config.optim.schedule = "step"  # the other depends on the number of steps
    for name, stops in (("whole", [6]), ("parts", [3, 6])):
        for steps in stops:
            config.train.steps = steps
            workdir = str(tmp_path / name)
            if steps == 6 and name == "parts":
                os.remove(os.path.join(workdir, "eval", "final.json"))
            checkpoint.write_json(checkpoint_config(workdir), checkpoint.plain(config))
            sequence.train(config, datasets.load(config.data, workdir), workdir, parallel.Runner("jit"))
    whole, parts = (store.load(tmp_path / name / "eval" / "final.npz") for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole.feature, parts.feature)
    old = checkpoint.plain(config)
    for field in ("chunk", "test_clip", "clip", "stride", "split_tracklets"):
        del old["data"][field]  # as in a run that is older than the fields
    checkpoint.write_json(checkpoint_config(tmp_path / "whole"), old)
    flags = ["--checkpoint", "latest", "--output", str(tmp_path / "f.npz")]
    embed.main([str(tmp_path / "whole"), f"mars:{tmp_path / 'MARS'}", *flags])
    found = store.load(tmp_path / "f.npz")
    np.testing.assert_allclose(found.feature, whole.feature, rtol=1e-4, atol=1e-5)
    assert found.path.tolist() == whole.path.tolist()


def checkpoint_config(workdir):
    os.makedirs(workdir, exist_ok=True)
    return os.path.join(workdir, "config.json")
