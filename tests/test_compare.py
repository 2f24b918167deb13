"""The comparison table against hand numbers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reid_jax import cli
from reid_jax.commands import compare
from reid_jax.errors import STOPPED, USER_ERROR, ConfigError, DataError, ReidError
from reid_jax.eval import paired
from reid_jax.trained import labels, process
from reid_jax.trained.figures import label_quality

ROOT = Path(__file__).parent.parent


def figures(rank1, seconds=60.0):
    return {
        "rank1": rank1,
        "mAP": rank1 / 2,
        "other_id_same_cam": 10.0,
        "prop": 20.0,
        "camera_probe": 70.0,
        "net": "m1",
        "parameters": 1_234_567,
        "seconds": seconds,
    }


def cells(line):
    """Texts of a line of a Markdown table."""
    return [text.strip() for text in line.strip("|").split("|")]


def test_table_has_means_spreads_and_paired_gains(tmp_path):
    results = {
        "baseline": {0: figures(50.0), 1: figures(60.0)},
        "EFL": {0: figures(56.0, 120.0), 1: figures(58.0, 120.0)},
    }
    text = compare.write(results, tmp_path)
    first, second = (cells(line) for line in text.splitlines()[2:])
    assert first[2] == "55.0 ± 7.1" and first[6] == "-"
    assert second[2] == "57.0 ± 1.4" and second[6:] == ["1.0 ± 2.8 (up in 1 of 2)", "2", "1.23", "2.0"]
    row = (tmp_path / "table.csv").read_text().splitlines()[1]
    assert row == "baseline,0,25.0,50.0,10.0,20.0,70.0,m1,1234567,60.0"
    assert (tmp_path / "table.md").read_text() == text


def test_runs_of_older_versions_have_no_parameters(tmp_path):
    text = compare.table({"a": {0: figures(50.0) | {"parameters": None}}}, "a")
    assert cells(text.splitlines()[2])[-3:] == ["1", "-", "1.0"]


def test_rows_say_which_seeds_are_missing(tmp_path):
    """Gains are over the seeds that both rows have; a row without any run has no figures."""
    results = {"a": {0: figures(50.0), 1: figures(60.0)}, "b": {1: figures(61.0)}, "c": {}}
    results["d"] = {1: figures(62.0), 2: figures(99.0)}
    first, second, third, fourth = (
        cells(line) for line in compare.write(results, tmp_path, 2).splitlines()[2:]
    )
    assert first[-3] == "2" and second[-3] == "1 of 2" and third[-3] == "0 of 2"
    assert second[6] == "0.5 (up in 1 of 1)" and third[1:7] == ["-"] * 6 and third[-1] == "-"
    assert fourth[6] == "1.0 (up in 1 of 1)"


def test_show_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "train_all", lambda args: pytest.fail("trained"))
    with pytest.raises(DataError, match="no finished run of a"):
        compare.main(f"--workdir {tmp_path} --show a=configs/efl.py:smoke".split())


def test_runs_of_a_file(tmp_path):
    file = tmp_path / "runs.txt"
    file.write_text("# both\na=configs/efl.py:smoke\n\nb=configs/baseline.py:smoke\n")
    args = compare.arguments(["--workdir", "w", f"@{file}", "c=configs/mgn.py:smoke"])
    assert list(args.runs) == ["a", "b", "c"] and args.runs["b"] == "configs/baseline.py:smoke"
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="lists no LABEL=CONFIG"):
        labels.listed(f"@{file}")
    with pytest.raises(ConfigError, match=r"other.txt cannot be read: No such file"):
        labels.listed(f"@{tmp_path}/other.txt")


@pytest.mark.parametrize(
    "name, first, last", [("supervised", "baseline", "SCAL"), ("unlabelled", "source", "bound")]
)
def test_lists_name_variants_that_exist(name, first, last):
    """All rows of a list test on the one drawn set that they share."""
    runs = [labels.labelled(r) for r in labels.listed(f"@{ROOT / 'configs' / name}.txt")]
    assert (runs[0][0], runs[-1][0]) == (first, last) and len(dict(runs)) == len(runs)
    for _, path in runs:
        data = cli.load_config(str(ROOT / path)).data
        assert (data.target or data.name) == "synthetic"


def test_the_list_for_unseen_sets_draws_the_same():
    """Rows differ by what generalises alone."""
    configs = labels.configs([f"@{ROOT / 'configs' / 'unseen.txt'}"])
    assert (list(configs)[0], list(configs)[-1], len(configs)) == ("baseline", "MetaBIN", 10)
    made = [cli.load_config(str(ROOT / path)) for path in configs.values()]
    drawn = [{**c.data.synthetic, "style": 1} for c in made]  # as the command asks for
    assert all(d == drawn[0] for d in drawn) and len({c.data.height for c in made}) == 1


def test_arguments():
    argv = "--workdir w --seeds 3,4 a=configs/efl.py:smoke b=configs/baseline.py:smoke -- --config.seed=2"
    args = compare.arguments(argv.split())
    assert args.runs == {"a": "configs/efl.py:smoke", "b": "configs/baseline.py:smoke"}
    assert args.seeds == [3, 4] and args.extra == ["--config.seed=2"]
    with pytest.raises(ConfigError, match="LABEL=CONFIG"):
        labels.labelled("configs/efl.py:smoke")
    for wrong, words in (
        ("--seeds 0,0 a=c.py", "--seeds: 0,0 names a seed twice"),
        ("--seeds -1 a=c.py", "--seeds: -1 is not a whole number from 0"),
        ("--jobs 0 a=c.py", "--jobs: 0 is not a whole number from 1"),
        ("--data_seed some a=c.py", "'some' is neither a seed from 0 nor each"),
        ("a=c.py a=d.py", "two runs are called 'a'"),
        ("a/b=c.py a_b=d.py", "two runs are called 'a_b'"),
        ("data=c.py", "'data' cannot be a run's label"),
        ("..=c.py", "'..' cannot be a run's label"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare.arguments(["--workdir", "w", *wrong.split()])
    with pytest.raises(ConfigError, match="does not exist"):
        cli.load_config("configs/nothing.py")


def test_stopped_run_stops_the_comparison(tmp_path, monkeypatch, capsys):
    """Exit code 75 of the second run of three: no failure, no third run; the same command goes on."""
    codes, started = [0, STOPPED], []

    def call(command, **options):
        folder = next(x.partition("=")[2] for x in command if x.startswith("--workdir="))
        started.append(Path(folder).name)
        code = codes.pop(0)
        if code == 0:
            (Path(folder) / "summary.json").write_text("{}")
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(process.subprocess, "run", call)
    argv = f"--workdir {tmp_path} --seeds 0,1,2 a=configs/efl.py:market".split()
    assert compare.main(argv) == STOPPED == 75
    assert started == ["seed-0", "seed-1"]
    said = capsys.readouterr().err
    assert "seed-1 was stopped on request" in said and "the same command goes on" in said
    codes[:] = [USER_ERROR] * 2
    with pytest.raises(ReidError, match=r"failed \(2\)"):
        compare.main(argv)
    assert started[2] == "seed-1"  # seed-0 is finished


def test_quality_of_pseudo_labels_is_the_last_rounds(tmp_path):
    lines = ['{"kind": "train", "step": 1}', '{"kind": "labels", "step": 1, "ari": 3.0}',
             '{"kind": "labels", "step": 2, "ari": 7.0}', '{"kind": "train", "step": 3}']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert label_quality(tmp_path) == {"ari": 7.0}
    results = {"a": {0: figures(50.0) | {"ari": 30.0}}, "b": {0: figures(60.0) | {"ari": 40.0}}}
    head, _, *rows = (cells(line) for line in compare.write(results, tmp_path).splitlines())
    assert [r[head.index("label ARI")] for r in rows] == ["30.0", "40.0"]
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n")
    assert label_quality(tmp_path) == {}


def test_data_is_shared_unless_each_seed_has_its_own(tmp_path, monkeypatch):
    drawn, given = [], {}
    monkeypatch.setattr(
        compare, "prepare_data", lambda path, workdir, seed, ids, *_: drawn.append((seed, ids)) or [seed]
    )
    monkeypatch.setattr(compare, "train", lambda path, folder, seed, flags, *_: given.update({seed: flags}))
    for flags, sets in ((["--test_ids=400"], [(0, 400)]), (["--data_seed=each"], [(3, 0), (4, 0)])):
        drawn.clear()
        argv = [
            f"--workdir={tmp_path}",
            "--seeds=3,4",
            "a=c.py:x",
            *flags,
            "--",
            "--config.init.run=b/{seed}",
        ]
        compare.train_all(compare.arguments(argv))
        assert drawn == sets
    assert given == {seed: [seed, f"--config.init.run=b/{seed}"] for seed in (3, 4)}


def test_others_start_from_the_runs_of_one_label(tmp_path, monkeypatch):
    """Which are finished first, of every seed, also with several runs at a time."""
    done = []

    def train(path, folder, seed, flags, *_):
        start = [x.partition("=")[2] for x in flags if x.startswith("--config.init.run=")]
        assert all(Path(x).parts[-2:] in done for x in start)
        done.append(Path(folder).parts[-2:])
        assert bool(start) == (path != "a.py") and all(x.endswith(f"a/seed-{seed}") for x in start)

    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(compare, "prepare_data", lambda *_: [])
    argv = f"--workdir={tmp_path} --seeds=3,4 b=b.py a=a.py --start=a --jobs".split()
    for jobs in ("1", "3"):
        compare.train_all(compare.arguments([*argv, jobs]))
        assert {*done[:2]} == {("a", "seed-3"), ("a", "seed-4")} and len(done) == 4
        done.clear()
    with pytest.raises(ConfigError, match="--start c: there are b, a"):
        compare.arguments(["--workdir=w", "b=b.py", "a=a.py", "--start=c"])


def test_prepared_sets_have_as_many_people_as_asked(tmp_path):
    """Also by what stands behind `--`."""
    extra = ["--config.data.synthetic.train_ids=5", "--profile=1:2"]
    flags = compare.prepare_data("configs/baseline.py:smoke", tmp_path, 5, 7, extra)
    assert flags == [f"--config.data.root={tmp_path}/data/seed-5", "--config.data.synthetic.seed=5",
                     "--config.data.synthetic.test_ids=7"]  # fmt: skip
    for folder, count in (("query", 7), ("bounding_box_train", 5)):
        pictures = list((tmp_path / "data" / "seed-5").rglob(f"{folder}/*.jpg"))
        assert len({picture.name[:4] for picture in pictures}) == count
    with pytest.raises(ConfigError, match="stepz"):
        compare.prepare_data("configs/baseline.py:smoke", tmp_path, 5, 7, ["--config.train.stepz=5"])


def test_seeds_of_a_real_set_have_splits_of_their_own(tmp_path):
    assert compare.prepare_data("configs/efl.py:pku", tmp_path, 3) == []
    assert compare.prepare_data("configs/efl.py:pku", tmp_path, 3, each=True) == ["--config.data.split=3"]
    assert compare.prepare_data("configs/efl.py:market", tmp_path, 3, each=True) == []


def test_differences_are_named_where_they_decide_nothing(tmp_path):
    rng = np.random.default_rng(0)
    base = {s: drawn_queries(rng) for s in (0, 1)}
    noisy = {s: q._replace(ap=q.ap[::-1].copy()) for s, q in base.items()}
    better = {s: q._replace(ap=q.ap + 0.2) for s, q in base.items()}
    gaps = compare.differences({"a": base, "b": noisy, "c": better, "d": {0: base[0], 1: None}})
    assert list(gaps) == ["b", "c"] and gaps["c"]["mAP"].ahead == 2
    results = {label: {0: figures(50.0)} for label in "abc"}
    text = compare.write(results, tmp_path, 1, gaps)
    assert "over 40 people and 2 training seeds" in text
    assert ["minus a", "mAP", "rank-1"] in [cells(line)[:3] for line in text.splitlines()]
    row = next(line for line in text.splitlines() if line.startswith("| c ") and "[" in line)
    assert cells(row)[1].startswith("+20.0 [+20.0, +20.0], ahead in 2 of 2") and "holds zero" in cells(row)[2]
    assert [line[0] for line in compare.undecided(gaps)] == ["b"]
    assert (tmp_path / "differences.json").exists()


def drawn_queries(rng):
    pid = np.repeat(np.arange(40), 3)
    path = np.array([f"{i}.jpg" for i in range(120)])
    return paired.Queries(path, pid, rng.uniform(0, 0.8, 120), rng.integers(0, 3, 120))
