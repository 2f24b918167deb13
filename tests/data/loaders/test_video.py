"""Readers of the video data sets on generated trees in the published layouts, whole and damaged."""

import contextlib
import itertools
import json
import logging
import os

import numpy as np
import pytest
import video_trees as trees
from batches import opened
from loaded import labels
from scipy.io import loadmat, savemat

from reid_jax.config import defaults, namespace
from reid_jax.data import datasets
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import Options
from reid_jax.errors import ConfigError, DataError

SETS = {
    "mars": trees.mars,
    "duke_video": trees.duke,
    "ls_vid": trees.ls_vid,
    "ilids_vid": trees.ilids_vid,
    "prid_video": trees.prid,
    "lpw": trees.lpw,
}


def build(name, root, **options):
    if name == "ls_vid":
        pytest.importorskip("h5py")
    return SETS[name](root, **options)


def names(record):
    return [os.path.basename(f) for f in record.frames]


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "reid_jax")
    return lambda: [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize("name", SETS)
def test_records_are_tracklets(name, tmp_path):
    """Frames are there and absolute, the path is the first, listings in another order change nothing."""
    d = datasets.load_folder(name, build(name, tmp_path / LAYOUTS[name].names[0]))
    assert d == datasets.load_folder(name, tmp_path)  # found under its usual name
    assert d.kind == "video" and not d.drawn
    records = d.train + d.query + d.gallery
    assert all(r.frames and r.path == r.frames[0] and len(r) == len(r.frames) for r in records)
    assert all(os.path.isabs(f) and os.path.isfile(f) for r in records for f in r.frames)
    assert {r.pid for r in d.train} == set(range(d.num_train_pids))
    assert {r.pid for r in d.query} <= {r.pid for r in d.gallery}
    assert not {r.pid for r in d.query} & {0, -1}


@pytest.mark.parametrize("name", SETS)
def test_order_does_not_depend_on_the_listing(name, tmp_path, monkeypatch):
    root, scandir = build(name, tmp_path), os.scandir
    expected = datasets.load_folder(name, root)
    backwards = lambda *a: contextlib.nullcontext(list(scandir(*a))[::-1])  # noqa: E731
    monkeypatch.setattr(os, "scandir", backwards)
    assert datasets.load_folder(name, root) == expected


@pytest.mark.parametrize("name", SETS)
def test_damage_is_named(name, tmp_path):
    """Each entry a folder must have is named when it is gone, with where a copy comes from."""
    root = build(name, tmp_path / "whole")
    layout = LAYOUTS[name]
    parts = next(p for p in layout.parts if all(os.path.exists(os.path.join(root, x)) for x in p))
    for part in parts:
        path = os.path.join(root, part)
        os.rename(path, path + "_gone")
        with pytest.raises(DataError) as error:
            datasets.load_folder(name, root)
        assert part in str(error.value) and layout.source in str(error.value), part
        os.rename(path + "_gone", path)
    datasets.load_folder(name, root)


@pytest.mark.parametrize("name", SETS)
def test_unreadable_folder_is_named(name, tmp_path, monkeypatch):
    root, scandir = build(name, tmp_path), os.scandir
    victim = os.path.dirname(datasets.load_folder(name, root).train[0].path)

    def refuse(path="."):
        if str(path) == victim:
            raise PermissionError(13, "Permission denied", victim)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="(?s)cannot read the folder .*Permission denied") as error:
        datasets.load_folder(name, root)
    assert victim in str(error.value)


@pytest.mark.parametrize("name", ["mars", "ls_vid", "ilids_vid"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "key"])
def test_damaged_matrix_is_named(name, damage, tmp_path):
    root = build(name, tmp_path)
    part = [p for p in LAYOUTS[name].parts[0] if p.endswith(".mat")][-1]
    path = os.path.join(root, part)
    whole = open(path, "rb").read()
    if damage == "key" and name == "ls_vid":
        import h5py

        with h5py.File(path, "w") as f:
            f["queries"] = np.ones((1, 1))
    elif damage == "key":
        savemat(path, {"other": np.ones((1, 1))})
    else:
        content = {"empty": b"", "text": b"not a matrix" * 20, "cut": whole[: len(whole) // 2]}[damage]
        with open(path, "wb") as f:
            f.write(content)
    with pytest.raises(DataError, match=os.path.basename(part)):
        datasets.load_folder(name, root)


@pytest.mark.parametrize("kind", ["cut", pytest.param("empty", marks=pytest.mark.slow), "text"])
@pytest.mark.parametrize("name", SETS)
def test_broken_frame_stops_training_or_is_skipped(name, kind, tmp_path, warnings):
    """Loading reads no picture; training names the file, or passes over it with one warning."""
    d = datasets.load_folder(name, build(name, tmp_path))
    victim = d.train[0].frames[1]
    whole = open(victim, "rb").read()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no image"}[kind]
    with open(victim, "wb") as f:
        f.write(content)
    assert datasets.load_folder(name, tmp_path if name != "lpw" else d.root) == d
    data = namespace(defaults()["data"])
    small = dict(height=16, width=8, ids=2, instances=2, frames=22, clip="rrs", threads=1, prefetch=1)
    for k, v in small.items():
        setattr(data, k, v)
    with pytest.raises(DataError, match="cannot be read as an image.*on_broken=skip") as error:
        list(itertools.islice(opened(d, data), 12))
    assert victim in str(error.value)
    data.on_broken = "skip"
    with opened(d, data) as batches:
        assert len(list(itertools.islice(batches, 12))) == 12
    assert len([m for m in warnings() if "broken image skipped" in m and victim in m]) == 1


# ---- MARS -----------------------------------------------------------------------------------------------
def test_mars(tmp_path, warnings):
    d = datasets.load_folder("mars", trees.mars(tmp_path))
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 1) for _ in range(2)]
    assert labels(d.query) == [(p, c) for p in (1, 3, 5) for c in (0, 1)]
    # the distractor and the queries are in the gallery, junk is not
    assert labels(d.gallery) == [(0, 0)] + [(p, c) for p in (1, 3, 5) for c in (0, 1) for _ in range(2)]
    assert set(d.query) <= set(d.gallery) and d.camera_names == ("c1", "c4")
    assert [len(r) for r in d.train[:4]] == [3, 12, 3, 12]
    # lines are counted from 1, inclusive
    assert names(d.train[0]) == [trees.mars_name(2, 1, 1, f) for f in (1, 2, 3)]
    assert names(d.train[1])[::11] == [trees.mars_name(2, 1, 2, f) for f in (1, 12)]
    assert names(d.query[1]) == [trees.mars_name(1, 4, 1, f) for f in range(1, 1 + len(d.query[1]))]
    (message,) = warnings()
    assert "12 train images instead of 8298" in message


def test_mars_matrices_of_few_bits(tmp_path):
    """Line numbers beyond what 8 bits times anything hold; the rows are stored as u8 where they fit."""
    root = trees.mars(tmp_path, lengths=(1,))
    path = os.path.join(root, "info", "query_IDX.mat")
    assert loadmat(path)["query_IDX"].dtype == np.uint8
    savemat(path, {"query_IDX": np.array([[0, 3]], np.uint8)})  # 0 - 1 is 255 in 8 bits
    with pytest.raises(DataError, match=r"query_IDX.mat names rows 0 to 3; there are 14 test tracklets"):
        datasets.load_folder("mars", root)


@pytest.mark.parametrize(
    "row, column, value, message",
    [
        (1, 1, 999, "row 2 is lines 4 to 999, but .*train_name.txt has 90 lines"),
        (1, 0, 0, "row 2 is lines 0 to"),
        (0, 1, 25, "row 1 mixes identities or cameras: lines 1 to 25 of .*0002C1T0001F001.*0002C4"),
    ],
)
def test_mars_rows_that_do_not_fit(tmp_path, row, column, value, message):
    root = trees.mars(tmp_path)
    path = os.path.join(root, "info", "tracks_train_info.mat")
    table = loadmat(path)["track_train_info"]
    table[row, column] = value
    savemat(path, {"track_train_info": table})
    with pytest.raises(DataError, match=f"(?s)tracks_train_info.mat: {message}"):
        datasets.load_folder("mars", root)


def test_mars_lists(tmp_path):
    root = trees.mars(tmp_path)
    victim = datasets.load_folder("mars", root).gallery[-1].frames[1]
    os.remove(victim)
    with pytest.raises(DataError, match="1 of 105 listed images are missing") as error:
        datasets.load_folder("mars", root)
    assert victim in str(error.value)
    trees.picture(victim)
    path = os.path.join(root, "info", "test_name.txt")
    text = open(path).read()
    trees.write(path, text.replace("0005C4T0002F002.jpg", "0005C1T0002F002.jpg"))
    with pytest.raises(DataError, match=r"tracks_test_info.mat: row 14 mixes identities or cameras"):
        datasets.load_folder("mars", root)


def test_mars_names_stay_inside(tmp_path):
    root = trees.mars(tmp_path, lengths=(1,))
    path = os.path.join(root, "info", "test_name.txt")
    trees.write(path, open(path).read().replace("0005C4T0002F001.jpg", "../../../etc/passwd"))
    with pytest.raises(DataError, match=r"test_name.txt names .*etc/passwd', which lies outside"):
        datasets.load_folder("mars", root)


# ---- DukeMTMC-VideoReID ---------------------------------------------------------------------------------
@pytest.mark.parametrize("old", [False, True])
def test_duke(tmp_path, old):
    d = datasets.load_folder("duke_video", trees.duke(tmp_path, old))
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 1)]
    assert labels(d.query) == [(p, 0) for p in (1, 3, 5)]
    assert labels(d.gallery) == [(p, c) for p in (1, 3, 5, 9) for c in (0, 1)]  # nothing is appended
    assert d.camera_names == ("c1", "c6")
    assert ["F0002" in n for n in names(d.train[0])] == [True, False, False]
    assert "F0003" in names(d.train[0])[1] and "F0011" in names(d.train[0])[2]


def test_duke_frames_by_number(tmp_path):
    """F beyond four digits still comes last."""
    root = trees.duke(tmp_path)
    folder = os.path.join(root, "query", "0001", "0001")
    trees.picture(os.path.join(folder, "0001_C1_F10000_X5.jpg"))
    record = datasets.load_folder("duke_video", root).query[0]
    assert [n.split("_")[2] for n in names(record)] == ["F0002", "F0003", "F0011", "F10000"]


def test_duke_mixed_and_strange(tmp_path, warnings):
    root = trees.duke(tmp_path)
    folder = os.path.join(root, "query", "0003", "0001")
    trees.picture(os.path.join(folder, "holiday.jpg"))
    os.makedirs(os.path.join(root, "train", "0002", "0099"))
    assert len(datasets.load_folder("duke_video", root).query[1]) == 3
    assert any("2 entries" in m and "holiday.jpg" in m and "0099" in m for m in warnings())
    trees.picture(os.path.join(folder, "0003_C2_F0001_X1.jpg"))
    with pytest.raises(
        DataError, match=r"0003.0001 mixes tracklets \(identity 3 camera 1, identity 3 camera 2"
    ):
        datasets.load_folder("duke_video", root)


# ---- LS-VID ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("info", ["", "info"])
@pytest.mark.parametrize("first", [0, 6])
def test_ls_vid(tmp_path, info, first):
    d = datasets.load_folder("ls_vid", build("ls_vid", tmp_path, info=info, first=first))
    pids = [p + (first == 0) for p in range(first, first + 3)]  # 0 would mark distractors
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 1) for _ in range(2)]
    assert labels(d.query) == [(p, c) for p in pids for c in (0, 1)]
    assert labels(d.gallery) == [(p, c) for p in pids for c in (0, 1) for _ in range(2)]
    assert set(d.query) <= set(d.gallery) and d.camera_names == ("c2", "c15")
    assert names(d.train[1]) == [f"0000_1_02_0303morning_{f:04d}.jpg" for f in range(3)]
    assert [n[5] for r in d.query for n in names(r)] == ["0"] * 18  # rows 1, 3, 5, ... from 1


def test_ls_vid_lists(tmp_path):
    root = build("ls_vid", tmp_path)
    path = os.path.join(root, "list_sequence", "list_seq_train.txt")
    text = open(path).read()
    for line, message in (
        ("/tracklet_train/0000/0000_7_02_0303morning 0", "lists .*0000_7_02_0303morning.*no such image"),
        ("/tracklet_train/0000/0000_0 0", r"line 1, .*0000_0\*, mixes the cameras \[2, 15\]"),
        ("/tracklet_train/0000/0000_0_02_0303morning", "line 1 is not a path and an identity"),
        ("../0000_0_02_0303morning 3", "lies outside"),
        ("", None),
    ):
        trees.write(path, (line + "\n" if line else "") + text)
        if message is None:
            assert len(datasets.load_folder("ls_vid", root).train) == 12
            continue
        with pytest.raises(DataError, match=message):
            datasets.load_folder("ls_vid", root)
    trees.picture(os.path.join(root, "tracklet_train", "0009", "x.jpg"))
    trees.write(path, "/tracklet_train/0009/x 9\n" + text)
    with pytest.raises(DataError, match=r"x.jpg, listed in .* no camera as the third field"):
        datasets.load_folder("ls_vid", root)


def test_ls_vid_without_h5py(tmp_path, monkeypatch):
    import sys

    root = build("ls_vid", tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"info_test.mat is an HDF5 file: install the extra `datasets`"):
        datasets.load_folder("ls_vid", root)


# ---- iLIDS-VID ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nested", [True, False])
def test_ilids_vid(tmp_path, nested):
    root = trees.ilids_vid(tmp_path, nested)
    d = datasets.load_folder("ilids_vid", root)
    # places 2, 6, 3 of the persons 1, 2, 4, 8, 16, 32
    assert labels(d.query) == [(p, 0) for p in (2, 4, 32)]
    assert labels(d.gallery) == [(p, 1) for p in (2, 4, 32)]
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 1)]
    assert names(d.train[2])[0] == "cam1_person008_00099.png"
    other = datasets.load_folder("ilids_vid", root, Options(split=1))
    assert [r.pid for r in other.query] == [1, 8, 16]
    with pytest.raises(ConfigError, match="splits 0 to 9"):
        datasets.load_folder("ilids_vid", root, Options(split=10))


def test_ilids_vid_damaged(tmp_path):
    root = trees.ilids_vid(tmp_path)
    sequences = os.path.join(root, "i-LIDS-VID", "sequences")
    foreign = trees.picture(os.path.join(sequences, "cam1", "person004", "cam1_person008_00001.png"))
    with pytest.raises(DataError, match="is no frame of camera 1, person 4"):
        datasets.load_folder("ilids_vid", root)
    os.remove(foreign)
    for camera in ("cam2", "cam1"):
        os.rename(os.path.join(sequences, camera, "person016"), tmp_path / f"{camera}16")
        message = "1 person folders are in one camera only, first person016"
        if camera == "cam1":
            message = "row 1 is no arrangement of 1 to 5"
        with pytest.raises(DataError, match=message):
            datasets.load_folder("ilids_vid", root)


def test_ilids_vid_empty_person(tmp_path):
    root = trees.ilids_vid(tmp_path)
    folder = os.path.join(root, "i-LIDS-VID", "sequences", "cam2", "person001")
    for n in os.listdir(folder):
        os.remove(os.path.join(folder, n))
    with pytest.raises(DataError, match="person001 holds no image"):
        datasets.load_folder("ilids_vid", root)


# ---- PRID2011 -------------------------------------------------------------------------------------------
def test_prid(tmp_path):
    root = trees.prid(tmp_path / "prid_2011")
    for beside in (False, True):
        if beside:
            os.rename(os.path.join(root, "splits_prid2011.json"), tmp_path / "splits_prid2011.json")
        d = datasets.load_folder("prid_video", root)
        assert labels(d.query) == [(p, 0) for p in (5, 6, 7, 8)] and labels(d.gallery) == [
            (p, 1) for p in (5, 6, 7, 8)
        ]
        other = datasets.load_folder("prid_video", root, Options(split=1))
        assert [r.pid for r in other.query] == [2, 4, 6, 8] and not other.drawn


def test_prid_draws_without_the_list(tmp_path, warnings):
    """The eight persons with more than 21 frames in both cameras; the draw is written down."""
    root = trees.prid(tmp_path / "prid", splits=False)
    found = [datasets.load_folder("prid_video", root, Options(split=s, seed=3)) for s in (0, 0, 1)]
    assert found[0] == found[1] and found[0] != found[2]
    for d in found:
        test = [r.pid for r in d.query]
        train = [int(n[-4:]) for n in d.drawn["train"]]
        assert (
            sorted(test + train) == list(range(1, 9))
            and len(test) == 4
            and test == [r.pid for r in d.gallery]
        )
    assert any("has no splits_prid2011.json: split 0 is drawn from its 8 persons" in m for m in warnings())
    data = namespace(defaults()["data"])
    data.name, data.root, data.ids, data.split_seed = "prid_video", root, 2, 3
    datasets.load(data, str(tmp_path / "run"))
    stored = json.loads((tmp_path / "run" / "split.json").read_text())
    assert stored["train"] == found[0].drawn["train"] and stored["seed"] == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "has no split 0"),
        ("{}", "has no split 0"),
        ("[]", "has no split 0"),
        ('[{"train": ["person_0001"]}]', "has no split 0.*test"),
        ('[{"train": ["person_0001"], "test": ["person_0010"]}]', "names person_0010 and 0 others"),
    ],
)
def test_prid_damaged_list(tmp_path, text, message):
    root = trees.prid(tmp_path)
    trees.write(os.path.join(root, "splits_prid2011.json"), text)
    with pytest.raises(DataError, match=f"splits_prid2011.json {message}"):
        datasets.load_folder("prid_video", root)


# ---- LPW ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slim", [False, True])
def test_lpw(tmp_path, slim):
    trees.lpw(tmp_path / "pep_256x128" / ("data_slim" if slim else ""))
    d = datasets.load_folder("lpw", tmp_path)
    # a number is another person in another scene, a view another camera
    assert d.num_train_pids == 4 and len(d.train) == 16 and d.num_cams == 8
    assert len({(r.pid, r.camid) for r in d.train}) == 16
    assert d.camera_names[0] == "scen2 view1" and d.camera_names[9] == "scen1 view2"
    assert labels(d.query) == [(100001, 9), (100002, 9)]
    assert labels(d.gallery) == [(p, c) for c in (8, 10) for p in (100001, 100002)]
    assert names(d.query[0]) == ["1.jpg", "2.jpg", "10.jpg"]
    assert d.query[0].path.endswith(os.path.join("scen1", "view2", "1", "1.jpg"))


def test_lpw_strange(tmp_path, warnings):
    root = trees.lpw(tmp_path)
    os.makedirs(os.path.join(root, "scen2", "views"))
    os.makedirs(os.path.join(root, "scen2", "view1", "7"))
    assert len(datasets.load_folder("lpw", root).train) == 16
    assert any("2 entries" in m for m in warnings())


# ---- long tracklets -------------------------------------------------------------------------------------
def test_split_tracklets(tmp_path):
    data = namespace(defaults()["data"])
    data.name, data.root, data.ids = "mars", trees.mars(tmp_path / "mars", lengths=(3, 14)), 2
    whole = datasets.load(data, "")
    data.split_tracklets = 4
    d = datasets.load(data, "")
    assert (d.query, d.gallery) == (whole.query, whole.gallery)
    assert [len(r) for r in d.train[:4]] == [3, 4, 4, 6]  # the last piece keeps the remainder
    for r in whole.train:
        own = [f for p in d.train if set(p.frames) <= set(r.frames) for f in p.frames]
        assert tuple(own) == r.frames
    assert all(r.path == r.frames[0] for r in d.train)
    for bad in (dict(split_tracklets=-1), dict(name="market1501", source="folder")):
        for k, v in bad.items():
            setattr(data, k, v)
        with pytest.raises((ConfigError, DataError)):
            datasets.load(data, "")
