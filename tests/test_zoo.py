"""The page of all methods: runs as they are on the disk, by hand; what is missing is shown as missing."""

import json

import chromium
import pytest

from reid_jax import methods
from reid_jax.commands import zoo
from reid_jax.errors import DataError


def a_run(folder, method="baseline", mAP=50.0, rank1=60.0, **more):
    """The files of a finished run that the page reads."""
    config = methods.defaults(method)
    config["data"].update(name="synthetic")
    config["data"]["synthetic"].update(test_ids=7)
    figures = {"rank1": rank1, "mAP": mAP}
    final = {"nets": {"net": figures}, "net": "net", "random": {"mAP": 1.5}}
    summary = {"seconds": 60.0, "parameters": 2_500_000, "steps": 12} | more
    (folder / "eval").mkdir(parents=True)
    for name, value in (("config", config), ("summary", summary), ("eval/final", final)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("")


def lines(folder):
    """Cells of the Markdown table's rows."""
    rows = (folder / "zoo.md").read_text().splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")][2:]


@pytest.fixture
def made(tmp_path, capsys):
    """Folder of the page of three runs: two seeds of a row and one whose name is markup."""
    a_run(tmp_path / "runs" / "table" / "A" / "seed-0")
    a_run(tmp_path / "runs" / "table" / "A" / "seed-1", mAP=60.0, rank1=80.0)
    a_run(tmp_path / "runs" / "<script>", mAP=70.0)
    assert zoo.main([str(tmp_path / "runs"), "--output", str(tmp_path / "zoo")]) == 0
    assert "no finished run" in capsys.readouterr().out
    return tmp_path / "zoo"


def test_runs_are_shown_and_what_is_missing(made):
    rows = lines(made)
    titles = [methods.about(name)[0] for name in methods.names()]
    assert {row[1] for row in rows} == set(titles) and len(rows) == len(titles) + 1  # two rows of one method
    best, other = (row for row in rows if row[2] != "no finished run")
    about = "drawn (image), 7 people; resnet50, 12 steps"
    assert best[2:] == ["<script>", about, "60.0", "70.0", "2.5", "–", "1"]
    assert other[2:] == ["A", about, "70.0 ± 14.1", "55.0 ± 7.1", "2.5", "–", "2"]  # by hand
    assert all(row[3:] == ["–"] * 6 for row in rows if row[2] == "no finished run")
    page = (made / "zoo.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("no finished run") == len(titles) - 1
    kept = json.loads((made / "zoo.json").read_text())
    assert [row["label"] for row in kept] == ["<script>", "A"] and kept[1]["results"][1]["mAP"] == 60.0


def test_runs_behind_links_are_found_once(tmp_path):
    """A table gathered from elsewhere by links; one that leads back up ends nothing."""
    a_run(tmp_path / "elsewhere" / "A" / "seed-0")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "A").symlink_to(tmp_path / "elsewhere" / "A")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
    (row,) = zoo.read([str(tmp_path / "runs")])
    assert row.label == "A" and len(row.results) == 1


def test_runs_of_dg_are_one_row_with_figures_of_unseen_sets(tmp_path):
    """Of the seeds that all rows have; a config whose table is not written yet is left out."""
    a, b = ({"0": {"targets": {}}, "1": {"targets": {}}} for _ in range(2))
    a["0"]["targets"] = {"x": {"0": {"rank1": 10.0, "mAP": 1.0}, "1": {"rank1": 30.0, "mAP": 3.0}}}
    b["0"]["targets"] = {"y": {"0": {"rank1": 40.0, "mAP": 6.0}}}
    for name in ("A", "B"):
        for place in ("x/seed-0", "x/seed-1", "y/seed-0"):
            a_run(tmp_path / name / place, mAP=90.0)
        (tmp_path / name / "dg-asked.json").write_text("{}")
    (tmp_path / "A" / "dg.json").write_text(json.dumps({"rows": {"x": a, "y": {"0": b["0"]}}}))
    (row,) = zoo.read([str(tmp_path)])
    assert (row.label, row.results) == ("A", [{"rank1": 30.0, "mAP": 4.0, "parameters": 2_500_000}])
    assert row.about.startswith("drawn (image), 7 people, unseen sets; ")


def test_methods_say_what_they_are_for():
    known = {s for settings in methods.SETTINGS.values() for s in settings}
    known |= {"domain generalisation", "sets one after another"}
    every = [setting for name in methods.names() for setting in methods.settings(name)]
    assert set(every) == known and len(every) > len(methods.names())
    assert methods.settings("baseline") == ("supervised",)


def test_damaged_runs_are_left_out(tmp_path, caplog):
    a_run(tmp_path / "good")
    for name, text in (("cut", "{"), ("list", "[]"), ("strange", '{"method": "nonsense"}')):
        a_run(tmp_path / name)
        (tmp_path / name / "config.json").write_text(text)
    assert [row.label for row in zoo.read([str(tmp_path)])] == ["good"]
    assert all(f"{name} is left out" in caplog.text for name in ("cut", "list", "strange"))
    with pytest.raises(DataError, match="nowhere is no folder"):
        zoo.read([str(tmp_path / "nowhere")])


@pytest.mark.slow
@pytest.mark.skipif(chromium.program() is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_the_screen(made, width):
    with chromium.Browser() as browser:
        browser.resize(width, 900, phone=width < 500)
        browser.open((made / "zoo.html").as_uri())
        assert browser.run("document.documentElement.scrollWidth") == width
        assert not browser.said and browser.asked == [(made / "zoo.html").as_uri()]
