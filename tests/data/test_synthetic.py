"""The synthetic set: layout, determinism, what identities and cameras change, recovery, sheet, commands."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from trees import files

from reid_jax import cli
from reid_jax.data.__main__ import main
from reid_jax.data.synthetic import FOLDER, camera_names, generate, sheet, stored_camera_names
from reid_jax.data.synthetic.camera import ENVIRONMENTS, draw_shot, make_camera
from reid_jax.data.synthetic.figure import Pose, draw_figure
from reid_jax.data.synthetic.painter import View, unit
from reid_jax.data.synthetic.person import PALETTE, draw_person
from reid_jax.data.synthetic.picture import render, view_of
from reid_jax.data.synthetic.pose import leg_angles, skeleton
from reid_jax.data.synthetic.sheet import sheet_size
from reid_jax.errors import DataError

SMALL = dict(train_ids=2, test_ids=2, cameras=3, images=2, height=64, width=32, distractors=3, junk=2, seed=5)
NAME = re.compile(r"(-1|\d{4})_c([1-9])s\d_\d{6}_\d{2}\.jpg")


def make(root, **changes):
    return generate(str(root), **{**SMALL, **changes}, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("synthetic"))


def parse(folder, split):
    out = []
    for name in sorted(os.listdir(os.path.join(folder, split))):
        pid, cam = NAME.fullmatch(name).groups()
        path = os.path.join(folder, split, name)
        out.append(SimpleNamespace(path=path, pid=int(pid), camid=int(cam) - 1))
    return out


def test_layout_names_and_counts(made):
    assert os.path.basename(made) == FOLDER
    train, query, test = (parse(made, s) for s in ("bounding_box_train", "query", "bounding_box_test"))
    assert (len(train), len(query), len(test)) == (12, 6, 6 + 3 + 2)
    assert {r.pid for r in train} == {1, 2}
    assert {r.pid for r in query} == {3, 4}
    assert sorted((r.pid, r.camid) for r in query) == [(p, c) for p in (3, 4) for c in range(3)]
    assert sorted(r.pid for r in test) == [-1] * 2 + [0] * 3 + [3] * 3 + [4] * 3
    for record in train + query + test:
        with Image.open(record.path) as image:
            assert image.format == "JPEG" and image.size == (32, 64) and image.mode == "RGB"


def test_each_query_has_a_match_of_another_camera(made):
    gallery = parse(made, "bounding_box_test")
    for query in parse(made, "query"):
        assert any(g.pid == query.pid and g.camid != query.camid for g in gallery)


def test_the_folder_loader_reads_it(made):
    load_folder = pytest.importorskip("reid_jax.data.datasets").load_folder
    dataset = load_folder("market1501", made)
    assert (len(dataset.train), len(dataset.query)) == (12, 6)
    assert len(dataset.gallery) == 6 + 3  # junk is dropped, distractors stay


def test_a_rerun_and_other_worker_counts_give_the_same_bytes(made, tmp_path):
    two = make(tmp_path / "two", workers=2)
    assert files(two) == files(made)


def test_a_picture_does_not_depend_on_the_other_settings_of_the_set(made, tmp_path):
    more = files(make(tmp_path, train_ids=3, images=3, distractors=0, cameras=2))
    name = os.path.join("bounding_box_train", "0001_c2s1_000026_02.jpg")
    assert more[name] == files(made)[name]


def test_another_seed_gives_other_pictures(made, tmp_path):
    other, first = files(make(tmp_path, seed=6)), files(made)
    assert set(other) == set(first)
    assert not [k for k in first if k.endswith(".jpg") and first[k] == other[k]]


def test_existing_set_is_returned_at_once(made):
    before = {k: os.stat(os.path.join(made, k)).st_mtime_ns for k in files(made)}
    assert make(os.path.dirname(made)) == made
    assert before == {k: os.stat(os.path.join(made, k)).st_mtime_ns for k in files(made)}


def test_other_settings_are_refused_by_name(made):
    with pytest.raises(DataError, match=r"seed = 5 \(asked: 9\).*another --root"):
        make(os.path.dirname(made), seed=9)


def test_a_foreign_set_is_not_touched(tmp_path):
    real = tmp_path / FOLDER / "query"
    real.mkdir(parents=True)
    (real / "0001_c1s1_000001_00.jpg").write_bytes(b"real")
    with pytest.raises(DataError, match="did not make"):
        make(tmp_path)
    assert list(files(tmp_path).values()) == [b"real"]


@pytest.mark.parametrize(
    "change",
    [dict(images=1), dict(cameras=1), dict(cameras=10), dict(strength=2.0), dict(seed=-1), dict(height=1.5)],
)
def test_bad_values_name_the_field(tmp_path, change):
    with pytest.raises(DataError, match=next(iter(change))):
        make(tmp_path, **change)
    assert not os.listdir(tmp_path)


def test_an_interrupted_run_goes_on(made, tmp_path, monkeypatch):
    from reid_jax.data.synthetic import kinds

    drawn, draw = [], kinds.draw

    def stop_at_seven(job, *rest):
        if len(drawn) == 7:
            raise KeyboardInterrupt
        drawn.append(job)
        return draw(job, *rest)

    monkeypatch.setattr(kinds, "draw", stop_at_seven)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert not (tmp_path / FOLDER).exists()
    partial = tmp_path / (".partial-" + FOLDER)
    (partial / "query" / "x.jpg.tmp-1").write_bytes(b"half")
    os.utime(partial / "query" / "x.jpg.tmp-1", (1, 1))

    def count(job, *rest):
        drawn.append(job)
        return draw(job, *rest)

    monkeypatch.setattr(kinds, "draw", count)
    assert files(make(tmp_path)) == files(made)
    assert len(drawn) == 29 and len(set(drawn)) == 29  # nothing twice
    assert not partial.exists()


def test_what_a_run_with_other_settings_left_is_not_used(made, tmp_path):
    partial = tmp_path / (".partial-" + FOLDER)
    (partial / "query").mkdir(parents=True)
    (partial / "settings.json").write_text(json.dumps({"seed": 1}))
    (partial / "query" / "0003_c1s1_000003_01.jpg").write_bytes(b"old")
    assert files(make(tmp_path)) == files(made)


# ---- people ---------------------------------------------------------------------------------------------
def plain_view(yaw, height=128):
    return View(yaw, 0.1, 0.86 * height, (height / 4, 0.94 * height), unit(-0.3, -0.7, 0.6), 0.6, 0.5)


def test_soles_touch_the_ground_and_bones_keep_their_length():
    person = draw_person(np.random.default_rng(3))
    for phase in np.linspace(0, 1, 9):
        s = skeleton(person, phase, 1.0)
        soles = [a[1] - 0.046 for a in s.ankles] + [t[1] - 0.02 for t in s.toes]
        assert min(soles) == pytest.approx(0, abs=1e-9)
        for i in (0, 1):
            thigh = np.linalg.norm(np.subtract(s.hips[i], s.knees[i]))
            assert thigh == pytest.approx(0.245 * person.legs, rel=1e-6)


def test_the_walk_is_periodic_and_smooth():
    assert leg_angles(0.3, 1.0) == pytest.approx(leg_angles(7.3, 1.0))
    at = np.array([leg_angles(p, 1.0) for p in np.linspace(0, 2, 401)])
    assert np.abs(np.diff(at, axis=0)).max() < 0.05  # radians per half per cent of a cycle


def test_contact_shadow_lies_at_the_lowest_drawn_pixel():
    rng = np.random.default_rng(0)
    for k in range(12):
        person = draw_person(rng)
        pose = Pose(k / 12, 1.0, 0.0, 0.0, 0.0, 0.0)
        rgba, contacts = draw_figure(person, pose, plain_view(k * 0.52), 128, 64)
        lowest = np.flatnonzero(rgba[3].max(1) > 0.5)[-1]
        standing = min(contacts, key=lambda c: c[3])
        assert standing[3] < 1e-6 and abs(standing[1] - lowest) < 2.5


def test_front_side_and_back_differ_and_alpha_is_premultiplied():
    person = draw_person(np.random.default_rng(11))
    views = [
        draw_figure(person, Pose(0.1, 1, 0, 0, 0, 0), plain_view(y), 128, 64)[0]
        for y in (0, np.pi / 2, np.pi)
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(views[a] - views[b]).mean() > 0.01
    for rgba in views:
        assert rgba.dtype == np.float32 and 0 <= rgba.min() and rgba[3].max() <= 1 + 1e-6
        assert (rgba[:3] <= 1.4 * rgba[3] + 1e-5).all()


def test_people_share_a_palette_of_fifteen_garment_colours():
    colours = np.array(list(PALETTE.values()))
    assert len(colours) == 15
    people = [draw_person(np.random.default_rng([0, 1, i])) for i in range(300)]
    nearest = [np.abs(colours - p.upper_colour).max(1) for p in people]
    assert all(d.min() < 0.04 for d in nearest)
    assert len({int(d.argmin()) for d in nearest}) == 15


def garment(camera, shot, person):
    """Mean colour of the middle of the trunk."""
    picture = render(person, camera, shot).astype(float)
    view = view_of(camera, shot, person.height)
    x, y = round(view.foot[0]), round(view.foot[1] - 0.68 * view.size * person.height)
    return picture[y - 4 : y + 4, x - 3 : x + 4].mean((0, 1))


def test_pictures_of_a_person_differ_but_keep_the_garment_colour():
    camera = make_camera(0, seed=0, height=128, width=64, strength=0.0)
    within, means = [], []
    rng = np.random.default_rng(4)
    people = [draw_person(np.random.default_rng([2, i])) for i in range(150)]
    people = [p for p in people if p.pattern == "plain" and p.bag == "none" and p.arms == "swing"][:8]
    for person in people:
        shots = [draw_shot(rng, camera) for _ in range(4)]
        shots = [s.__class__(**{**s.__dict__, "front": -1}) for s in shots]
        pictures = [render(person, camera, s) for s in shots]
        assert all((pictures[0] != p).mean() > 0.3 for p in pictures[1:])
        values = np.array([garment(camera, s, person) for s in shots])
        within.append(values.std(0).mean())
        means.append(values.mean(0))
    assert len(people) == 8
    assert np.std(means, axis=0).mean() > 2.5 * np.mean(within)


def test_walk_moves_on_smoothly():
    camera = make_camera(1, seed=0, height=64, width=32, strength=1.0)
    person = draw_person(np.random.default_rng(1))
    shot = draw_shot(np.random.default_rng(2), camera)
    steps = [render(person, camera, shot.walk(k / 25)).astype(float) for k in range(3)]
    assert 0 < np.abs(steps[1] - steps[0]).mean() < 12
    assert np.abs(steps[2] - steps[0]).mean() >= np.abs(steps[1] - steps[0]).mean() * 0.9


# ---- cameras --------------------------------------------------------------------------------------------
def camera_means(strength):
    means = []
    for index in range(len(ENVIRONMENTS)):
        camera = make_camera(index, seed=0, height=64, width=32, strength=strength)
        pictures = []
        for k in range(6):
            person = draw_person(np.random.default_rng([1, k]))
            pictures.append(render(person, camera, draw_shot(np.random.default_rng([3, k, index]), camera)))
        means.append(np.mean(pictures, axis=(0, 1, 2)))
    return np.array(means)


def test_strength_scales_how_cameras_differ():
    none, half, full = (np.std(camera_means(s), axis=0).mean() for s in (0.0, 0.5, 1.0))
    assert none < 0.3 * full
    assert none < half < full


def test_cameras_repeat_environments_with_other_places():
    names = camera_names(8)
    assert names[0] == "c1 street" and names[6] == "c7 street"
    a, b = (make_camera(i, seed=0, height=64, width=32, strength=1.0) for i in (0, 6))
    assert a.name == b.name and a.settings != b.settings
    assert np.abs(a.picture - b.picture).mean() > 0.05


def test_render_is_a_pure_function():
    camera = make_camera(1, seed=0, height=64, width=32, strength=1.0)
    person, shot = draw_person(np.random.default_rng(0)), draw_shot(np.random.default_rng(1), camera)
    first = render(person, camera, shot)
    render(None, camera, draw_shot(np.random.default_rng(2), camera))
    assert first.dtype == np.uint8 and first.shape == (64, 32, 3)
    assert (render(person, camera, shot) == first).all()


def test_styles_are_domains(tmp_path, made):
    """All cameras of one environment, the next style of the next; 0 is as before."""
    tiny = dict(train_ids=1, test_ids=1, height=32, width=16, distractors=1, junk=1)
    folders = {style: make(tmp_path / str(style), style=style, **tiny) for style in (1, 2, 7)}
    names = {style: {n.split()[1] for n in stored_camera_names(folder)} for style, folder in folders.items()}
    assert names == {1: {ENVIRONMENTS[0]}, 2: {ENVIRONMENTS[1]}, 7: {ENVIRONMENTS[0]}}
    assert len({tuple(sorted(files(folder).values())) for folder in folders.values()}) == 3
    with open(os.path.join(made, "synthetic.json")) as f:
        assert "style" not in json.load(f)["settings"]  # so that older sets are found again
    with pytest.raises(DataError, match="style = 1 is for kind image"):
        generate(str(tmp_path), kind="video", style=1)


# ---- sheet and commands -----------------------------------------------------------------------------------
def test_sheet_shows_each_cell_at_its_place(made):
    records = parse(made, "query")
    page = sheet(records, camera_names(3), ids=8, height=64, width=32)
    assert page.size == sheet_size(2, 3, 1, 64, 32)
    pixels = np.asarray(page)
    for row, pid in enumerate((3, 4)):
        for column in range(3):
            path = next(r.path for r in records if (r.pid, r.camid) == (pid, column))
            top, left = 22 + row * 68, 62 + column * 36
            with Image.open(path) as image:
                assert (pixels[top : top + 64, left : left + 32] == np.asarray(image)).all()


def test_sheet_without_pictures_is_refused():
    with pytest.raises(DataError, match="no images"):
        sheet([], camera_names(2))


def test_commands(tmp_path, capsys):
    pytest.importorskip("reid_jax.data.datasets")
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    root, one, two = str(tmp_path / "set"), tmp_path / "a" / "one.png", tmp_path / "two.png"
    assert main(["synthesize", "--root", root, *flags, "--quiet", "--sheet", str(one)]) == 0
    assert FOLDER in capsys.readouterr().out
    assert main(["sheet", "--root", root, "--out", str(two), "--ids", "1"]) == 0
    with Image.open(two) as page:
        assert page.size == sheet_size(1, 3)
    with Image.open(one) as page:
        assert page.size == sheet_size(2, 3, 2)
    assert cli.exit_code(main, ["synthesize", "--root", root, *flags, "--seed=1", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "seed" in error
