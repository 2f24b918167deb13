"""Synthetic low-resolution and low-light sets: DI-REID's folders, levels, table, determinism."""

import csv
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from trees import files

from reid_jax import cli, config
from reid_jax.data import datasets
from reid_jax.data.__main__ import main
from reid_jax.data.synthetic import degrade, generate, kinds
from reid_jax.errors import DataError

KINDS = ("lowres", "caviar", "lowlight")
SMALL = dict(train_ids=2, test_ids=2, cameras=3, images=2, height=64, width=32, seed=5)
NAME = re.compile(r"(train|query|gallery)/(\d{4})/(\d{5})_c(\d)_(\d{5})\.jpg")
SETTINGS = dict(train_ids=150, test_ids=50, cameras=2, images=2, height=64, width=32, strength=1.0, seed=1)


def make(root, kind, **changes):
    return generate(str(root), kind=kind, **{**SMALL, **changes}, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    return {kind: make(root, kind) for kind in KINDS}  # side by side


def table(folder):
    """{path: {column: float}} of degradation.csv."""
    with open(os.path.join(folder, "degradation.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    return {row.pop("path"): {k: float(v) for k, v in row.items()} for row in rows}


def pixels(folder, path):
    with Image.open(os.path.join(folder, path)) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def clean(shot, settings):
    return kinds.draw(shot, {"strength": 1.0, **settings})[0]


# ---- files ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_table(made, kind):
    folder = made[kind]
    paths = {name for name in files(folder) if name.endswith(".jpg")}
    assert paths == set(table(folder))
    parts = [NAME.fullmatch(path).groups() for path in paths]
    assert all(int(short) == int(pid) for _, short, pid, _, _ in parts)
    where = {(int(pid), int(cam), int(n)): split for split, _, pid, cam, n in parts}
    assert set(where) == {(p, c, n) for p in (1, 2, 3, 4) for c in range(3) for n in range(2)}
    for (pid, cam, n), split in where.items():
        query = n == 0 if kind == "lowlight" else cam == 0
        assert split == ("train" if pid <= 2 else "query" if query else "gallery")


@pytest.mark.parametrize("kind", KINDS)
def test_queries_are_degraded_and_the_gallery_is_clean(made, kind):
    levels = table(made[kind])
    for path, level in levels.items():
        degraded = level["ratio"] > 1 or level["gamma"] > 1
        if path.startswith("query/"):
            assert degraded
        if path.startswith("gallery/"):
            assert not degraded and set(level.values()) == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_have_the_size_of_the_table(made, kind):
    for path, level in table(made[kind]).items():
        height, width = pixels(made[kind], path).shape[:2]
        assert (height, width) == (round(64 / level["ratio"]), round(32 / level["ratio"]))
        assert (level["ratio"] > 1) == (kind != "lowlight" and "_c0_" in path)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_pictures_are_those_of_the_image_set(made, kind):
    checked = 0
    for path in files(made[kind]):
        match = NAME.fullmatch(path)
        if match and match[1] == "gallery":
            shot = degrade.Shot("gallery", *map(int, match.groups()[2:]))
            assert np.abs(pixels(made[kind], path) - clean(shot, SMALL)).mean() < 3  # JPEG
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_readers_take_it(made, kind):
    layout = "caviar" if kind == "caviar" else "mlr_viper"
    dataset = datasets.load_folder(layout, made[kind], check_counts=False)
    assert len(dataset.train) == 12
    assert {r.pid for r in dataset.query} == {r.pid for r in dataset.gallery} == {3, 4}
    cameras = ({0, 1, 2}, {0, 1, 2}) if kind == "lowlight" else ({0}, {1, 2})
    assert ({r.camid for r in dataset.query}, {r.camid for r in dataset.gallery}) == cameras


@pytest.mark.parametrize(("kind", "protocol"), [("lowres", "single-shot"), ("lowlight", "market")])
def test_a_config_names_the_kind(tmp_path, kind, protocol):
    tree = config.defaults()["data"]
    settings = {**tree["synthetic"], **SMALL, "kind": kind}
    tree.update(name="synthetic", ids=2, synthetic=SimpleNamespace(**settings))
    dataset = datasets.load(SimpleNamespace(**tree), str(tmp_path))
    assert (dataset.name, dataset.protocol) == ("synthetic", protocol)
    low = "" if kind == "lowlight" else " low"
    assert dataset.camera_names == (f"c0 street{low}", "c1 snow", "c2 indoor")


@pytest.mark.parametrize("kind", KINDS)
def test_other_worker_counts_give_the_same_bytes(made, tmp_path, kind):
    assert files(make(tmp_path, kind, workers=2)) == files(made[kind])


def test_an_interrupted_run_goes_on(made, tmp_path, monkeypatch):
    drawn, draw = [], kinds.draw

    def stop_at_five(job, *rest):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(job)
        return draw(job, *rest)

    monkeypatch.setattr(kinds, "draw", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "lowlight")
    assert os.listdir(tmp_path) == [".partial-low-light"]
    monkeypatch.setattr(kinds, "draw", lambda job, *rest: drawn.append(job) or draw(job, *rest))
    assert files(make(tmp_path, "lowlight")) == files(made["lowlight"])
    assert len(drawn) == 24 and len(set(drawn)) == 24


def test_one_picture_a_camera_will_do_where_cameras_are_the_split(tmp_path):
    dataset = datasets.load_folder("mlr_viper", make(tmp_path, "lowres", images=1), check_counts=False)
    assert (len(dataset.query), len(dataset.gallery)) == (2, 4)
    with pytest.raises(DataError, match="images = 1"):
        make(tmp_path, "lowlight", images=1)


# ---- levels ---------------------------------------------------------------------------------------------
def levels(kind):
    settings = {**SETTINGS, "kind": kind}
    return [(shot, degrade.level_of(shot, settings)) for group in degrade.shots(settings) for shot in group]


def test_lowres_draws_each_ratio_as_often():
    ratios = [level.ratio for shot, level in levels("lowres") if shot.cam == 0]
    assert len(ratios) == 400 and {float(r) for r in ratios} == {2.0, 3.0, 4.0}
    assert all(ratios.count(r) > 0.25 * len(ratios) for r in (2, 3, 4))


def test_caviar_is_low_by_any_ratio_and_noisy():
    low = np.array([level for shot, level in levels("caviar") if shot.cam == 0])
    assert low[:, 0].min() < 2.2 and low[:, 0].max() > 4.3 and len(np.unique(low[:, 0])) > 300
    assert (low[:, 3] >= 0.6).all() and (low[:, 4] >= 2).all()


def test_lowlight_darkens_half_of_each_camera_in_training():
    train = [(shot.cam, level) for shot, level in levels("lowlight") if shot.split == "train"]
    for cam in (0, 1):
        dark = [level.gamma > 1 for c, level in train if c == cam]
        assert 0.4 < np.mean(dark) < 0.6
    gammas = [level.gamma for _, level in train if level.gamma > 1]
    assert min(gammas) < 2.1 and max(gammas) > 3.4 and 2 <= min(gammas) and max(gammas) <= 3.5


def first(kind, **changes):
    """(shot, level, settings) of the first query."""
    settings = {**SETTINGS, "kind": kind, **changes}
    shot = next(s for group in degrade.shots(settings) for s in group if s.split == "query")
    return shot, degrade.level_of(shot, settings), settings


def test_lowres_is_pils_bicubic_filter():
    shot, level, settings = first("lowres")
    picture = clean(shot, settings)
    size = round(32 / level.ratio), round(64 / level.ratio)
    wanted = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    assert (degrade.degrade(picture, shot, settings) == wanted).all()


def test_darkening_is_the_published_table():
    for gamma, gain in ((2.0, 1.0), (3.5, 0.75), (2.7182, 0.9)):
        value = np.arange(256) / 255
        wanted = np.trunc(255.999 * gain * value**gamma)
        np.testing.assert_allclose(degrade.darkening(gamma, gain), wanted, atol=1e-9)


def test_lowlight_noise_has_the_deviation_of_the_table():
    shot, level, settings = first("lowlight")
    grey = np.full((256, 128, 3), 200, np.uint8)
    dark = degrade.degrade(grey, shot, settings).astype(float)
    mean = int(255.999 * level.gain * (200 / 255) ** level.gamma)
    assert mean > 20 and abs(dark.mean() - mean) < 0.5
    deviation = (
        level.noise * (0.15 + 0.85 * mean / 255) ** 0.5 * 1.25**0.5
    )  # one part is common to the colours
    assert dark.std() == pytest.approx(deviation, rel=0.05)


def test_caviar_keeps_less_detail_than_lowres():
    """Of the same ratio: its own blur takes more away than its noise brings."""
    shot, level, settings = first("caviar")
    picture = clean(shot, settings)
    poor = degrade.degrade(picture, shot, settings)
    size = round(32 / level.ratio), round(64 / level.ratio)
    plain = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    assert poor.shape == plain.shape
    ours, theirs = (
        np.asarray(Image.fromarray(p).resize((8, 16), Image.Resampling.BOX)) for p in (poor, plain)
    )
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9  # the same scene
    assert ours.astype(float).std() < theirs.astype(float).std()


def test_commands(tmp_path, capsys):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    page = tmp_path / "page.png"
    command = ["synthesize", "--root", str(tmp_path), "--kind", "lowlight", *flags, "--quiet"]
    assert main([*command, "--sheet", str(page)]) == 0
    assert "low-light" in capsys.readouterr().out and page.exists()
    command[command.index("lowlight")] = "fog"
    assert cli.exit_code(main, command) == 2
    assert "kind = 'fog' must be one of image, video, lowres" in capsys.readouterr().err
