"""Synthetic tracklets: MARS's layout, gait, drifting boxes, obstacles, recovery, strip and commands."""

import json
import os
import re
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from trees import files

from reid_jax import config
from reid_jax.data import datasets
from reid_jax.data.__main__ import main
from reid_jax.data.synthetic import animate, generate, kinds, strip, video, walks
from reid_jax.data.synthetic.camera import BODY, MIDDLE
from reid_jax.data.synthetic.pose import skeleton
from reid_jax.data.synthetic.sheet import SIDE
from reid_jax.errors import DataError

SMALL = dict(
    kind="video", train_ids=2, test_ids=2, cameras=2, tracklets=2, frames=(3, 5), height=64, width=32,
    distractors=3, junk=2, seed=5,
)  # fmt: skip
NAME = re.compile(r"(00-1|\d{4})C(\d)T(\d{4})F(\d{3})\.jpg")
SETTINGS = dict(
    train_ids=40, test_ids=1, cameras=3, tracklets=2, frames=[20, 20], height=64, width=32, strength=1.0,
    distractors=0, junk=0, seed=3, kind="video",
)  # fmt: skip


def make(root, **changes):
    return generate(str(root), **{**SMALL, **changes}, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="module")
def tracks():
    return [video.track(group[0], SETTINGS) for group in video.tracklets(SETTINGS) if group[0].pid <= 40]


def parse(folder, split):
    """{(pid, cam, tracklet): [paths]} by the names of the files alone."""
    found = []
    for who in sorted(os.listdir(os.path.join(folder, split))):
        for name in os.listdir(os.path.join(folder, split, who)):
            pid, cam, tracklet, frame = NAME.fullmatch(name).groups()
            assert pid == who
            pid = -1 if pid == "00-1" else int(pid)
            found.append((pid, int(cam), int(tracklet), int(frame), os.path.join(folder, split, who, name)))
    out = {}
    for key, items in groupby(sorted(found), key=lambda item: item[:3]):
        items = list(items)
        assert [item[3] for item in items] == list(range(1, len(items) + 1))
        out[key] = [item[4] for item in items]
    return out


# ---- files ----------------------------------------------------------------------------------------------
def test_names_and_counts(made):
    assert os.path.basename(made) == "MARS"
    train, test = parse(made, "bbox_train"), parse(made, "bbox_test")
    assert set(train) == {(p, c, t) for p in (1, 2) for c in (1, 2) for t in (1, 2)}
    people = {(p, c, t) for p in (3, 4) for c in (1, 2) for t in (1, 2)}
    assert set(test) == people | {(0, 1, 1), (0, 2, 1), (0, 1, 2), (-1, 1, 1), (-1, 2, 1)}
    lengths = {len(frames) for frames in (*train.values(), *test.values())}
    assert lengths == {3, 4, 5}
    for path in (*train[1, 1, 1], *test[-1, 1, 1]):
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.size == (32, 64) and image.mode == "RGB"


@pytest.mark.parametrize("part", ["train", "test"])
def test_tables_say_which_lines_are_a_tracklet(made, part):
    with open(os.path.join(made, "info", f"{part}_name.txt")) as f:
        names = f.read().splitlines()
    table = loadmat(os.path.join(made, "info", f"tracks_{part}_info.mat"))[f"track_{part}_info"]
    assert table.shape[1] == 4 and np.issubdtype(table.dtype, np.integer)
    assert table[0, 0] == 1 and table[-1, 1] == len(names)  # 1-based, last line inclusive
    assert (table[1:, 0] == table[:-1, 1] + 1).all()
    wanted = parse(made, f"bbox_{part}")
    found = {}
    for first, last, pid, cam in table.tolist():
        own = names[first - 1 : last]
        key = pid, cam, int(NAME.fullmatch(own[0])[3])
        found[key] = [os.path.join(made, f"bbox_{part}", name[:4], name) for name in own]
    assert found == wanted


def test_queries_are_the_first_tracklet_of_each_camera(made):
    rows = loadmat(os.path.join(made, "info", "query_IDX.mat"))["query_IDX"]
    table = loadmat(os.path.join(made, "info", "tracks_test_info.mat"))["track_test_info"]
    with open(os.path.join(made, "info", "test_name.txt")) as f:
        names = f.read().splitlines()
    assert rows.shape == (1, 4)
    first = [NAME.fullmatch(names[table[row - 1, 0] - 1]).groups() for row in rows[0]]
    assert first == [(f"{p:04d}", str(c), "0001", "001") for p in (3, 4) for c in (1, 2)]


def test_the_reader_of_mars_takes_it(made):
    dataset = datasets.load_folder("mars", made, check_counts=False)
    assert dataset.kind == "video"
    assert sorted((r.pid, r.camid) for r in dataset.train) == [(p, c) for p in (0, 1) for c in (0, 0, 1, 1)]
    assert sorted((r.pid, r.camid) for r in dataset.query) == [(p, c) for p in (3, 4) for c in (0, 1)]
    assert sorted(r.pid for r in dataset.gallery) == [0] * 3 + [3] * 4 + [4] * 4  # queries too, no junk
    for record in dataset.train:
        assert list(record.frames) in parse(made, "bbox_train").values()


def test_a_config_of_kind_video_loads_tracklets(tmp_path):
    tree = config.defaults()["data"]
    tree.update(name="synthetic", ids=2, synthetic={**SMALL, "images": 2, "strength": 0.5})
    data = SimpleNamespace(**{**tree, "synthetic": SimpleNamespace(**tree["synthetic"])})
    dataset = datasets.load(data, str(tmp_path))
    assert dataset.name == "synthetic" and dataset.kind == "video"
    assert dataset.camera_names == ("c1 street", "c2 snow")
    assert all(3 <= len(r.frames) <= 5 for r in dataset.train)


def test_other_worker_counts_give_the_same_bytes(made, tmp_path):
    assert files(make(tmp_path, workers=2)) == files(made)


def test_a_tracklet_does_not_depend_on_the_other_settings(made, tmp_path):
    more = files(make(tmp_path, train_ids=3, tracklets=3, cameras=3, junk=0))
    first = {k: v for k, v in files(made).items() if k.startswith("bbox_train")}
    assert first and all(more[name] == data for name, data in first.items())


def test_an_interrupted_run_goes_on_and_leaves_nothing_that_loads(made, tmp_path, monkeypatch):
    drawn, render = [], video.render_frame

    def stop_at_nine(track, k):
        if len(drawn) == 9:
            raise KeyboardInterrupt
        drawn.append((id(track), k))
        return render(track, k)

    monkeypatch.setattr(video, "render_frame", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert not (tmp_path / "MARS").exists()
    with pytest.raises(DataError):
        datasets.load_folder("mars", str(tmp_path), check_counts=False)
    monkeypatch.setattr(video, "render_frame", lambda track, k: drawn.append(0) or render(track, k))
    assert files(make(tmp_path)) == files(made)
    assert len(drawn) == sum(name.endswith(".jpg") for name in files(made))  # no frame twice


def test_image_and_video_live_side_by_side(made, tmp_path):
    folder = make(tmp_path)
    other = make(tmp_path, kind="image")
    assert os.path.dirname(folder) == os.path.dirname(other) and folder != other
    assert make(tmp_path) == folder
    with pytest.raises(DataError, match=r"frames = \[3, 5\] \(asked: \[3, 6\]\)"):
        make(tmp_path, frames=(3, 6))


@pytest.mark.parametrize(
    ("field", "value"),
    [("frames", (5, 3)), ("frames", (1, 3)), ("frames", 8), ("frames", (8, 1000)), ("frames", (2.5, 3)),
     ("tracklets", 1), ("kind", "film")],
)  # fmt: skip
def test_bad_values_name_the_field(tmp_path, field, value):
    with pytest.raises(DataError, match=field):
        make(tmp_path, **{field: value})
    assert not os.listdir(tmp_path)


# Means of the red, green and blue of the four quarters of three pictures, as drawn before there were videos.
STILLS = {
    (1, 0, 0): (81.1, 56.6, 53.4, 103.4, 84.0, 72.3, 86.2, 72.5, 65.8, 92.6, 78.1, 71.0),
    (2, 1, 1): (122.6, 125.5, 133.7, 122.2, 125.3, 134.7, 148.9, 159.3, 184.6, 157.7, 168.4, 193.5),
    (-1, 2, 1): (246.2, 245.6, 245.2, 111.4, 113.0, 95.1, 226.3, 220.1, 209.8, 115.8, 107.9, 98.0),
}


@pytest.mark.parametrize("key", STILLS)
def test_the_image_set_is_as_it_was(key):
    settings = dict(seed=5, height=64, width=32, strength=1.0)
    picture, _ = kinds.draw(kinds.Job("query", *key), settings)
    quarters = picture.reshape(2, 32, 2, 16, 3).mean((1, 3)).ravel()
    np.testing.assert_allclose(quarters, STILLS[key], atol=0.3)


# ---- walking --------------------------------------------------------------------------------------------
def test_a_person_keeps_gait_and_clothes(tracks):
    paces = {}
    for group, track in zip(video.tracklets(SETTINGS), tracks, strict=False):
        pid, steps = group[0].pid, np.diff(track.walk.phase)
        assert np.allclose(steps, steps[0]) and 0 < steps[0] < 0.09
        assert track.walk.person == kinds.person_of(3, pid)
        if track.walk.stride > 0.5:
            assert 0.055 < steps[0]
            paces.setdefault(pid, set()).add((round(steps[0], 9), track.walk.stride))
    assert all(len(own) == 1 for own in paces.values())
    assert len({own.pop() for own in paces.values()}) == 40  # and not another's


def test_standing_feet_do_not_slide(tracks):
    for track in tracks[:12]:
        walk = track.walk
        if walk.stride < 0.5:
            continue
        step = walks.cycle_length(walk.person, walk.stride) * np.diff(walk.phase)[0]
        phases = walk.phase[0] + np.linspace(0, 20, 200) * np.diff(walk.phase)[0]
        poses = [skeleton(walk.person, phase, walk.stride) for phase in phases]
        stance = np.array([np.argmin([ankle[1] for ankle in s.ankles]) for s in poses])
        foot = [s.ankles[i][2] * walk.person.height for s, i in zip(poses, stance, strict=True)]
        on_ground = np.array(foot) + np.linspace(0, 20, 200) * step
        spells = np.split(on_ground, np.flatnonzero(np.diff(stance)) + 1)[1:-1]
        assert len(spells) >= 1
        assert max(map(np.ptp, spells)) < 0.05  # body heights, of a step of about 0.4
        rises = [s.crown[1] for s in poses]
        assert 0.005 < np.ptp(rises) < 0.05  # the body bobs


def test_walkers_move_where_they_look(tracks):
    moved = 0
    for track in tracks:
        walk = track.walk
        if walk.stride < 0.5:
            continue
        along, nearer = np.sin(walk.yaw).mean(), np.cos(walk.yaw).mean()
        if abs(along) > 0.3:
            assert np.sign(walk.x[-1] - walk.x[0]) == np.sign(along)
        if abs(nearer) > 0.3:  # towards the camera: larger, lower
            assert np.sign(walk.scale[-1] - walk.scale[0]) == np.sign(nearer)
            assert np.sign(walk.y[-1] - walk.y[0]) == np.sign(nearer)
        moved += 1
    assert moved > 150


# ---- boxes ----------------------------------------------------------------------------------------------
def errors(track):
    """Offsets (x, y in box heights) and log scale [n,3] of the boxes."""
    walk, size = track.walk, BODY * track.camera.settings["size"]
    height = walk.scale / size
    middle = walk.y - MIDDLE * walk.scale * walk.person.height
    x, y, h = track.boxes.T
    return np.stack([(x - walk.x) / height, (y - middle) / height, np.log(h / height)], 1)


def test_boxes_lag_drift_and_slip(tracks):
    lags, wander, worst = [], [], []
    for track in tracks:
        error, speed = errors(track), np.diff(track.walk.x).mean()
        if abs(speed) > 0.02:
            lags.append(error[:, 0].mean() / speed)
        wander.append(error.std(0))
        worst.append(np.abs(error[:, :2]).max())
    assert -1.5 < np.mean(lags) < -0.4  # frames behind
    assert (0.01 < np.mean(wander, axis=0)).all() and (np.mean(wander, axis=0) < 0.06).all()
    assert 0.1 < np.mean(np.array(worst) > 0.12) < 0.5  # some are badly placed for a while
    assert max(worst) < 0.6


def test_errors_of_the_box_change_slowly(tracks):
    now = np.concatenate([errors(t)[:-1] - errors(t).mean(0) for t in tracks])
    later = np.concatenate([errors(t)[1:] - errors(t).mean(0) for t in tracks])
    for axis in range(3):
        assert np.corrcoef(now[:, axis], later[:, axis])[0, 1] > 0.5


def test_junk_never_fits():
    settings = {**SETTINGS, "train_ids": 1, "junk": 9}
    for group in video.tracklets(settings):
        if group[0].pid < 0:
            track = video.track(group[0], settings)
            error = np.abs(errors(track)).mean(0)
            assert error[2] > 0.12 or error[:2].max() > 0.15


# ---- frames ---------------------------------------------------------------------------------------------
def test_cut_is_a_window_of_the_panorama():
    panorama = np.random.default_rng(0).random((3, 40, 90), np.float32)
    whole = video.cut(panorama, (20, 6, 36, 38), 32, 16)
    np.testing.assert_allclose(whole, panorama[:, 6:38, 20:36], atol=1e-6)
    half = video.cut(panorama, (20.5, 6, 36.5, 38), 32, 16)
    np.testing.assert_allclose(half, 0.5 * (panorama[:, 6:38, 20:36] + panorama[:, 6:38, 21:37]), atol=1e-5)
    mirrored = np.pad(panorama, ((0, 0), (10, 10), (20, 20)), "symmetric")
    for left, top in ((-8, -5), (80, 12)):
        part = video.cut(panorama, (left, top, left + 16, top + 32), 32, 16)
        wanted = mirrored[:, top + 10 : top + 42, left + 20 : left + 36]
        np.testing.assert_allclose(part, wanted, atol=1e-6)


def test_the_place_stands_still_while_the_box_moves(tracks):
    """Frames without the person, put back to where they were taken, agree with each other."""
    track = next(t for t in tracks if np.ptp(t.walk.x) > 0.5 and t.camera.index == 0)
    quiet = {**track.camera.settings, "noise": 0.0}
    n = len(track.boxes)
    boxes = track.boxes.copy()
    boxes[:, 0] = np.rint(boxes[:, 0] * 64) / 64  # whole pixels
    boxes[:, 1], boxes[:, 2] = np.rint(boxes[n // 2, 1] * 64) / 64, 1.0
    still = replace(
        track, camera=replace(track.camera, settings=quiet), empty=True, passers=(), front=None,
        boxes=boxes, gain=np.ones(n),
    )  # fmt: skip
    shift = np.rint((boxes[6, 0] - boxes[0, 0]) * 64).astype(int)
    assert 3 < abs(shift) < 28
    first, later = (video.render_frame(still, k).astype(int) for k in (0, 6))
    if shift < 0:
        first, later, shift = later, first, -shift
    inner = np.abs(first[:, shift + 1 : -1] - later[:, 1 : -shift - 1])  # blur differs at the edge
    assert inner.max() <= 1
    assert np.abs(first - later).mean() > 5  # not put back they differ


def test_obstacles_cross_some_tracklets_and_pass(tracks):
    seen = [t for t in tracks if t.passers or t.front is not None]
    assert 0.2 < len(seen) / len(tracks) < 0.45
    kinds = {"person" if t.passers else "car" if t.front.shape[2] > 64 else "pole" for t in seen}
    assert kinds == {"person", "car", "pole"}
    hidden = []
    for track in seen[:20]:
        free = replace(track, passers=(), front=None)
        frames = [
            (np.abs(video.render_frame(track, k).astype(int) - video.render_frame(free, k)) > 8).mean()
            for k in range(0, 20, 2)
        ]
        hidden.append(np.array(frames))
    hidden = np.array(hidden)
    assert (hidden.max(1) > 0.03).mean() > 0.8  # it covers a part of the picture,
    assert ((hidden > 0.02).sum(1) >= 2).mean() > 0.7  # for several frames,
    assert ((hidden < 0.005).any(1)).mean() > 0.5  # and mostly comes or goes


def test_frames_do_not_depend_on_the_order(tracks):
    track = tracks[0]
    forth = [video.render_frame(track, k) for k in range(4)]
    back = [video.render_frame(track, k) for k in reversed(range(4))][::-1]
    assert (np.array(forth) == np.array(back)).all()
    assert forth[0].dtype == np.uint8 and forth[0].shape == (64, 32, 3)


def test_light_flickers_a_little(tracks):
    ratios = np.concatenate([t.gain[1:] / t.gain[:-1] for t in tracks])
    assert 0.002 < ratios.std() < 0.03


# ---- strip and commands -----------------------------------------------------------------------------------
def test_strip_shows_frames_in_order(made):
    dataset = datasets.load_folder("mars", made, check_counts=False)
    page = np.asarray(strip(dataset.query, ("a", "b"), tracklets=2, frames=3, height=64, width=32))
    assert page.shape == (2 * 68, SIDE + 3 * 33, 3)
    shown = next(r for r in dataset.query if (r.pid, r.camid) == (4, 1))  # the second person, another camera
    for k in range(3):
        left = SIDE + k * 33
        with Image.open(shown.frames[k]) as image:
            assert (page[68 : 68 + 64, left : left + 32] == np.asarray(image)).all()
    pages = animate(dataset.query, tracklets=2, frames=7, height=64, width=32)
    assert len(pages) == 7 and pages[0].size == (68, 64)
    length = len(shown.frames)
    assert (np.asarray(pages[0])[:, 36:] == np.asarray(pages[length])[:, 36:]).all()  # it loops
    with pytest.raises(DataError, match="no tracklets"):
        strip([], ())


def test_commands(tmp_path, capsys):
    root, one, moving = str(tmp_path / "set"), tmp_path / "one.png", tmp_path / "moving.gif"
    flags = []
    for key, value in SMALL.items():
        flags += ["--" + key.replace("_", "-"), *map(str, value if isinstance(value, tuple) else [value])]
    assert main(["synthesize", "--root", root, *flags, "--quiet", "--sheet", str(one)]) == 0
    assert "MARS" in capsys.readouterr().out
    two = str(tmp_path / "two.png")
    shown = ["sheet", "--name", "mars", "--root", root, "--out", two, "--animate", str(moving)]
    assert main([*shown, "--ids", "1"]) == 0
    with Image.open(one) as page, Image.open(two) as other:
        assert page.height == 2 * other.height
    with Image.open(moving) as page:
        assert page.n_frames > 3
    with open(os.path.join(root, "MARS", "synthetic.json")) as f:
        assert json.load(f)["settings"]["frames"] == [3, 5]
