"""`reid_jax gallery`: from pictures on disk to an answer, and what is printed."""

import glob
import json
import os
import socket

import pytest
from gallery_stub import Stub, folder

import reid_jax
from reid_jax.commands import gallery as command
from reid_jax.commands import serve
from reid_jax.errors import ConfigError, DataError
from reid_jax.serve.gallery import Gallery


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with pictures; returns what it printed."""
    loaded = []
    monkeypatch.setattr(reid_jax, "load", lambda source: loaded.append(source) or Stub(), raising=False)
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "pictures", persons=12)  # enough for thresholds

    def call(*argv):
        assert not command.main([str(a) for a in argv])
        return capsys.readouterr().out

    call.loaded = loaded
    return call


BUILD = ("build", "g.sqlite", "pictures", "--model", "runs/a", "--camera-from", "folder")


def test_from_pictures_to_an_answer(run):
    assert "36 pictures added; 36 entries" in run(
        *BUILD, "--person-from", r"(person\d+)_", "--time-from", "mtime"
    )
    out = run(
        "search", "g.sqlite", "pictures/door/person03_0.png", "-k", 3, "--not-camera", "door", "--fpir", 0.5
    )
    lines = out.splitlines()
    assert [c.strip() for c in lines[2].split("|")[3:5]] == ["person03", "hall"] or "person03" in lines[3]
    assert len(lines) == 5 and run.loaded == ["runs/a", os.path.abspath("runs/a")]
    found = json.loads(run("search", "g.sqlite", "--id", 4, "--json", "--csv", "hits.csv"))
    assert found[0]["person"] == "person03" and found[0]["id"] != 4 and found[0]["time"].endswith("Z")
    assert open("hits.csv").readline() == "id,score,person,camera,time,source\n"
    assert not sum(map(os.path.getsize, glob.glob("g.sqlite-wal")))  # a copy of the file alone is whole
    assert "36 left out" in run("add", "g.sqlite", "pictures") and "36 pictures added;" in run(
        "add", "g.sqlite", "pictures", "--again", "--camera", "again"
    )
    info = json.loads(run("info", "g.sqlite", "--json"))
    assert info["entries"] == 72 and info["cameras"]["again"] == 36 and info["persons"] == 12
    assert "again (36)" in run("info", "g.sqlite") and "whole" in run("verify", "g.sqlite")
    assert "36 queries of 12 people" in run("calibrate", "g.sqlite")
    assert "2 entries changed" in run("label", "g.sqlite", "--id", "1,2", "--person", "anna")
    out = run("remove", "g.sqlite", "--person", "anna")
    assert "2 entries deleted" in out and "backups" in out
    with pytest.raises(DataError, match="nothing was deleted: g.sqlite has no entry of person anna"):
        run("remove", "g.sqlite", "--person", "anna")
    assert "70 entries deleted" in run("purge", "g.sqlite", "--older-than-days", 0)
    assert "MiB" in run("compact", "g.sqlite")
    actions = [line.split()[2] for line in run("log", "g.sqlite").splitlines()]
    changes = ["label", "remove", "remove", "purge", "compact"]
    assert actions == ["add", "search", "search", "add", "calibrate", *changes]
    assert json.loads(run("log", "g.sqlite", "--last", 1, "--json"))["action"] == "compact"


def test_tables_and_merging(run, tmp_path):
    (tmp_path / "t.csv").write_text(
        "path,pid,camid,time,split\n"
        "pictures/door/person00_0.png,anna,3,2026-05-01T12:00:00Z,train\n"
        "pictures/yard/person01_0.png,,4,,\n"
        "pictures/hall/person01_0.png, -1.0,4,,\n"
        "pictures/door/person01_0.png,0,5,,\n"
    )
    assert "4 pictures added" in run("build", "a.sqlite", "t.csv", "--model", "m", "--tracklet", "walk")
    run(*BUILD)
    assert json.loads(run("info", "a.sqlite", "--json"))["persons"] == 1  # junk and distractors are nobody
    run("remove", "a.sqlite", "--id", "3,4")
    assert "g.sqlite: ids + 4" in run("merge", "a.sqlite", "g.sqlite", "--output", "c.sqlite")
    found = json.loads(run("search", "c.sqlite", "pictures/door/person00_0.png", "--json", "-k", 38))
    first = next(h for h in found if h["id"] == 1)
    assert (first["person"], first["camera"], first["time"]) == ("anna", "3", "2026-05-01T12:00:00Z")
    assert first["tracklet"] == "walk" and len(found) == 38


def test_the_model_is_found_again(run, tmp_path, monkeypatch):
    """~ behind an equals sign, which no shell opens, and addresses of a hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, (given, kept) in enumerate(
        (("~/runs/a", tmp_path / "runs" / "a"), ("hf://me/a", "hf://me/a"))
    ):
        run("build", f"{number}.sqlite", "pictures", f"--model={given}")
        run("search", f"{number}.sqlite", "pictures/door/person00_0.png")
        assert run.loaded[-2:] == [given, str(kept)]


def test_a_model_that_was_moved(run, monkeypatch):
    def load(source):
        raise ConfigError(f"{source} is no folder")

    run(*BUILD)
    monkeypatch.setattr(reid_jax, "load", load)
    with pytest.raises(
        ConfigError, match="is no folder; it built g.sqlite, and --model says where it is now"
    ):
        run("search", "g.sqlite", "pictures/door/person00_0.png")


def test_names_of_files_that_are_no_utf8(run, tmp_path, monkeypatch):
    """As old archives have them: they are added, found, and shown, escaped; pictures are found by them."""
    place = os.fsdecode(b"pictures/door/\xd0\xd0.png")
    os.rename("pictures/door/person00_0.png", place)
    os.rename("pictures/hall", os.fsdecode(b"pictures/\xc8\xcb"))
    assert "36 pictures added" in run(*BUILD) and "36 left out" in run("add", "g.sqlite", "pictures")
    found = json.loads(run("search", "g.sqlite", place, "--json", "-k", 36, "--csv", "hits.csv"))
    assert found[0]["source"].endswith(r"door/\udcd0\udcd0.png") and r"\udcc8\udccb" in {
        h["camera"] for h in found
    }
    run("search", "g.sqlite", place, "--camera", os.fsdecode(b"\xc8\xcb"))
    app = pytest.importorskip("reid_jax.serve.app")
    from starlette.testclient import TestClient

    with Gallery("g.sqlite", Stub()) as gallery:
        client = TestClient(app.create(gallery, root=tmp_path / "pictures"), "http://127.0.0.1")
        assert client.get(f"/api/picture/{found[0]['id']}").status_code == 200
        shown = client.get(f"/api/similar/{found[1]['id']}?k=36").json()["hits"]
        assert {r"door/\udcd0\udcd0.png", "door/person01_0.png"} <= {h["source"] for h in shown}


def test_broken_pictures(run, tmp_path):
    (tmp_path / "pictures" / "door" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="^picture 0: .*broken.png cannot be read.*--on-broken skip"):
        run(*BUILD)
    run(*BUILD, "--on-broken", "skip")
    assert json.loads(run("info", "g.sqlite", "--json"))["entries"] == 36
    with pytest.raises(DataError, match="^picture 0: .*broken.png cannot be read: [^;]*$"):
        run("search", "g.sqlite", "pictures/door/broken.png")  # where nothing can be left out


def test_rules_look_below_the_source(run, tmp_path):
    """Not at the folders above it, whose names may fit too; names of groups are heeded."""
    os.rename("pictures", "person99_pictures")
    build = ["build", "g.sqlite", "person99_pictures", "--model", "m"]
    run(*build, "--person-from", r"(?P<number>\d+)_0|person(?P<person>\d+)", "--camera-from", r"^\w+")
    info = json.loads(run("info", "g.sqlite", "--json"))
    assert info["persons"] == 12 and info["cameras"] == {"door": 12, "hall": 12, "yard": 12}


def test_names_that_move_a_terminals_cursor(run):
    run(*BUILD, "--person", "\x1b[2J\rann\u202ea")
    for shown in (run("search", "g.sqlite", "--id", 1), run("log", "g.sqlite"), run("info", "g.sqlite")):
        assert not {"\x1b", "\r", "\u202e"} & set(shown)
    assert r"\x1b[2J\rann\u202ea" in run("search", "g.sqlite", "--id", 1)


@pytest.mark.parametrize(
    "message, argv",
    [
        ("is no regular expression", [*BUILD, "--person-from", "("]),
        ("finds nothing in .*png", [*BUILD, "--person-from", "nobody"]),
        ("cannot both be given", [*BUILD, "--person", "a", "--person-from", "folder"]),
        ("without a zone", [*BUILD, "--time", "2026-05-01"]),
        ("there is no nowhere", ["build", "h", "nowhere", "--model", "m"]),
        ("there is no picture in empty", ["build", "h", "empty", "--model", "m"]),
        ("needs a line of column names", ["build", "h", "t.csv", "--model", "m"]),
        ("the following arguments are required: --model", ["build", "h", "pictures"]),
        ("there is no gallery h", ["add", "h", "pictures"]),
        ("there is no gallery h", ["add", "h", "pictures", "--model", "m"]),
        ("there is no gallery h", ["search", "h", "x.png"]),
        ("needs pictures or --id", ["search", "h"]),
        ("invalid choice: 'explode'", ["explode", "h"]),
        ("invalid _ids value: '1;2'", ["remove", "h", "--id", "1;2"]),
        ("there is no gallery h; making one", ["remove", "h", "--person", "anna"]),
    ],
)
def test_what_is_wrong_is_said(run, tmp_path, message, argv):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises((ConfigError, DataError), match=message):
        run(*argv)
    assert not os.path.exists("h") and not os.path.exists("g.sqlite")


def test_serve(run, monkeypatch, capsys):
    pytest.importorskip("starlette")
    run(*BUILD)
    served = []
    monkeypatch.setattr(serve, "served", lambda *args: served.append(args))
    assert serve.main(["g.sqlite", "--root", "pictures", "--port", "8123"]) == 0
    assert "http://127.0.0.1:8123/" in capsys.readouterr().out and served[0][1:] == ("127.0.0.1", 8123)
    assert not served[0][0].any_host and not served[0][0].token
    assert serve.main(["g.sqlite", "--host", "0.0.0.0", "--token", "new"]) == 0
    assert served[1][0].any_host and served[1][0].token in capsys.readouterr().out
    for message, argv in (
        ("needs --token", ["g.sqlite", "--host", "0.0.0.0"]),
        ("there is no such folder", ["g.sqlite", "--root", "nowhere"]),
        ("up to 65535", ["g.sqlite", "--port", "70000"]),
        ("there is no gallery h", ["h"]),
        ("there is no gallery h", ["h", "--model", "m"]),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            serve.main(argv)
    monkeypatch.undo()
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="choose another --port"):
            serve.served(served[0][0], "127.0.0.1", taken.getsockname()[1])
