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
import runs
import small
import video_trees as trees

from reid_jax import methods
from reid_jax.commands import embed
from reid_jax.data import clips, images
from reid_jax.data.records import Record
from reid_jax.errors import ConfigError
from reid_jax.eval import store
from reid_jax.fields import plain
from reid_jax.methods import Method, State
from reid_jax.train import checkpoint, embedding
from reid_jax.train.devices import Devices

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
    """(method, a state of random numbers: the necks' statistics are not the fresh ones)."""
    method = methods.build(config, "train", small.info())
    return method, small.random_state(method)


def read(frames):
    return np.stack([images.read(f, 16, 8) for f in frames])


@pytest.fixture(scope="module", params=["baseline", pytest.param("efl", marks=pytest.mark.slow)])
def trained(request):
    return config_of(request.param), *start(config_of(request.param))


def features(config, method, state, records, net, count=1):
    devices = Devices(jax.devices()[:count])
    embedder = embedding.Embedder(method, net, devices)
    state = devices.local_state(devices.replicate(state))
    return embedding.feature_set(config, embedder, state, {"query": records}, "/").feature


def by_frames(method, state, records, net):
    """The definition: head(mean over frames of the vectors), one frame at a time, means in float64."""
    vector = jax.jit(lambda image: method.embed_frames(state, image, net)[0, 0])
    head = jax.jit(lambda mean: method.embed_pooled(state, mean[None], net)[0])
    means = [np.mean([np.float64(vector(read([f])[None])) for f in r.frames], 0) for r in records]
    return np.stack([head(np.float32(m)) for m in means])


def test_mean_over_all_frames(trained, records):
    config, method, state = trained
    net = "mean" if config.method == "efl" else "net"
    want = by_frames(method, state, records, net)
    for chunk, count in ((8, 1), (3, 1), (32, 8)):
        config.data.chunk = chunk
        got = features(config, method, state, records, net, count)
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    assert np.abs(want[0] - want[2]).max() > 1e-2


def test_a_clip_is_the_mean_of_its_frames(trained, records):
    """embed of a clip, the head of the mean vector and the net as built agree."""
    config, method, state = trained
    clip = read(records[2].frames[:4])[None]

    def both(clip, net):
        mean = method.embed_frames(state, clip, net).mean(1)
        return method.embed(state, clip, net), method.embed_pooled(state, mean, net)

    for net in {method.nets[0], method.nets[-1]}:
        whole, pooled = jax.jit(both, static_argnums=1)(clip, net)
        assert whole.shape[0] == 1 and whole.ndim == 2
        np.testing.assert_allclose(whole, pooled, rtol=1e-4, atol=1e-5)


def test_one_clip_tests(records):
    config = config_of("baseline")
    method, state = start(config)
    embed_clip = jax.jit(lambda clip: method.embed(state, clip, "net")[0])
    for how, pick in (("begin", clips.begin_crop), ("rrs", clips.rrs_test)):
        config.data.test_clip = how
        got = features(config, method, state, records, "net")
        for row, r in zip(got, records, strict=True):
            want = embed_clip(read([r.frames[i] for i in pick(len(r), 4)])[None])
            np.testing.assert_allclose(row, want, rtol=2e-4, atol=2e-5)


def test_run_on_images_takes_all_frames(records):
    """A net of images (data.frames=0) tests tracklets by all frames, and images as before."""
    config = config_of("baseline", data__frames=0)
    method, state = start(config)
    got = features(config, method, state, records, "net")
    want = by_frames(method, state, records, "net")
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    still = [Record(r.path, r.pid, r.camid) for r in records]
    want = jax.jit(lambda image: method.embed(state, image, "net"))(read([r.path for r in still]))
    np.testing.assert_allclose(features(config, method, state, still, "net"), want, rtol=2e-4, atol=2e-5)


# ---- methods of other kinds -----------------------------------------------------------------------------
class Stub(Method):
    """A vector of a frame is the mean brightness of all later frames of its chunk and its own."""

    embeds_frames, frames_apart = True, False

    def __init__(self):
        pass

    def embed_batch(self, state, batch, net):
        return batch["image"].astype(jnp.float32).mean((1, 2, 3))

    def embed_frames(self, state, clip, net):
        value = clip.astype(jnp.float32).mean((2, 3))
        count = jnp.arange(1, clip.shape[1] + 1)[None, :, None]
        return jnp.cumsum(value[:, ::-1], 1)[:, ::-1] / count[:, ::-1]

    def embed_pooled(self, state, mean, net):
        return mean


class Apart(Stub):
    """It says that frames do not see each other, which is not true."""

    frames_apart = True


class Whole(Stub):
    """One vector of a clip."""

    def embed_frames(self, state, clip, net):
        return clip.astype(jnp.float32).mean((1, 2, 3))[:, None]


class Blind(Stub):
    """It embeds whole clips only."""

    embeds_frames = False


def empty_state():
    return State(jnp.int32(0), {}, {})


@pytest.mark.parametrize("count", [1, 8])
def test_frames_that_see_each_other_get_no_padding(records, count):
    """Each frame's vector depends on the later frames of its chunk: short chunks stay short."""
    config = config_of("baseline")
    got = features(config, Stub(), empty_state(), records, "net", count)
    for row, r in zip(got, records, strict=True):
        vectors = []
        for start_ in range(0, len(r), 8):
            value = read(r.frames[start_ : start_ + 8]).astype(np.float64).mean((1, 2))
            vectors += [value[i:].mean(0) for i in range(len(value))]
        np.testing.assert_allclose(row, np.mean(vectors, 0), rtol=1e-5)
    wrong = features(config, Apart(), empty_state(), records, "net")
    assert np.abs(wrong - got).max() > 1  # what padding would do


@pytest.mark.parametrize("how", ["interleaved", "consecutive"])
def test_one_vector_for_a_clip(records, how):
    """Vectors [B,1,C] count for all frames of their clip: the mean over the clips of a tracklet."""
    config = config_of("baseline", data__test_clip=how)
    got = features(config, Whole(), empty_state(), records, "net")
    for row, r in zip(got, records, strict=True):
        frames = getattr(clips, how)(len(r), 4)
        want = [read([r.frames[i] for i in clip]).astype(np.float64).mean((0, 1, 2)) for clip in frames]
        np.testing.assert_allclose(row, np.mean(want, 0), rtol=1e-5)


def test_method_without_frames_says_so(records):
    with pytest.raises(ConfigError, match="data.test_clip is 'all', but method baseline embeds whole clips"):
        features(config_of("baseline"), Blind(), empty_state(), records, "net")


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
    command += ["--config.train.steps=4", "--config.train.eval_every=0"]
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


def test_baseline_run_embeds_tracklets(tmp_path):
    """`embed` gives the features of the run's own test, also of runs older than the fields of tracklets."""
    root, workdir = mars(tmp_path), tmp_path / "run"
    fields = {f"data__{k}": v for k, v in fields_of(root).items() if k != "root"}
    config = runs.tiny("baseline", train__steps=2, train__eval_every=0, **fields)
    runs.train(config, runs.load(config, root), workdir)
    old = plain(config)
    for field in ("chunk", "test_clip", "clip", "stride", "split_tracklets"):
        del old["data"][field]
    checkpoint.write_json(str(workdir / "config.json"), old)
    embed.main([str(workdir), f"mars:{root}", "--output", str(tmp_path / "f.npz")])
    found, want = store.load(tmp_path / "f.npz"), store.load(workdir / "eval" / "final.npz")
    np.testing.assert_allclose(found.feature, want.feature, rtol=1e-4, atol=1e-5)
    assert found.path.tolist() == want.path.tolist()
