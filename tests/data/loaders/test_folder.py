"""One's own pictures: labels.csv or names, given and drawn splits, and every fault of a CSV."""

import os
import shutil

import pytest
from loaded import labels
from trees import folder, market, picture

from reid_jax.config import defaults, namespace
from reid_jax.data import datasets
from reid_jax.data.loaders.common import Options
from reid_jax.errors import ConfigError, DataError


def load(root, **options):
    return datasets.load_folder("folder", root, Options(**options))


def write_csv(root, lines, name="labels.csv"):
    path = os.path.join(root, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    return path


def own(root, split=True, tracklet=False):
    """Pictures in one folder with names that say nothing, labelled by names in a CSV."""
    lines = ["path,pid,camid" + ",split" * split + ",tracklet" * tracklet]
    number = 0
    for person in ("ann", "bob", "eve", "joe"):
        for camera in ("door", "hall"):
            for i in (0, 1):
                picture(root, "pictures", f"{number:03d}.png")
                part = "train" if person < "c" else "gallery" if i else "query"
                fields = [f"pictures/{number:03d}.png", person, camera]
                fields += [part] * split + [f"{person}-{camera}"] * tracklet
                lines.append(",".join(fields))
                number += 1
    return lines


def test_sub_folders(tmp_path):
    d = load(folder(tmp_path / "x"))
    assert labels(d.train) == [(p, c) for p in range(3) for c in (0, 0, 1, 1)]
    assert labels(d.query) == labels(d.gallery) == [(p, c) for p in (4, 5, 6) for c in (0, 1)]
    assert d.camera_names == ("c1", "c2") and d.protocol == "market" and not d.drawn


def test_pattern(tmp_path, caplog):
    root = str(tmp_path)
    for split in ("train", "query", "gallery"):
        for cam in ("north", "south"):
            for pid in ("p1", "p2"):
                picture(root, split, f"{cam}-{pid}-{split}.png")
    picture(root, "train", "other.png")
    pattern = r"(?P<camera>[a-z]+)-(?P<pid>p\d)"
    d = load(root, pattern=pattern)
    assert labels(d.train) == [(0, 0), (1, 0), (0, 1), (1, 1)] and d.camera_names == ("north", "south")
    assert labels(d.query) == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert "1 entries" in caplog.text and "other.png" in caplog.text
    with pytest.raises(ConfigError, match="config.data.pattern .* no regular expression"):
        load(root, pattern="(")
    with pytest.raises(ConfigError, match="has no group camera"):
        load(root, pattern=r"(?P<pid>\d+)")
    os.rename(os.path.join(root, "query"), os.path.join(root, "queries"))
    with pytest.raises(DataError, match="has a folder train and gallery but none of query"):
        load(root, pattern=pattern)


def test_names_without_split_are_drawn(tmp_path):
    root = folder(tmp_path / "x", splits=False)
    d = load(root)
    train = d.drawn["train_ids"]
    assert len(train) == 3 and len(d.train) == 12
    test = [p for p in range(1, 7) if p not in train]
    assert labels(d.query) == labels(d.gallery) == [(p, c) for p in test for c in (0, 1)]
    assert all("_000000_" in r.path for r in d.query) and all("_000001_" in r.path for r in d.gallery)
    assert load(root) == d
    assert len({tuple(load(root, seed=s).drawn["train_ids"]) for s in range(10)}) > 3
    assert len(load(root, train_share=0.9).drawn["train_ids"]) == 5  # one at least is tested
    for share in (0, 1, -0.5, 2.0):
        with pytest.raises(ConfigError, match="train_share is"):
            load(root, train_share=share)


def test_one_picture_in_each_camera(tmp_path):
    for pid in range(4):
        for cam in (1, 2):
            picture(tmp_path, f"{pid}_c{cam}.png")
    d = load(tmp_path)
    assert d.query == d.gallery and len(d.query) == 4  # of other cameras, evaluation finds them
    assert sorted({r.pid for r in d.query} | set(d.drawn["train_ids"])) == [1, 2, 3, 4]
    with pytest.raises(DataError, match="(?s)no usable image for train.*labels.csv"):
        (tmp_path / "empty").mkdir()
        load(tmp_path / "empty")


def test_csv(tmp_path):
    write_csv(tmp_path, own(tmp_path))
    d = load(tmp_path)
    assert labels(d.train) == [(p, c) for p in (0, 1) for c in (0, 0, 1, 1)]
    assert labels(d.query) == labels(d.gallery) == [(p, c) for p in (3, 4) for c in (0, 1)]
    assert d.camera_names == ("door", "hall") and d.kind == "image"
    assert d.train[0].path == str(tmp_path / "pictures" / "000.png")


def test_csv_elsewhere_with_integers_and_byte_order_mark(tmp_path):
    root, elsewhere = tmp_path / "x", tmp_path / "my labels.csv"
    lines = own(root)
    numbers = {"ann": "7", "bob": "0", "eve": "12", "joe": "-1", "door": "31", "hall": "4"}
    for name, number in numbers.items():
        lines = [line.replace(name, number) for line in lines]
    elsewhere.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    d = load(root, csv=str(elsewhere))
    # a person 0 moves all up by one; junk is dropped
    assert {r.pid for r in d.query} == {13} and d.num_train_pids == 2
    assert d.camera_names == ("c4", "c31")
    with pytest.raises(DataError, match="config.data.csv: .*none.csv is no file"):
        load(root, csv=str(tmp_path / "none.csv"))


def test_csv_without_split_is_drawn(tmp_path):
    write_csv(tmp_path, own(tmp_path, split=False))
    d = load(tmp_path, train_share=0.25)
    assert len(d.drawn["train_ids"]) == 1 and len(d.train) == 4 and len(d.query) == 6
    data = namespace(defaults()["data"])
    data.name, data.root, data.ids, data.train_share = "folder", str(tmp_path), 1, 0.25
    assert datasets.load(data, str(tmp_path / "run")) == d
    assert (tmp_path / "run" / "split.json").exists()


def test_csv_tracklets(tmp_path):
    lines = own(tmp_path, tracklet=True)
    write_csv(tmp_path, [line.replace("query", "gallery") if "joe-hall" in line else line for line in lines])
    d = load(tmp_path)
    assert d.kind == "video" and [len(r) for r in d.train] == [2, 2, 2, 2]
    assert d.train[0].frames == tuple(str(tmp_path / "pictures" / f"00{i}.png") for i in (0, 1))
    assert d.train[0].path == d.train[0].frames[0]
    # a tracklet is of one split
    assert [len(r) for r in d.query] == [1, 1, 1] and [len(r) for r in d.gallery] == [1, 1, 1, 2]
    with open(tmp_path / "labels.csv", "a") as f:
        f.write("pictures/x.png,ann,door,train,\n")
    with pytest.raises(DataError, match="some lines have a tracklet and some have none"):
        load(tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("pictures/000.png,ann", "line 18 has more or fewer fields"),
        ("pictures/000.png,ann,door,train,1", "line 18 has more or fewer fields"),
        ("pictures/x.png,,door,query", "line 18: pid is empty"),
        ("pictures/x.png,ann,,train", "line 18: camid is empty"),
        (",ann,door,train", "line 18: path is empty"),
        ("pictures/x.png,ann,door,test", "line 18: split is 'test'; it must be one of train, query, gallery"),
        ("pictures/003.png,ann,door,train", r"line 18: pictures/003.png is on line 5 already"),
        ("pictures/x.png,ann,door,train", r"1 of 17 listed images are missing .*x.png"),
        ("../x.png,ann,door,train", "line 18 names '../x.png', which lies outside"),
        ("/etc/x.png,ann,door,train", "line 18 names '/etc/x.png', which lies outside"),
        ('"pictures/x.png,ann,door,train', "cannot read .*labels.csv"),
    ],
)
def test_csv_lines_that_are_wrong(tmp_path, line, message):
    write_csv(tmp_path, [*own(tmp_path), line])
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "header", ["path,camid", "path,pid,camid,pid", "file,person,camera", "pictures/0.png,1,2", "{}"]
)
def test_csv_headers_that_are_wrong(tmp_path, header):
    write_csv(tmp_path, [header])
    with pytest.raises(DataError, match="labels.csv, line 1: columns are .*path and pid are needed"):
        load(tmp_path)


def test_csv_that_cannot_be_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="columns are missing"):
        load(tmp_path)
    write_csv(tmp_path, ["path,pid,camid"])
    with pytest.raises(DataError, match="no line below its header"):
        load(tmp_path)
    path.write_bytes("path,pid,camid\nä.png,1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match="dce4.png' is not UTF-8: perhaps the list was saved in another"):
        load(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot read .*labels.csv"):
        load(tmp_path)


# ---- pictures of unknown people, and no test set ---------------------------------------------------------
def unlabelled(root, **options):
    return datasets.load_folder("folder", root, Options(**options), unlabelled=True)


@pytest.mark.parametrize("label", ["-1", ""])
def test_unknown_people_train_where_they_are_wanted(tmp_path, label, caplog):
    """Some of the training pictures, in their places among the others; junk of the test set stays junk."""
    lines = own(tmp_path)
    lines[2], lines[5] = (line.replace("ann", label) for line in (lines[2], lines[5].replace("bob", "ann")))
    write_csv(tmp_path, lines)
    d = unlabelled(tmp_path)
    assert labels(d.train) == [*zip((0, -1, 0, 0, -1, 1, 1, 1), (0, 0, 1, 1) * 2, strict=True)]
    assert labels(d.query) == labels(load(tmp_path).query) and d.camera_names == ("door", "hall")
    assert labels(load(tmp_path).train) == [(p, c) for p, c in labels(d.train) if p >= 0]
    assert "2 images" in caplog.text


def test_nobody_is_known(tmp_path):
    lines = own(tmp_path)
    write_csv(tmp_path, [line.replace(",ann,", ",,").replace(",bob,", ",-1,") for line in lines])
    d = unlabelled(tmp_path)
    assert {r.pid for r in d.train} == {-1} and len(d.query) == 4
    assert (d.num_train_pids, d.num_cams) == (0, 2)
    with pytest.raises(DataError, match="nobody is known on its 8 pictures, and this method learns from"):
        load(tmp_path)


def test_a_bare_folder(tmp_path):
    """Names that say nothing, or the camera alone; there is nobody to test on."""
    for n in range(6):
        picture(tmp_path, "boxes", f"frame{n}.png")
    d = unlabelled(tmp_path)
    assert labels(d.train) == [(-1, 0)] * 6 and d.camera_names == ("unknown",)
    assert d.query == d.gallery == () and not d.drawn
    d = unlabelled(tmp_path, pattern=r"frame(?P<camera>[0-2])")
    assert sorted(labels(d.train)) == [(-1, 0), (-1, 1), (-1, 2), *[(-1, 3)] * 3]
    assert d.camera_names == ("c0", "c1", "c2", "unknown")
    with pytest.raises(DataError, match="nobody is known on its 6 pictures"):
        load(tmp_path)


def test_names_that_say_nothing_beside_others(tmp_path, caplog):
    """In train they are people nobody knows, elsewhere they are no use; drawn splits put them into train."""
    root = folder(tmp_path / "x")
    for split in ("train", "query"):
        picture(root, split, "holiday.png")
    d = unlabelled(root)
    assert labels(d.train) == labels(load(root).train) + [(-1, 2)] and d.camera_names[2] == "unknown"
    assert labels(d.query) == labels(load(root).query)
    assert "1 entries" in caplog.text and "2 entries" in caplog.text  # where they are wanted, and where not
    root = folder(tmp_path / "y", splits=False)
    picture(root, "holiday.png")
    d = unlabelled(root)
    assert (len(d.train), labels(d.train)[-1]) == (13, (-1, 2)) and d.drawn == load(root).drawn


def test_no_test_set(tmp_path):
    """Of train alone one may learn, of query and gallery alone one may test; half a test set is neither."""
    root = folder(tmp_path / "x")
    whole = load(root)
    shutil.move(os.path.join(root, "train"), tmp_path / "train")
    with pytest.raises(DataError, match="no usable image for train"):
        load(root)
    tests = datasets.load_folder("folder", root, needed=("query", "gallery"))
    assert labels(tests.query) == labels(whole.query) and tests.train == ()
    alone = load(shutil.move(tmp_path / "train", tmp_path / "z" / "train") and str(tmp_path / "z"))
    assert labels(alone.train) == labels(whole.train) and alone.query == alone.gallery == ()
    with pytest.raises(DataError, match="no usable image for query"):
        datasets.load_folder("folder", str(tmp_path / "z"), needed=("query", "gallery"))
    shutil.rmtree(os.path.join(root, "query"))
    with pytest.raises(DataError, match="has a folder gallery but none of train, query"):
        load(root)
    write_csv(tmp_path, [line for line in own(tmp_path) if "gallery" not in line])
    with pytest.raises(DataError, match="no usable image for gallery"):
        load(tmp_path)


def everything(root, **fields):
    """The set with config.data.train_on=all, as methods with labels get it or (labels="none") without."""
    data = namespace(defaults()["data"])
    rest = {k: fields.pop(k) for k in [*fields] if k in ("labels", "also")}
    for k, v in {"name": "folder", "root": str(root), "ids": 2, "train_on": "all", **fields}.items():
        setattr(data, k, v)
    return datasets.load(data, None, **rest)


def test_training_on_everything(tmp_path):
    """Every picture once, the same person with one identity; distractors where nobody need be known."""
    root = folder(tmp_path / "x")
    shutil.copy(os.path.join(root, "query", "0004_c1s1_000000_00.jpg"), os.path.join(root, "train"))
    picture(root, "gallery", "0000_c1s1_000000_00.jpg")
    d = everything(root)
    assert d.num_train_pids == 6 and d.query == d.gallery == () and len(d.train) == 25
    assert sorted(labels(d.train)) == sorted([(p, c) for p in range(6) for c in (0, 0, 1, 1)] + [(3, 0)])
    d = everything(root, labels="none")
    assert len(d.train) == 26 and {r.pid for r in d.train} == {-1}
    assert sorted(set(d.truth.pid)) == [-1, *range(6)]
    split = everything(folder(tmp_path / "y", splits=False), train_share=0.1)
    assert split.num_train_pids == 6 and len(split.train) == 24 and not split.drawn
    held = everything(root, val_ids=2)
    assert held.num_train_pids == 4 and len({r.pid for r in held.val_query}) == 2


def test_training_on_everything_spoils_a_test_on_it(tmp_path):
    market(tmp_path / "market1501")
    own_, other = folder(tmp_path / "x"), folder(tmp_path / "y")
    assert len(everything(own_, also=f"test=folder:{other}").also) == 1
    with pytest.raises(ConfigError, match="all people of folder train .config.data.train_on=all"):
        everything(own_, also=f"test=folder:{own_}")
    d = everything(tmp_path, name="market1501")
    assert d.num_train_pids == 4 and len(d.train) == 12 and not d.query
    with pytest.raises(ConfigError, match="all people of market1501 train"):
        everything(tmp_path, name="market1501", also=f"m=market1501:{tmp_path}")
    with pytest.raises(ConfigError, match="data.train_on is 'some'"):
        everything(own_, train_on="some")
