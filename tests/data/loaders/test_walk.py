"""Which pictures a folder holds for a person who opens it, and that what is left out is told."""

import os

import pytest
from trees import picture

from reid_jax.data import check, datasets
from reid_jax.data.loaders import walk
from reid_jax.data.loaders.common import Options


def split_tree(root):
    """People 1 to 3 train, 4 to 6 are tested, two cameras, two pictures each."""
    for pid in range(1, 7):
        for camera in (1, 2):
            for i in (0, 1):
                split = "train" if pid < 4 else "gallery" if i else "query"
                picture(root, split, f"{pid:04d}_c{camera}_{i}.png", value=40 * pid + 10 * camera + i)
    return root


def tree(root, *names):
    for name in names:
        picture(root, name)
    return str(root)


def found(root):
    with walk.noting() as left:
        paths = walk.once(str(root), walk.pictures(str(root)), lambda path: None)
    return [os.path.relpath(p, root) for p in paths], left


def counts(left):
    return {reason: sum(paths.values()) for reason, paths in left.items()}


def test_order_is_that_of_folders(tmp_path):
    names = ["b.png", "z.JPG", "a/x.png", "a/a/y.png", "a.b/x.tif", "c/0.webp"]
    tree(tmp_path, *names)
    assert found(tmp_path) == ([*names[:2], "a/x.png", "a/a/y.png", "a.b/x.tif", "c/0.webp"], {})
    walked = [os.path.join(f, n) for f, d, ns in os.walk(tmp_path) for n in (d.sort(), sorted(ns))[1]]
    assert [str(tmp_path / n) for n in names] == walked


@pytest.mark.parametrize(
    "name, reason",
    [
        *((n, walk.HIDDEN) for n in (".a.png", "._1.png", ".thumbnails/a.png", ".ipynb_checkpoints/b/c.png")),
        *((n, walk.HIDDEN) for n in (".@__thumb/a.jpg", "x/.hidden/a.png")),
        *(
            (n, walk.COPIES)
            for n in ("@eaDir/a.png", "x/@eaDir/a.png/t.jpg", "__MACOSX/a.png", "@eadir/a.png")
        ),
        *((n, walk.COPIES) for n in ("#recycle/a.png", "$RECYCLE.BIN/a.png", "lost+found/a.png")),
    ],
)
def test_what_nobody_sees_is_left_out_and_counted(tmp_path, name, reason):
    tree(tmp_path, "a.png", name)
    assert found(tmp_path) == (["a.png"], {reason: {str(tmp_path / walk_top(name)): 1}})


def walk_top(name):
    """The entry that is left out: the first hidden or known one on the way."""
    parts = name.split("/")
    if parts[0] == "x":
        return os.path.join(*parts[:2])
    return parts[0]


def test_other_files_and_formats(tmp_path):
    tree(tmp_path, "a.png", "b.png")
    for name in ("Thumbs.db", "c.heic", "d.CR2", "labels.txt", "b.png~", "e"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "f.png")
    os.mkdir(tmp_path / "g.png")
    names, left = found(tmp_path)
    assert names == ["a.png", "b.png"]
    assert counts(left) == {walk.UNKNOWN: 2, walk.OTHER: 4, walk.NO_FILE: 1}


def test_links(tmp_path):
    """Pictures and folders behind links are seen; broken ones, loops and the same again are told."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    tree(inside, "a/1.png", "b/2.png", ".store/3.png")
    tree(outside, "deep/4.png")
    (inside / "b" / "away").symlink_to(outside)
    (inside / "c").symlink_to(inside / ".store")  # its own name is what people see
    (inside / "up").symlink_to(tmp_path)
    (inside / "b" / "here").symlink_to(".")
    (outside / "deep" / "back").symlink_to(inside)
    (inside / "self").symlink_to("self")
    (inside / "gone.png").symlink_to("nowhere.png")
    (inside / "gone").symlink_to("/nowhere/at/all")
    (inside / "twin.png").symlink_to("a/1.png")
    (inside / "b" / "other.png").symlink_to(outside / "deep" / "4.png")
    names, left = found(inside)
    assert names == ["a/1.png", "b/2.png", "b/other.png", "c/3.png"]
    assert counts(left) == {walk.BROKEN: 3, walk.AGAIN: 5, walk.HIDDEN: 1}


def test_links_under_other_labels_stay(tmp_path):
    tree(tmp_path, "all/1.png")
    for person in ("ann", "bob"):
        (tmp_path / person).symlink_to("all")
    (tmp_path / "ann2").symlink_to("all")
    pictures = walk.pictures(str(tmp_path))
    kept = walk.once(str(tmp_path), pictures, lambda p: os.path.basename(os.path.dirname(p))[:3])
    assert [os.path.relpath(p, tmp_path) for p in kept] == ["all/1.png", "ann/1.png", "bob/1.png"]


def test_many_links_into_each_other_end(tmp_path):
    for i in range(12):
        tree(tmp_path, f"{i}/a.png")
        for j in range(12):
            (tmp_path / str(i) / f"to{j}").symlink_to(f"../{j}")
    names, _ = found(tmp_path)
    assert sorted(names) == sorted(f"{i}/a.png" for i in range(12))


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails", "@eaDir", "x/.cache", "y/__MACOSX"])
def test_own_pictures(tmp_path, hidden, caplog):
    plain = datasets.load_folder("folder", split_tree(tmp_path), Options())
    assert "left out" not in caplog.text
    for split in ("train", "query", "gallery"):
        for name in os.listdir(tmp_path / split):
            picture(tmp_path, split, hidden, name)
    again = datasets.load_folder("folder", tmp_path, Options())
    assert again == plain and "pictures that are left out: 24" in caplog.text
    checked = check.check("folder", str(tmp_path), quick=True)
    assert checked["counts"]["images"] == 24 and checked["problems"] == []
    (note,) = checked["notes"]
    assert note.startswith("pictures that are left out: 24 ")


def test_pictures_beside_the_splits_are_told(tmp_path, caplog):
    tree(split_tree(tmp_path), "val/0009_c1.png", "0009_c1.png", "docs/read.png")
    datasets.load_folder("folder", tmp_path, Options())
    assert f"3 {walk.ASIDE} (0009_c1.png, docs, ...)" in caplog.text
    for split in ("train", "query", "gallery"):
        os.rename(tmp_path / split, tmp_path / split.upper())
    assert len(datasets.load_folder("folder", tmp_path, Options()).train) == 12


def test_check_counts_links_that_lead_nowhere(tmp_path):
    split_tree(tmp_path)
    (tmp_path / "train" / "0001_c1_9.png").symlink_to("nowhere.png")
    (tmp_path / "train" / "readme.txt").write_text("x")
    checked = check.check("folder", str(tmp_path), quick=True)
    (problem,) = checked["problems"]
    assert (problem["kind"], problem["items"]) == ("link", ["train/0001_c1_9.png"])
    assert checked["notes"] == ["1 files that are no pictures: .txt 1"]
    assert checked["left_out"] == {
        walk.BROKEN: {"train/0001_c1_9.png": 1},
        walk.OTHER: {"train/readme.txt": 1},
    }


def test_embed_sees_the_same(tmp_path, caplog):
    tree(tmp_path, "0002_c3_1.png", "x/y.webp", ".thumbnails/0002_c3_1.png", "@eaDir/0002_c3_1.png/t.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    source = datasets.open_source(str(tmp_path))
    assert [(r.pid, r.camid) for r in source.splits["images"]] == [(2, 3), (-1, 0)]
    assert "pictures that are left out: 1 hidden (.thumbnails), 1 in folders of" in caplog.text
    assert "1 links that lead nowhere (gone.png)" in caplog.text


def test_embed_takes_any_number_of_a_name(tmp_path):
    names = [f"{n}_c1.png" for n in (20260101123001, 2**70)] + ["1_c99999999999.png"]
    tree(tmp_path, *names)
    labels = {r.path.split("/")[-1]: (r.pid, r.camid) for r in datasets.pictures(str(tmp_path))}
    assert [labels[n] for n in names] == [(20260101123001, 1), (-1, 0), (-1, 0)]
