"""Built sets: the folder's batches bit for bit, from any place, in any process, without TensorFlow."""

import itertools
import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from batches import data_config, opened
from PIL import Image

from reid_jax import cli
from reid_jax.data import __main__ as command
from reid_jax.data import datasets, images, pipeline, tfds_sets
from reid_jax.data.loaders.common import Options
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError


def picture(path, seed):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), np.uint8)
    Image.fromarray(small).resize((16, 32)).save(path)
    return path


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A tiny Market-1501 with four training identities, junk and a distractor."""
    root, seed = tmp_path_factory.mktemp("raw") / "market1501", itertools.count()
    for part, ids in (
        ("bounding_box_train", (2, 7, 9, 11)),
        ("query", (1, 3)),
        ("bounding_box_test", (1, 3)),
    ):
        for pid, cam in itertools.product(ids, (1, 3)):
            for i in range(1 if part == "query" else 2):
                picture(str(root / part / f"{pid:04d}_c{cam}s1_{i:06d}_00.jpg"), next(seed))
    for pid in ("-1", "0000"):
        picture(str(root / "bounding_box_test" / f"{pid}_c2s1_000009_00.jpg"), next(seed))
    return str(root)


@pytest.fixture(scope="module")
def built(market, tmp_path_factory):
    """The folder that the command wrote the set to."""
    out = str(tmp_path_factory.mktemp("built"))
    assert command.main(["build", "market1501", "--root", market, "--output", out, "--quiet"]) == 0
    return os.path.join(out, "reid", "market1501", "1.0.0")


def config(root, **fields):
    small = dict(root=root, height=48, width=24, ids=2, instances=2, threads=2)
    return data_config(**{**small, **fields})


def take(dataset, data, count=5):
    with opened(dataset, data, 3) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def names(dataset, split):
    return [os.path.relpath(r.path, dataset.root) for r in getattr(dataset, split)]


def test_batches_of_the_folder(market, built, tmp_path):
    data = config(built, source="tfds", val_ids=1)
    found = datasets.load(data, str(tmp_path))
    raw = datasets.load(config(market, val_ids=1), str(tmp_path))
    assert (found.name, found.kind, found.protocol, found.drawn) == ("market1501", "image", "market", {})
    assert found.camera_names == raw.camera_names == ("c1", "c3", "c2")
    for split in ("train", "query", "gallery", "val_query", "val_gallery"):
        a, b = getattr(raw, split), getattr(found, split)
        assert [(r.pid, r.camid) for r in a] == [(r.pid, r.camid) for r in b] and a
        assert names(raw, split) == names(found, split)
        assert [images.contents(r.path) for r in a] == [images.contents(r.path) for r in b]
    expected = take(raw, config(market))
    assert_equal(expected, take(found, data))
    data.workers = 1  # another process, which gets references only
    assert_equal(expected, take(found, data))
    tests = [list(pipeline.eval_batches(d.gallery, data, 4)) for d in (raw, found)]
    assert_equal(*tests)


def test_moved_and_found_again(market, built, tmp_path):
    """A copy at another place works when the original is gone; its parent is good enough as a root."""
    own = shutil.copytree(os.path.dirname(os.path.dirname(os.path.dirname(built))), tmp_path / "first")
    moved = shutil.move(own, tmp_path / "second")
    raw = datasets.load_folder("market1501", market)
    for root in (moved, moved / "reid", moved / "reid" / "market1501" / "1.0.0", built):
        found = tfds_sets.load(str(root), "market1501")
        assert found.root == f"tfds:{root if root == built else moved / 'reid' / 'market1501' / '1.0.0'}"
        assert images.contents(found.query[2].path) == images.contents(raw.query[2].path)
    assert datasets.open_source(f"tfds:{moved}").splits["query"] == found_query(moved)


def found_query(root):
    return tfds_sets.load(str(root)).query


def test_random_access_from_many_threads(market, built):
    raw, found = datasets.load_folder("market1501", market), tfds_sets.load(built)
    a, b = (pickle.loads(pickle.dumps(d)).gallery for d in (raw, found))
    good = []

    def work(seed):
        rows = np.random.default_rng(seed).integers(0, len(a), 50)
        good.append(all(images.contents(b[i].path) == images.contents(a[i].path) for i in rows))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert good == [True] * 5


def tracklets(folder):
    """A video Dataset whose query tracklet is in the gallery too, as in MARS."""
    seed, found = itertools.count(), {}
    for pid, camid, length in ((0, 0, 3), (0, 1, 1), (1, 0, 5), (5, 0, 2), (5, 1, 4)):
        start = os.path.join(folder, f"p{pid}", f"c{camid}")
        frames = tuple(picture(os.path.join(start, f"{i}.jpg"), next(seed)) for i in range(length))
        found[pid, camid] = Record(frames[0], pid, camid, frames)
    train = tuple(found[k] for k in ((0, 0), (0, 1), (1, 0)))
    query, gallery = (found[5, 0],), (found[5, 0], found[5, 1])
    drawn = {"train_ids": [4, 8]}
    return Dataset(
        "clips", str(folder), train, query, gallery, ("a", "b"), (), (), "video", "single-shot", drawn
    )


def test_video(tmp_path):
    raw = tracklets(tmp_path / "raw")
    folder = tfds_sets.build(raw, str(tmp_path), Options(variant="x y", split=3))
    assert folder.endswith("reid/clips_x_y_split3/1.0.0")
    found = tfds_sets.load(str(tmp_path), "clips", Options(variant="x y", split=3))
    for field in ("name", "kind", "protocol", "drawn", "camera_names"):
        assert getattr(found, field) == getattr(raw, field), field
    for split in ("train", "query", "gallery"):
        for a, b in zip(getattr(raw, split), getattr(found, split), strict=True):
            assert (a.pid, a.camid, len(a), a.frames[0]) == (b.pid, b.camid, len(b), a.path)
            for p, q in zip(reversed(a.frames), reversed(b.frames), strict=True):
                assert images.contents(p) == images.contents(q)
                assert os.path.relpath(p, raw.root) == os.path.relpath(q, found.root)
    clips = config("", ids=2, frames=2, stride=2)
    assert_equal(take(raw, clips), take(found, clips))
    tests = [list(pipeline.eval_clips(d.gallery, clips, 4)) for d in (raw, found)]
    assert_equal(*tests)


def test_any_name_and_any_integer(tmp_path):
    """Names that are not UTF-8, identities beyond 32 bits, pictures that TFDS itself could not open."""
    name, found = os.fsdecode("\u884c\u4eba.tif".encode("gbk")), []
    for i, pid in enumerate((0, 20260101123001)):
        path = os.path.join(tmp_path / "raw", f"p{i}", name)
        os.makedirs(os.path.dirname(path))
        Image.fromarray(np.arange(512, dtype=np.uint16).reshape(32, 16) * 100 + i).save(path)
        found.append(Record(path, pid, 0))
    raw = Dataset("odd", str(tmp_path / "raw"), tuple(found[:1]), tuple(found[1:]), tuple(found[1:]), ("a",))
    again = tfds_sets.load(tfds_sets.build(raw, str(tmp_path)))
    for a, b in zip(found, (*again.train, *again.query), strict=True):
        assert (a.pid, os.path.relpath(a.path, raw.root)) == (b.pid, os.path.relpath(b.path, again.root))
        np.testing.assert_array_equal(images.read(a.path, 32, 16), images.read(b.path, 32, 16))


def test_readable_by_anyone_with_tfds(built):
    """The documented features decode with TFDS alone."""
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(built).as_data_source(split="train")
    assert len(source) == 16
    example = source[5]
    assert example["image"].shape == (32, 16, 3) and example["split"] == b"train"
    assert (example["pid"], example["camid"]) == (1, 0)
    assert example["path"] == b"bounding_box_train/0007_c1s1_000001_00.jpg"


def test_no_tensorflow(market, tmp_path):
    """Neither building nor reading imports it, in a process of their own."""
    code = (
        "import sys\n"
        "from reid_jax.data import __main__, images, tfds_sets\n"
        f"args = ['--root', {market!r}, '--output', {str(tmp_path)!r}]\n"
        "assert __main__.main(['build', 'market1501', *args]) == 0\n"
        f"found = tfds_sets.load({str(tmp_path)!r})\n"
        "images.read(found.train[3].path, 32, 16)\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_synthetic_keeps_its_names(tmp_path):
    from reid_jax.data.synthetic import generate

    data = config(str(tmp_path / "s"), name="synthetic")
    tiny = {"train_ids": 2, "test_ids": 1, "cameras": 2, "images": 2, "height": 32, "width": 16}
    for field, value in tiny.items():
        setattr(data.synthetic, field, value)
    generate(data.root, **vars(data.synthetic))
    raw, out = datasets.load(data, str(tmp_path)), str(tmp_path / "out")
    assert command.main(["build", "synthetic", "--root", data.root, "--output", out]) == 0
    data.source, data.root = "tfds", out
    found = datasets.load(data, str(tmp_path))
    assert found.camera_names == raw.camera_names and found.name == raw.name == "synthetic"
    assert_equal(take(raw, data), take(found, data))


def test_errors(market, built, tmp_path, capsys):
    with pytest.raises(DataError, match="holds no built set.*reid_jax.data build market1501"):
        tfds_sets.load(str(tmp_path), "market1501")
    with pytest.raises(DataError, match="cannot read nowhere://bucket"):
        tfds_sets.load("nowhere://bucket")
    with pytest.raises(DataError, match="holds market1501: set config.data.name=market1501"):
        tfds_sets.load(built, "msmt17")
    with pytest.raises(DataError, match="'500k'"):
        datasets.load(config(built, source="tfds", variant="500k"), str(tmp_path))
    with pytest.raises(DataError, match="where is the built set"):
        datasets.load(config("", source="tfds"), str(tmp_path))
    with pytest.raises(ConfigError, match="data.source"):
        datasets.load(config(built, source="zip"), str(tmp_path))
    out = os.path.dirname(os.path.dirname(os.path.dirname(built)))
    assert cli.exit_code(command.main, ["build", "market1501", "--root", market, "--output", out]) == 2
    assert "is there already" in capsys.readouterr().err
    for name in ("a", "b"):
        shutil.copytree(built, tmp_path / name)
    with pytest.raises(DataError, match="several built sets"):
        tfds_sets.load(str(tmp_path), "market1501")
    absent = tfds_sets.load(str(tmp_path / "a")).train[0].path.replace("0002_c1", "0002_c9")
    with pytest.raises(DataError, match="0002_c9.*does not exist"):
        images.read(absent, 32, 16)


def test_damaged_sets(built, tmp_path):
    """Records in another order than the index's, and cut files, are noticed."""
    mixed = shutil.copytree(built, tmp_path / "mixed")
    text = (mixed / "metadata.json").read_text()
    (mixed / "metadata.json").write_text(
        text.replace("0002_c1s1_000000", "xx").replace("0002_c1s1_000001", "0002_c1s1_000000")
    )
    with pytest.raises(DataError, match="is damaged.*build again"):
        images.read(tfds_sets.load(str(mixed)).train[1].path, 32, 16)
    cut = shutil.copytree(built, tmp_path / "cut")
    (shard,) = cut.glob("*train*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match="cut.*"):
        images.read(tfds_sets.load(str(cut)).train[1].path, 32, 16)
    (cut / "metadata.json").write_text("{}")
    tfds_sets._open.cache_clear()
    with pytest.raises(DataError, match="was not written by python -m reid_jax.data build"):
        tfds_sets.load(str(cut))


def test_missing_and_empty_pictures_stop_the_build(tmp_path):
    raw = tracklets(tmp_path / "raw")
    os.remove(raw.train[2].frames[4])
    with pytest.raises(DataError, match=r"cannot read .*4.jpg"):
        tfds_sets.build(raw, str(tmp_path / "out"))
    open(raw.train[2].frames[4], "wb").close()
    with pytest.raises(DataError, match="4.jpg is empty"):
        tfds_sets.build(raw, str(tmp_path / "out"))
    picture(raw.train[2].frames[4], 0)
    tfds_sets.build(raw, str(tmp_path / "out"))


def test_report_shows_built_pictures(built):
    from reid_jax.report.strips import Thumbnails

    found = tfds_sets.load(built)
    thumbs = Thumbnails(found.root)
    assert thumbs.add(names(found, "query")[0]) == 0 and thumbs.uris[0].startswith("data:image/jpeg")
    assert thumbs.add("query/absent.jpg") is None and thumbs.missing == {"query/absent.jpg": "no such file"}
