"""Labels and tables as people have them: one meaning, however they are written."""

import itertools
import os

import numpy as np
import pytest
from trees import picture

from reid_jax.data import check, datasets
from reid_jax.data.loaders import labels, table
from reid_jax.data.loaders.common import Options
from reid_jax.errors import DataError

PEOPLE = ("5", "6", "7", "8")


@pytest.mark.parametrize(
    "text, number",
    [
        *((t, -1) for t in ("-1", " -1 ", "-1.0", "-1.", "'-1'", '="-1"', "\u22121", "-1,0", "-01", "-1e0")),
        *((t, 0) for t in ("0", "0000", "0.0", "-0", "0,00", "'0'")),
        *(("+7", 7), ("1e3", 1000), ("2.0260101123E+13", 20260101123000), ("9" * 30, 10**30 - 1)),
        *((t, None) for t in ("", "ann", "1.5", "-1a", "1,000", "1_0", "0x1", "1e-3", "1.25e1", "9" * 5000)),
    ],
)  # fmt: skip
def test_whole_numbers(text, number):
    assert labels.integer(text) == number


def test_numbers_of_labels():
    special = (labels.JUNK, labels.DISTRACTOR)
    assert labels.numbered(["3", "-1.0", "12.0", "3.0"], special) == ([3, -1, 12, 3], {})
    mixed = ["p10", "p2", " -1", "0.0", "7", "7.0"]
    assert labels.numbered(mixed, special) == ([3, 2, -1, 0, 1, 1], {1: "7", 2: "p2", 3: "p10"})
    assert labels.numbered(["-1", "0", "x"]) == ([2, 1, 3], {1: "0", 2: "-1", 3: "x"})  # cameras
    assert labels.numbered(["1e3", "1000", "a"])[0] == [1, 2, 3]  # beside text it is a code
    large = [str(2**70), "5", str(2**70 + 1), "-1"]
    assert labels.numbered(large, special)[0] == [2, 1, 3, -1]


def own(root, name, junk="-1", nobody="0", split=True):
    """A table of four people, two of them tested, with junk of the tested people and a distractor."""
    lines = [["path", "pid", "camid", *["split"] * split]]
    for (i, person), camera, number in itertools.product(enumerate(PEOPLE), (1, 2), (0, 1)):
        lines.append([f"a/{person}_{camera}_{number}.png", name(person), str(camera)])
        lines[-1] += ["train" if i < 2 else "gallery" if number else "query"] * split
    if split:
        lines += [["a/j.png", junk, "1", "gallery"], ["a/n.png", nobody, "2", "gallery"]]
    for path, *_ in lines[1:]:
        picture(root, path)
    return lines


def written(root, lines, separator=",", encoding="utf-8", end="\n", name="labels.csv"):
    text = end.join(separator.join(line) for line in lines) + end
    (root / name).write_bytes(text.encode(encoding))
    return load(root)


def load(root, **options):
    return datasets.load_folder("folder", root, Options(**options))


def shape(dataset):
    """Who is whom, whatever the numbers are: figures depend on nothing else."""
    tested = sorted({r.pid for r in (*dataset.query, *dataset.gallery) if r.pid > 0})
    place = {0: 0} | {pid: i for i, pid in enumerate(tested, 1)}
    splits = [[(r.pid, r.camid) for r in dataset.train]]
    return splits + [[(place[r.pid], r.camid) for r in s] for s in (dataset.query, dataset.gallery)]


@pytest.mark.parametrize(
    "junk, nobody", [("-1", "0"), ("-1.0", "0.0"), (" -1", " 0"), ("'-1'", "'0'"), ("\u22121", "0000")]
)
@pytest.mark.parametrize("name", [str, "{}.0".format, "person {}".format, "{}000000000".format, "9{}".format])
def test_junk_and_distractors_keep_their_meaning(tmp_path, name, junk, nobody):
    plain = written(tmp_path, own(tmp_path, str))
    assert shape(plain)[2].count((0, 1)) == 1 and len(plain.gallery) == 5
    assert shape(written(tmp_path, own(tmp_path, name, junk, nobody))) == shape(plain)


@pytest.mark.parametrize("start", [2**31, 2**53, 20260101123000, 2**61, 2**63, 10**30])
def test_any_integer(tmp_path, start):
    large = written(tmp_path, own(tmp_path, lambda p: str(start + int(p))))
    assert shape(large) == shape(written(tmp_path, own(tmp_path, str)))
    pids = sorted({r.pid for r in large.query})
    assert pids == [start + 7, start + 8] if start < 2**62 else np.array(pids).dtype == np.int64
    drawn = written(tmp_path, own(tmp_path, lambda p: str(start + int(p)), split=False))
    assert shape(drawn) == shape(written(tmp_path, own(tmp_path, str, split=False)))


def test_people_with_other_negative_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"labels.csv, line 18: pid is -7; -1 is junk"):
        written(tmp_path, own(tmp_path, str, junk="-7"))
    (tmp_path / "labels.csv").unlink()
    picture(tmp_path, "-7_c1.png")
    with pytest.raises(DataError, match=r"-7_c1.png: pid is -7"):
        load(tmp_path)


def with_column(lines, at, name, value):
    return [[*line[:at], name if i == 0 else value(i), *line[at:]] for i, line in enumerate(lines)]


FORMS = {
    "semicolons": lambda lines: (lines, dict(separator=";")),
    "tabs": lambda lines: (lines, dict(separator="\t")),
    "bars": lambda lines: (lines, dict(separator="|")),
    "spaces": lambda lines: (lines, dict(separator="  ")),
    "spaces after commas": lambda lines: (lines, dict(separator=", ")),
    "mark": lambda lines: (lines, dict(encoding="utf-8-sig")),
    "UTF-16": lambda lines: (lines, dict(encoding="utf-16", separator="\t")),
    "windows": lambda lines: (lines, dict(end="\r\n")),
    "old mac": lambda lines: (lines, dict(end="\r")),
    "empty lines": lambda lines: (lines, dict(end="\n\n,,,\n")),
    "quotes": lambda lines: ([[f'"{v}"' for v in line] for line in lines], {}),
    "Excel": lambda lines: ([["sep=;"], *lines], dict(separator=";")),
    "capitals": lambda lines: ([[v.upper() for v in lines[0]], *lines[1:]], {}),
    "other order": lambda lines: ([line[::-1] for line in lines], {}),
    "index": lambda lines: (with_column(lines, 0, "", str), {}),
    "named index": lambda lines: (with_column(lines, 0, "Unnamed: 0", str), {}),
    "row names": lambda lines: ([lines[0], *([str(i), *v] for i, v in enumerate(lines[1:]))], {}),
    "more columns": lambda lines: (with_column(lines, 2, "colour", lambda i: "red"), {}),
    "commas at the ends": lambda lines: ([[*line, ""] for line in lines], {}),
    "backslashes": lambda lines: ([[line[0].replace("/", "\\"), *line[1:]] for line in lines], {}),
    "dots": lambda lines: ([["path", *lines[0][1:]], *([f"./a/../{p}", *v] for p, *v in lines[1:])], {}),
    "tsv": lambda lines: (lines, dict(separator="\t", name="labels.tsv")),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_every_shape(tmp_path, form):
    lines = own(tmp_path, str)
    plain = written(tmp_path, lines)
    (tmp_path / "labels.csv").unlink()
    lines, how = FORMS[form](lines)
    assert written(tmp_path, lines, **how) == plain


@pytest.mark.parametrize("way", ["absolute", "link in the root", "link in the list", "home", "address"])
def test_absolute_paths_inside_the_root(tmp_path, way, monkeypatch):
    root, link = tmp_path / "data", tmp_path / "link"
    root.mkdir()
    link.symlink_to(root)
    lines = own(root, str)
    plain = written(root, lines)
    monkeypatch.setenv("HOME", str(tmp_path))
    front = {"absolute": root, "link in the root": root, "link in the list": link}.get(way, root)
    front = {"home": "~/data", "address": f"file://{root}"}.get(way, front)
    lines = [lines[0], *([f"{front}/{p}", *v] for p, *v in lines[1:])]
    found = written(link if way == "link in the root" else root, lines)
    assert shape(found) == shape(plain)
    assert [r.path.removeprefix(f"{found.root}/") for r in found.train] == [
        r.path.removeprefix(f"{root}/") for r in plain.train
    ]


@pytest.mark.parametrize(
    "path, message",
    [
        ("/etc/a.png", "names '/etc/a.png', which lies outside of"),
        ("../a.png", "names '../a.png', which lies outside of"),
        ("..\\a.png", "which lies outside of"),
        ("C:\\data\\a.png", "a path of Windows; write it from .* on"),
        ("s3://bucket/a.png", "files are read and written locally only"),
        ("~nobody-at-all/a.png", "there is no user nobody-at-all"),
        ("a/none.png", "1 of 19 listed images are missing"),
        ("a/b\0.png", "1 of 19 listed images are missing"),
    ],
)
def test_paths_that_are_refused(tmp_path, path, message):
    with pytest.raises(Exception, match=message) as error:
        written(tmp_path, [*own(tmp_path, str), [path, "5", "1", "train"]])
    assert type(error.value).__module__ == "reid_jax.errors"


def test_names_as_other_systems_spell_them(tmp_path):
    """A zip of macOS holds decomposed letters; Windows does not care for capitals."""
    lines = own(tmp_path, str)
    plain = written(tmp_path, lines)
    for i, (stored, listed) in enumerate([("Zoe\u0308.png", "Zo\u00eb.PNG"), ("a\\b.png", "a\\b.png")]):
        (tmp_path / "a" / "j.png").rename(tmp_path / "a" / stored) if not i else picture(tmp_path, stored)
        lines[-2 + i] = [f"a/{listed}" if not i else listed, *lines[-2 + i][1:]]
    found = written(tmp_path, lines)
    assert shape(found) == shape(plain)
    assert found.gallery[-1].path == str(tmp_path / "a\\b.png")  # a name that really has a backslash


def test_names_that_are_not_utf8(tmp_path):
    lines = own(tmp_path, str)
    name = "\u884c\u4eba.png".encode("gbk")
    os.rename(bytes(tmp_path / "a" / "n.png"), bytes(tmp_path / "a") + b"/" + name)
    text = "\n".join(",".join(line) for line in lines).encode().replace(b"n.png", name)
    (tmp_path / "labels.csv").write_bytes(text)
    assert bytes(name) in [
        r.path.encode(errors="surrogateescape")[-len(name) :] for r in load(tmp_path).gallery
    ]
    (tmp_path / "labels.csv").write_bytes(text.replace(name, "\u884c\u4eba.png".encode()))
    with pytest.raises(DataError, match="1 of 18 listed images are missing"):
        load(tmp_path)


def test_without_cameras_all_pairs_are_compared(tmp_path):
    lines = [[line[0], line[1], *line[3:]] for line in own(tmp_path, str)]
    d = written(tmp_path, lines)
    assert d.protocol == "all-pairs" and d.camera_names == ("unknown",) and d.num_cams == 1
    assert len(d.query) == 4 and len(d.gallery) == 5
    empty = [[*line[:2], "" if i else "camid", *line[2:]] for i, line in enumerate(lines)]
    assert written(tmp_path, empty) == d
    empty[3][2] = "1"
    with pytest.raises(DataError, match="line 2: camid is empty"):
        written(tmp_path, empty)
    alone = [lines[0][:2], *(line[:2] for line in lines[1:] if line[0].endswith("1_0.png"))]
    with pytest.raises(DataError, match="one picture, and cameras are not known"):
        written(tmp_path, alone)


@pytest.mark.parametrize(
    "name, column", [("camera", "camid"), ("subset", "split"), ("part", "split"), ("splits", "split")]
)
def test_columns_under_other_names_are_not_passed_over(tmp_path, name, column):
    lines = own(tmp_path, str)
    lines[0][["path", "pid", "camid", "split"].index(column)] = name
    with pytest.raises(
        DataError, match=f"the column '{name}' is not known, and {column} is missing: call it"
    ):
        written(tmp_path, lines)


def test_a_table_says_what_it_does_not_read(tmp_path, caplog):
    caplog.set_level("INFO", "reid_jax")
    written(tmp_path, with_column(own(tmp_path, str), 1, "colour", lambda i: "red"))
    assert "columns that are not read: colour" in caplog.text


def test_the_line_is_named_whatever_the_shape(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\n\npath;pid\na;1\n\nb;2;3\n")
    with pytest.raises(DataError, match="t.csv, line 6 has more or fewer fields"):
        table.read(tmp_path / "t.csv", ("path", "pid"))


def test_check_counts_pictures_that_the_table_does_not_name(tmp_path):
    written(tmp_path, own(tmp_path, str))
    picture(tmp_path, "a/forgotten.png")
    found = check.check("folder", str(tmp_path), quick=True)
    assert found["notes"][-1] == "pictures that are left out: 1 not in labels.csv (a/forgotten.png)"
    assert found["left_out"] == {"not in labels.csv": {"a/forgotten.png": 1}}
