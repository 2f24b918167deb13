"""Galleries: what is added is found again; filters, groups, names, deletion, merging, and messages."""

import datetime
import importlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from gallery_stub import Other, Stub, folder, jpeg, picture

import reid_jax
from reid_jax.errors import ConfigError, DataError
from reid_jax.serve import ann, database, search
from reid_jax.serve.gallery import Gallery
from reid_jax.serve.merge import merge


@pytest.fixture(scope="session")
def server():
    """The address of a PostgreSQL server with pgvector."""
    pgserver = pytest.importorskip("pgserver")
    pytest.importorskip("pgvector")
    place = tempfile.mkdtemp(prefix="reid-pg-")
    running = pgserver.get_server(place, cleanup_mode="delete")
    yield running.get_uri()
    running.cleanup()


@pytest.fixture
def address(server):
    """The server's address, without a gallery."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS reid_jax CASCADE")
    return server


@pytest.fixture(params=["file", "server"])
def either(request, tmp_path):
    """`made` in a file and on a server."""
    place = request.getfixturevalue("address") if request.param == "server" else None
    gallery, paths = made(tmp_path, place)
    yield gallery, paths
    gallery.close()


def again(gallery, *args, **options):
    """The same gallery, opened once more."""
    return Gallery(gallery._place, *args, **options)


def made(root, place=None):
    """(gallery of 6 persons in 3 cameras, a second apart; their paths)."""
    paths, cameras, persons = folder(root / "pictures")
    gallery = Gallery(place or root / "people.sqlite", Stub())
    gallery.add(paths, camera=cameras, person=persons, time=[float(i) for i in range(18)], tracklet=None)
    return gallery, paths


@pytest.fixture
def built(tmp_path):
    """See `made`."""
    gallery, paths = made(tmp_path)
    yield gallery, paths
    gallery.close()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """A gallery for what leaves it as it is."""
    gallery, _ = made(tmp_path_factory.mktemp("unchanged"))
    yield gallery
    gallery.close()


def test_finds_who_it_is(either):
    gallery, paths = either
    hits = gallery.search(paths[2], k=3)
    assert [h.person for h in hits] == ["person02"] * 3 and hits[0].source == paths[2]
    assert hits[0].score == pytest.approx(1, abs=1e-3) and hits[0].camera == "door"
    assert hits[0].time == datetime.datetime(1970, 1, 1, 0, 0, 2, tzinfo=datetime.UTC)
    if os.path.exists(gallery.path):
        assert oct(os.stat(gallery.path).st_mode & 0o777) == "0o600"
    assert again(gallery, Stub(), mode="r").search(paths[2], k=18) == gallery.search(paths[2], k=18)


def test_vectors_are_kept_in_either_precision(tmp_path):
    features = search.unit(np.random.default_rng(0).standard_normal((50, 24)))
    for precision, limit in (("float16", 3e-4), ("float32", 0)):
        with Gallery(tmp_path / precision, Stub(), precision=precision) as gallery:
            assert gallery.add_features(3 * features) == list(range(1, 51))
            np.testing.assert_allclose(gallery.rows().vector, search.unit(3 * features), atol=limit)
        with Gallery(tmp_path / precision) as gallery:  # no model is needed for features
            ids, scores = gallery.nearest(features[:4], 2)
            assert list(ids[:, 0]) == [1, 2, 3, 4] and np.all(scores[:, 0] > 0.999)


def test_filters(either):
    gallery, paths = either

    def cameras(**filters):
        return {h.camera for h in gallery.search(paths[0], k=50, **filters)}

    assert cameras(camera="door") == {"door"} and cameras(not_camera=["door"]) == {"yard", "hall"}
    assert cameras(camera=["door", "hall"], not_camera="hall") == {"door"}
    assert [h.id for h in gallery.search(paths[0], since="1970-01-01T00:00:16Z")] == [17, 18]
    assert {h.id for h in gallery.search(paths[0], until=1.0)} == {1, 2}
    assert {h.person for h in gallery.search(paths[0], person="person04")} == {"person04"}
    assert gallery.search(paths[0], since=100) == []
    gallery.add(paths[0])  # without time or camera
    assert len(gallery.search(paths[0], k=50, since=0)) == len(gallery.search(paths[0], k=50, until=99)) == 18


def test_queries_of_all_sorts(either):
    gallery, paths = either
    assert gallery.search(3, k=1)[0].id != 3  # an entry itself is left out
    assert [h.id for h in gallery.search(paths[2], k=4)][1:3] == [h.id for h in gallery.search(3, k=2)]
    pair = gallery.search([paths[0], picture(1)], k=6, group="person")
    assert {h.person for h in pair[:2]} == {"person00", "person01"} and len({h.person for h in pair}) == 6
    assert gallery.search(jpeg(picture(4)), k=1)[0].person == "person04"
    mean = search.unit(Stub()([paths[0], paths[6]]).mean(0))
    assert gallery.search([paths[0], paths[6]], k=5) == gallery.search(mean, k=5)
    near = gallery.search(paths[0], k=2)
    wide = search.unit(Stub()([paths[0]])[0] + sum(gallery.feature(h.id) for h in near))
    hits = zip(gallery.search(paths[0], expand=2), gallery.search(wide), strict=True)
    assert all(a.id == b.id and abs(a.score - b.score) < 1e-5 for a, b in hits)
    first = [h.person for h in gallery.search(paths[5], k=3, rerank=True)]
    assert first == ["person05"] * 3


def test_groups_reach_far_enough(tmp_path):
    """1 person has the first 300 hits; entries without a name each count for themselves."""
    features = np.eye(24)[[0] * 300 + [1] * 50 + [2] * 2] + 0.1 * np.eye(24)[0]
    names = ["a"] * 300 + ["b"] * 50 + [None] * 2
    with Gallery(tmp_path / "g", Stub()) as gallery:
        gallery.add_features(features, person=names, tracklet=[f"t{i % 7}" for i in range(352)])
        hits = gallery.search(np.eye(24, dtype=np.float32)[0], k=4, group="person")
        assert [(h.person, h.id) for h in hits] == [("a", 1), ("b", 301), (None, 351), (None, 352)]
        assert len(gallery.search(np.eye(24, dtype=np.float32)[0], k=99, group="tracklet")) == 7


def test_unknown_by_rate(either):
    gallery, paths = either
    marks = {
        rate: [h.score < s for h in gallery.search(paths[0], k=18)] for rate, s in ((0.5, 0.2), (0.01, 0.9))
    }
    for rate, wanted in marks.items():
        assert [h.unknown for h in gallery.search(paths[0], k=18, fpir=rate)] == wanted
    assert 0 < sum(marks[0.5]) < sum(marks[0.01])
    with pytest.raises(ConfigError, match="measured are 0.01, 0.1, 0.5"):
        gallery.search(paths[0], fpir=0.2)
    many = [picture(p, n) for p in range(12) for n in range(6)]
    gallery.add(
        many,
        person=[p for p in range(12) for _ in range(6)],
        camera=[n % 3 for _ in range(12) for n in range(6)],
    )
    measured = gallery.calibrate()
    assert gallery.thresholds() == measured and again(gallery).threshold(0.5) == measured["fpir"][0][1]


def test_values_as_tables_hold_them(built):
    """Numbers of NumPy, and numbers that are none where something is not known."""
    gallery, paths = built
    gallery.add(paths[:2], camera=np.int64(7), time=np.float32(3), box=np.array([0, 0, 4, 4]))
    gallery.add(paths[:2], camera=[np.nan, "attic"], time=[np.nan, np.int64(4)], box=[None, (0, 0, 4, 4)])
    hits = {h.id: (h.camera, h.time and h.time.second) for h in gallery.search(paths[0], k=50)}
    assert [hits[key] for key in range(19, 23)] == [("7", 3), ("7", 3), (None, None), ("attic", 4)]
    assert [gallery.source(key)[1] for key in (20, 21, 22)] == [[0, 0, 4, 4], None, [0, 0, 4, 4]]
    assert gallery.purge(older_than_days=float("inf")) == 0 and gallery.label(np.int64(19), "anna") == 1
    assert [len(x) for x in gallery.nearest(np.empty((0, 24)))] == [0, 0]
    with Gallery(f"file://{gallery.path}", mode="r") as reader:
        assert len(reader) == 22


def test_labels_and_ids(either):
    gallery, paths = either
    reader = again(gallery, Stub(), mode="r")
    assert reader.search(paths[1], k=1)[0].person == "person01"
    assert gallery.label([2, 8, 99], "anna") == 2
    assert {h.id: h.person for h in reader.search(paths[1], k=3)} == {2: "anna", 8: "anna", 14: "person01"}
    assert gallery.label(2, None) == 1 and reader.search(paths[1], k=1)[0].person is None
    assert gallery.remove(ids=[18]) == 1 and gallery.add(paths[:1]) == [19]  # an id is never given again
    assert len(reader) == 18 and gallery.verify() == []


def test_readers_see_what_is_added_without_reading_all_again(built, monkeypatch):
    gallery, paths = built
    reader = Gallery(gallery.path, Stub(), mode="r")
    before = reader.rows()
    gallery.add(paths, camera="attic")
    seen = []
    monkeypatch.setattr(database, "checksum", lambda *row: seen.append(row[0]))
    from reid_jax.serve import rows as rows_module

    real = rows_module.checksum
    monkeypatch.setattr(rows_module, "checksum", lambda *row: (seen.append(row[0]), real(*row))[1])
    assert len(reader) == 36 and seen == list(range(19, 37))
    assert (
        len(before) == 18
        and len(before.vector) == 18
        and len(reader.search(paths[0], k=50, camera="attic")) == 18
    )


def test_known_pictures_are_skipped_and_broken_ones_left_out(either, tmp_path):
    gallery, paths = either
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    some = [paths[0], str(tmp_path / "broken.jpg"), str(tmp_path / "absent.jpg"), paths[1]]
    with pytest.raises(DataError, match="picture 1: .*cannot be read.*on_broken='skip'"):
        gallery.add(some)
    with pytest.raises(DataError, match="picture 3: .*absent.jpg cannot be read"):
        gallery.add([paths[0], paths[1], paths[2], tmp_path / "absent.jpg"], known="skip")  # one is asked for
    assert len(gallery) == 18
    dealt = []
    assert gallery.add(some, on_broken="skip", told=dealt.append) == [19, None, None, 20]
    assert gallery.add(paths, known="skip", told=dealt.append) == [None] * 18
    assert dealt == [0, 1, 1, 1, 1, 18] and sum(dealt) == 4 + 18
    assert gallery.add([paths[0], picture(9)], known="skip", source=["elsewhere", None]) == [21, 22]


def test_purge_by_age(either):
    gallery, paths = either
    now = datetime.datetime.now(datetime.UTC)
    gallery.add(paths[0], time=now - datetime.timedelta(days=3))
    gallery.add(paths[0])  # counted from when it was added
    assert gallery.purge(older_than_days=4) == 18 and gallery.purge(older_than_days=2.5) == 1
    assert len(gallery) == 1 and gallery.purge(older_than_days=0) == 1
    with pytest.raises(DataError, match="is empty; add"):
        gallery.search(paths[0])


def remains(path, *needles):
    """Which of some bytes occur in any file of the gallery's folder."""
    texts = [p.read_bytes() for p in path.parent.iterdir() if p.is_file()]
    return [n for n in needles if any(n in t for t in texts)]


@pytest.mark.parametrize("reader", [False, True])
def test_deletion_leaves_neither_name_nor_vectors(tmp_path, reader):
    """Names and vectors among many others, some relabelled, deleted while the log is full of them."""
    rng = np.random.default_rng(0)
    path = tmp_path / "g.sqlite"
    with Gallery(path, Stub(), precision="float32", log_searches=True) as gallery:
        for part in range(6):
            features = search.unit(rng.standard_normal((200, 24)))
            names = [["Zyxwvu Anna", "Abcdefg Ben", None, "Hijklmn Carl"][i % 4] for i in range(200)]
            sources = [f"/pictures/{n}_{part}_{i}.jpg" for i, n in enumerate(names)]
            gallery.add_features(features, person=names, source=sources, tracklet=[f"{n}'s" for n in names])
        other = Gallery(path, mode="r") if reader else None
        vectors = [v.tobytes() for v in gallery.rows().vector[gallery.rows().person == 0]]
        gallery.search(features[0], person="Zyxwvu Anna")
        assert remains(path, b"Zyxwvu", *vectors) == [b"Zyxwvu", *vectors]
        gallery.label(list(range(1, 600, 4)), "Opqrst Dora")
        gallery.label([1, 5, 9], "Zyxwvu Anna")
        assert gallery.remove(person="Zyxwvu Anna") == 153 and gallery.remove(person="Opqrst Dora") == 147
        assert remains(path, b"Zyxwvu", b"Opqrst", *vectors) == []
        assert len(gallery) == 900 and gallery.verify() == [] and remains(path, b"Abcdefg")
        if other:
            assert len(other) == 900


def test_audit_tells_what_was_done_and_is_chained(built):
    gallery, paths = built
    with Gallery(gallery.path, Stub(), mode="r", actor="eve", log_searches=True) as reader:
        reader.search(paths[0], k=2, camera="door", person="person00", fpir=0.1)
    gallery.remove(person="person03")
    rows = gallery.history()
    assert [(r["actor"] == "eve", r["action"]) for r in rows] == [
        (False, "add"),
        (True, "search"),
        (False, "remove"),
    ]
    detail = rows[1]["detail"]
    assert detail["filters"] == {"camera": ["door"], "person": 1} and detail["k"] == 2 and detail["hits"] == 1
    assert len(detail["query"]) == 64 and rows[2]["detail"] == {"by": ["person"], "entries": 3}
    assert gallery.history(1) == rows[2:] and gallery.verify() == []
    for change in ("UPDATE audit SET actor = 'x' WHERE id = 2", "DELETE FROM audit WHERE id = 3"):
        path = f"{gallery.path}.{change[:6]}"
        with sqlite3.connect(gallery.path) as old, sqlite3.connect(path) as new:
            old.backup(new)
        new.execute(change)
        new.commit()
        new.close()
        old.close()
        assert "audit" in Gallery(path).verify()[0]


def test_merging(tmp_path, built):
    gallery, paths = built
    with Gallery(tmp_path / "b.sqlite", Stub(), precision="float32") as other:
        other.add(paths[:4], camera="attic", person="zoe")
        other.remove(ids=4)
    out = tmp_path / "c.sqlite"
    assert merge([gallery.path, tmp_path / "b.sqlite"], out) == [0, 18]
    with Gallery(out, Stub()) as both:
        assert list(both.rows().id) == [*range(1, 19), 19, 20, 21] and both.verify() == []
        assert both.rows().name("person", 18) == "zoe" and both.add(paths[0]) == [23]
        np.testing.assert_array_equal(both.rows().vector[:18], gallery.rows().vector)
        assert [(r["chain"], r["action"]) for r in both.history()] == [
            (1, "add"), (2, "add"), (2, "remove"), (0, "merge"), (0, "add"),
        ]  # fmt: skip
    merge([out, gallery.path], tmp_path / "d.sqlite")
    assert {r["chain"] for r in Gallery(tmp_path / "d.sqlite").history()} == {0, 1, 2, 3, 4}
    with pytest.raises(DataError, match="exists"):
        merge([out], out)
    Gallery(tmp_path / "o.sqlite", Other()).close()
    with pytest.raises(DataError, match="of model 555.*666"):
        merge([out, tmp_path / "o.sqlite"], tmp_path / "e.sqlite")
    assert not (tmp_path / "e.sqlite").exists()


def test_threads_search_while_another_adds(either):
    gallery, paths = either
    wrong = []

    def look():
        for i in range(20):
            if gallery.search(paths[i % 6], k=1, camera="door")[0].person != f"person{i % 6:02d}":
                wrong.append(i)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        gallery.add([picture(20), picture(21)], camera="yard")
    for thread in threads:
        thread.join()
    assert not wrong and len(gallery) == 38


BAD = {
    "no entry has the camera 'dor'; there are: door, hall, yard": lambda g: g.search(1, camera="dor"),
    "k is 0": lambda g: g.search(1, k=0),
    "since is 2026-01-01 00:00:00, without a zone": lambda g: g.search(1, since="2026-01-01"),
    "time is 'yesterday'": lambda g: g.add(picture(0), time="yesterday"),
    "time is inf": lambda g: g.add(picture(0), time=float("inf")),
    "no entry 99": lambda g: g.search(99),
    "camera has 2 values for 1 pictures": lambda g: g.add([picture(0)], camera=["a", "b"]),
    "person is ''": lambda g: g.label(1, ""),
    "null byte": lambda g: g.add(picture(0), source="a\0.jpg"),
    "too few to measure on; name more, of people whom two": lambda g: g.calibrate(),
    "there is no picture to search for": lambda g: g.search([]),
    r"floats \[N,24\] are needed": lambda g: g.search(np.ones(7, np.float32)),
    "zero or not finite": lambda g: g.search(np.zeros(24, np.float32)),
    "remove needs a person": lambda g: g.remove(),
    "group is 'camera'; it may be person, tracklet": lambda g: g.search(1, group="camera"),
    "older_than_days is -1": lambda g: g.purge(older_than_days=-1),
    "entries have no field colour": lambda g: g.add_features(np.ones((1, 24)), colour="red"),
    "ids are": lambda g: g.remove(ids=["1; DROP TABLE entry"]),
    "opened for reading": lambda g: Gallery(g.path, mode="r").remove(ids=[1]),
    "holds features .* of model 555.*, this model is 666": lambda g: Gallery(g.path, Other()),
    "there is no gallery": lambda g: Gallery(g.path + "x", mode="r"),
    "making one needs the model": lambda g: Gallery(g.path + "x"),
    "mode is 'w'; it may be r, a": lambda g: Gallery(g.path, mode="w"),
    "box is .0, 0, nan, 1.; it must be four": lambda g: g.add(picture(0), box=[0, 0, np.nan, 1]),
    "box is 'abc'": lambda g: g.add(picture(0), box="abc"),
    "camera is 3.5; a name is text": lambda g: g.search(1, camera=3.5),
    "camera is <object": lambda g: g.add([picture(0)], camera=object()),
    "None is no picture, and no list": lambda g: g.search(None),
    "7 is no picture, and no list": lambda g: g.add(7),
    "older_than_days is '3'": lambda g: g.purge(older_than_days="3"),
    r"ids are \[None\]": lambda g: g.label(None, "anna"),
    "last is -1": lambda g: g.history(-1),
    "not by s3": lambda g: Gallery("s3://bucket/g.sqlite", Stub()),
    "people.sqlite cannot be made": lambda g: Gallery(f"{g.path}/g.sqlite", Stub()),
    "was opened without a model": lambda g: Gallery(g.path).search(picture(0)),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_said(unchanged, message):
    with pytest.raises((ConfigError, DataError), match=message):
        BAD[message](unchanged)
    assert len(unchanged) == 18


def test_index(tmp_path, monkeypatch):
    """The index finds what exact search finds, survives as a file, is dropped and built again."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(ann, "LEAST_ROWS", 500)
    rng = np.random.default_rng(0)
    features = search.unit(rng.standard_normal((40, 1, 24)) + 0.3 * rng.standard_normal((40, 25, 24)))
    with Gallery(tmp_path / "g", Stub(), ann="auto") as gallery:
        gallery.add_features(features.reshape(-1, 24), camera=[f"c{i % 2}" for i in range(1000)])
        assert gallery.build_index() >= ann.LEAST_RECALL
        calls = []
        monkeypatch.setattr(ann.Index, "nearest", _counted(ann.Index.nearest, calls))
        exact = search.nearest(features[:, 0], gallery.rows().vector, 5, gallery.rows().camera == 0)
        ids, scores = gallery.nearest(features[:, 0], 5, camera="c0")
        same = [len(set(a - 1) & set(b)) for a, (b, _) in zip(ids, exact, strict=True)]
        assert sum(same) >= 0.98 * 200 and len(calls) == 1
        gallery.nearest(features[:1, 0], 5, since=0)  # nothing passes: exact
        assert len(calls) == 1 and gallery.info()["index"].startswith("current, recall")
    with Gallery(tmp_path / "g", Stub(), ann="auto") as gallery:
        gallery.nearest(features[:1, 0])
        assert len(calls) == 2  # from the file
        gallery.remove(ids=1)
        assert not os.path.exists(ann.file_of(gallery.path))
        gallery.nearest(features[:1, 0])
        ann._building[gallery.path].join()
        assert len(calls) == 3  # recall of the new one; the search itself was exact
        gallery.nearest(features[:1, 0])
        assert len(calls) == 4
        with open(ann.file_of(gallery.path), "r+b") as file:
            file.seek(-7, os.SEEK_END)
            file.write(b"\xff")
        gallery._index = None
        assert gallery._current_index(gallery.rows()) is None  # damaged
        ann._building[gallery.path].join()
        monkeypatch.setattr(ann, "LEAST_RECALL", 1.1)
        assert gallery._current_index(gallery.rows()) is None  # not right enough


def _counted(function, calls):
    def counting(*args):
        calls.append(1)
        return function(*args)

    return counting


def test_an_error_inside_a_change_leaves_nothing_of_it(built, monkeypatch):
    gallery, paths = built
    open(ann.file_of(gallery.path), "w").close()

    def fail(*_, **__):
        assert not os.path.exists(ann.file_of(gallery.path))  # dropped before the change, should it be killed
        raise RuntimeError("stopped")

    monkeypatch.setattr(gallery.file, "write_audit", fail)
    with pytest.raises(RuntimeError):
        gallery.remove(person="person01")
    with pytest.raises(RuntimeError):
        gallery.add(paths)
    assert len(gallery) == 18 and gallery.file.generation() == (1, 0) and gallery.verify() == []


def test_gallery_and_page_need_no_jax(built):
    """With the model as ONNX, nothing of the training's packages is there."""
    pytest.importorskip("starlette")
    blocked = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "sklearn", "torch")
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "from reid_jax.serve import app, gallery\nfrom reid_jax.commands import serve\n"
        f"with gallery.Gallery({built[0].path!r}) as g: print(g.search(1, k=2)[0].id, g.remove(ids=[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[1] == "1", done.stderr


def test_an_index_is_for_many_rows_that_pass():
    some = np.arange(1_000_000) % 100
    assert ann.worth_it(200_000, None) and not ann.worth_it(199_999, None)
    assert ann.worth_it(1_000_000, some < 25) and not ann.worth_it(1_000_000, some < 24)
    assert not ann.worth_it(500_000, some[:500_000] < 39)  # 195,000 pass


def test_index_written_during_a_deletion_is_dropped(tmp_path):
    pytest.importorskip("faiss")
    features = search.unit(np.random.default_rng(0).standard_normal((300, 24)))
    ann.build(str(tmp_path / "g"), features, "m", 4, lambda: 5)
    assert not os.listdir(tmp_path)
    ann.build(str(tmp_path / "g"), features, "m", 4, lambda: 4)
    assert json.loads((tmp_path / "g.ann").open("rb").readline())["generation"] == 4
    ann.drop_stale(str(tmp_path / "g"), 4)
    assert os.listdir(tmp_path) == ["g.ann"]
    ann.drop_stale(str(tmp_path / "g"), 5)
    assert not os.listdir(tmp_path)


def test_server_takes_several_writers(address):
    """Their batches are whole, ids differ, and the audit is one chain."""
    with Gallery(address, Stub()) as first, Gallery(address, Stub()) as second:
        features = search.unit(np.random.default_rng(0).standard_normal((40, 24)))
        work = [threading.Thread(target=add_often, args=(g, features)) for g in (first, second)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert len(first) == 400 and first.verify() == [] and len(first.history()) == 10
        assert first.remove(person="anna") == 400 and len(second) == 0


def add_often(gallery, features):
    for _ in range(5):
        gallery.add_features(features, person="anna")


def test_merging_with_a_server(tmp_path, address, built, monkeypatch):
    """From a server into a file and back: entries, ids that are never given again, audits; whole or not."""
    gallery, paths = built
    with Gallery(address, Stub()) as remote:
        remote.add(paths[:4], camera="attic", person="zoe", time=1.78e9)
        remote.remove(ids=4)
        kept = remote.file.type
    out = tmp_path / "c.sqlite"
    assert merge([gallery.path, address], out) == [0, 18]
    with Gallery(out, Stub()) as both:
        assert list(both.rows().id) == [*range(1, 19), 19, 20, 21] and both.verify() == []
        hit = both.search(paths[0], k=1, camera="attic")[0]
        assert (hit.person, hit.time.timestamp(), hit.source) == ("zoe", 1.78e9, str(paths[0]))
        assert both.file.type == (np.float16 if kept == np.float16 else np.float32)
        assert [r["chain"] for r in both.history()] == [1, 2, 2, 0] and both.add(paths[0]) == [23]
    with pytest.raises(DataError, match=r"postgresql://.* exists; choose another name"):
        merge([out], address)
    postgres = importlib.import_module("reid_jax.serve.postgres")
    postgres.drop(address)
    with monkeypatch.context() as patch:
        patch.setattr(postgres.Server, "set_last", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge([out], address)
    assert not postgres.exists(address)
    assert merge([out], address) == [0]
    with Gallery(out) as file, Gallery(address, Stub()) as remote:
        pairs = [g.nearest(file.rows().vector[:5], 5) for g in (file, remote)]
        np.testing.assert_array_equal(pairs[0][0], pairs[1][0])
        assert remote.verify() == [] and len(remote) == 22 and remote.add(paths[1]) == [24]


def test_server_index(address, monkeypatch):
    monkeypatch.setattr(ann, "LEAST_ROWS", 500)
    rng = np.random.default_rng(0)
    features = search.unit(rng.standard_normal((40, 1, 24)) + 0.3 * rng.standard_normal((40, 25, 24)))
    with Gallery(address, Stub(), ann="auto") as gallery:
        gallery.add_features(features.reshape(-1, 24), camera=[f"c{i % 2}" for i in range(1000)])
        exact = gallery.nearest(features[:, 0], 5, camera="c0")[0]
        assert 0.98 <= gallery.build_index() <= 1 and "recall" in gallery.info()["index"]
        near = gallery.nearest(features[:, 0], 5, camera="c0")[0]
        assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(near, exact, strict=True)]) >= 0.98
        want = search.nearest(features[:, 0], features.reshape(-1, 24), 5, np.arange(1000) % 2 == 0)
        np.testing.assert_array_equal(exact, [row + 1 for row, _ in want])
        monkeypatch.setattr(ann, "LEAST_RECALL", 1.1)
        gallery.build_index()
        query = "SELECT COUNT(*) FROM pg_indexes WHERE indexname = 'entry_hnsw'"
        with gallery.file.reading() as connection:
            assert connection.execute(query).fetchone() == (0,)


def test_server_roles_and_messages(address):
    """The guide's SQL: a reader finds and changes nothing; passwords are not shown."""
    import psycopg

    guide = (Path(reid_jax.__file__).parent / "serve" / "README.md").read_text()
    roles = guide.split("```sql\n")[1].split("```")[0]
    with Gallery(address, Stub()) as gallery, psycopg.connect(address, autocommit=True) as connection:
        gallery.add([picture(0), picture(1)], camera="door")
        connection.execute("DROP ROLE IF EXISTS reid_reader")
        connection.execute("DROP ROLE IF EXISTS reid_writer")
        connection.execute(roles)
        for user, writes in (("reid_reader", False), ("reid_writer", True)):
            place = address.replace("//postgres:@", f"//{user}:hidden@")
            with Gallery(place, Stub(), mode="a") as theirs:
                assert theirs.search(picture(1), k=1)[0].id == 2 and "hidden" not in theirs.path
                if writes:
                    assert theirs.remove(ids=2) == 1 and theirs.add(picture(1)) and theirs.verify() == []
                else:
                    with pytest.raises(DataError, match="use a writer's role"):
                        theirs.remove(ids=1)
        connection.execute("DROP OWNED BY reid_reader, reid_writer; DROP ROLE reid_reader, reid_writer")
    with pytest.raises(DataError, match="another model|of model 555"):
        Gallery(address, Other())
    with pytest.raises(DataError, match=r"postgresql://me:\*\*\*@127.0.0.1:9/x cannot be reached") as error:
        Gallery("postgresql://me:secret@127.0.0.1:9/x", Stub())
    assert "secret" not in str(error.value)
    with Gallery(address, Stub()) as gallery, pytest.raises(DataError, match="was closed"):
        gallery.close()
        len(gallery)


def test_server_by_command_and_page(address, tmp_path, monkeypatch, capsys):
    from reid_jax.commands import gallery as command

    monkeypatch.setattr(reid_jax, "load", lambda source: Stub(), raising=False)
    folder(tmp_path / "pictures", persons=12)
    secret = address.replace("//postgres:@", "//postgres:hidden@")

    def run(action, *argv):
        assert not command.main([action, secret, *map(str, argv)])
        return capsys.readouterr().out

    names = ("--camera-from", "folder", "--person-from", r"(person\d+)_")
    assert "36 pictures added; 36 entries" in run("build", tmp_path / "pictures", "--model", "m", *names)
    found = json.loads(run("search", tmp_path / "pictures/door/person03_0.png", "--fpir", 0.1, "--json"))
    assert [h["person"] for h in found[:3]] == ["person03"] * 3 and not found[0]["unknown"]
    assert "36 queries of 12 people" in run("calibrate") and "postgres:***@" in run("verify")
    assert "2 entries changed" in run("label", "--id", "1,2", "--person", "anna")
    assert "2 entries deleted" in run("remove", "--person", "anna") and "MiB" in run("compact")
    info = run("info")
    assert "hall (12)" in info and "hidden" not in info and len(run("log").splitlines()) == 6
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from reid_jax.serve import app

    with Gallery(address, Stub()) as gallery, TestClient(app.create(gallery), "http://localhost") as client:
        about = client.get("/api/cameras").json()
        assert about["entries"] == 34 and about["cameras"] == {"door": 10, "hall": 12, "yard": 12}
        hits = client.post("/api/search?k=3&not_camera=door", content=jpeg(picture(5))).json()["hits"]
        assert [h["person"] for h in hits[:2]] == ["person05"] * 2
        assert (
            client.get("/api/picture/1").status_code == 404
            and client.delete("/api/entry/5").status_code == 200
        )
