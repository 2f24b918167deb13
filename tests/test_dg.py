"""Domain generalisation: rows and sums of the protocols, what is told before, the table, the command."""

import builtins
import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
from trees import cuhk02, cuhk03, files, grid, ilids, market, picture, prid, viper

from reid_jax.data import datasets
from reid_jax.data.records import Dataset, Record
from reid_jax.data.synthetic import FOLDER
from reid_jax.dg import __main__ as command
from reid_jax.dg import compared, protocols, results, sets
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval.store import FeatureSet
from reid_jax.trained import process

CONFIG = f"{runs.CONFIGS}/baseline.py:smoke"


def rows(protocol):
    return {row.name: row for row in protocols.PROTOCOLS[protocol]}


def total(row):
    return tuple(map(sum, zip(*protocols.published(row), strict=True)))


def test_sums_of_the_sources_are_the_published_ones():
    """Protocol 1's 18,530 / 121,765; M3L's two forms, MSMT17 as target being the sum of the parts."""
    assert total(rows("1")["small"]) == (18530, 121765)
    want = {"market1501": (3110, 75406), "dukemtmc": (3159, 71820), "cuhk03": (2494, 62079)}
    assert {name: total(row) for name, row in rows("four").items()} == want | {"msmt17": (2820, 55721)}
    want = {"market1501": (2510, 56508), "dukemtmc": (2559, 52922), "msmt17": (2220, 36823)}
    assert {n: total(r) for n, r in rows("four-np").items() if n in want} == want


@pytest.mark.parametrize("protocol, share", [("2", "train"), ("3", "all")])
def test_who_trains_in_protocols_2_and_3(protocol, share):
    found = {n: (row.trained_on.split(" (")[0], row.targets) for n, row in rows(protocol).items()}
    assert found["cuhk03"] == ("M + MS + CS", (("cuhk03", "labeled"),))
    assert found["msmt17"] == ("M + CS + C3", (("msmt17", ""),))
    assert found["market1501"] == ("MS + CS + C3", (("market1501", ""),))
    assert {row.train_on for row in rows(protocol).values()} == {share}
    variants = {d.name: d.variant for row in rows(protocol).values() for d in row.sources}
    assert variants["msmt17"] == ("no-val" if share == "train" else "") and variants["cuhk03"] == "labeled"


def test_splits_of_the_small_sets():
    numbers = {d.name: protocols.splits_of(d) for d in rows("1")["small"].targets}
    assert numbers == {
        "viper": list(range(0, 20, 2)),
        **dict.fromkeys(("prid", "grid", "ilids"), [*range(10)]),
    }
    assert len(protocols.splits_of(protocols.Domain("viper"), both_directions=True)) == 20
    assert protocols.splits_of(protocols.Domain("cuhk03", "labeled")) == [0]


def test_a_set_is_left_out_and_the_table_says_so():
    kept = protocols.without(protocols.PROTOCOLS["2"], ["cuhk_sysu"])
    assert [row.trained_on for row in kept][0] == "M + MS, without CS"
    assert [r.name for r in protocols.without(protocols.PROTOCOLS["2"], ["market1501"])] == [
        "cuhk03",
        "msmt17",
    ]
    with pytest.raises(ConfigError, match="--without mars: no row has it"):
        protocols.without(protocols.PROTOCOLS["2"], ["mars"])


# ---- before anything trains
def crops(root):
    for pid, scene in ((1, 1), (1, 2), (4, 1)):
        picture(root, "cropped_images", f"p{pid}_s{scene}.jpg")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Everything of protocol 1 in small."""
    root = tmp_path_factory.mktemp("sets")
    market(root / "Market-1501-v15.09.15"), market(root / "DukeMTMC-reID"), cuhk02(root / "cuhk02")
    cuhk03(root / "cuhk03", mat=False, images=("detected", "labeled")), crops(root / "CUHK-SYSU")
    viper(root / "VIPeR"), prid(root / "prid_2011"), grid(root / "underground_reid")
    ilids(root / "i-LIDS_Pedestrian")
    return root


def dry(root, *more, workdir="/nowhere"):
    argv = ["--protocol", "1", "--config", CONFIG, "--root", str(root), "--workdir", workdir, "--dry-run"]
    return command.main([*argv, *more])


def test_dry_run_counts_protocol_1(five, capsys):
    """All pictures of the sources, query and gallery of the targets; no folder is made."""
    assert dry(five) == 0
    said = capsys.readouterr().out
    assert (
        "source market1501: 4 identities, 12 pictures (1501 identities, 29419 pictures are published)" in said
    )
    assert "source cuhk02: 15 identities, 60 pictures" in said
    assert "source cuhk03-detected: 6 identities, 24 pictures" in said
    assert "source cuhk_sysu: 2 identities, 3 pictures" in said
    assert "sources together: 31 identities, 111 pictures" in said
    assert "target viper: 3 queries, 3 in the gallery, 10 splits" in said
    assert "target prid: 3 queries, 5 in the gallery, 10 splits" in said
    assert "target grid: 3 queries, 5 in the gallery, 10 splits" in said
    assert "target ilids: 3 queries, 3 in the gallery, 10 splits" in said
    assert not os.path.exists("/nowhere")


def test_missing_sets_are_told_together(five, tmp_path, capsys):
    root = shutil.copytree(five, tmp_path / "some")
    shutil.rmtree(root / "CUHK-SYSU"), shutil.rmtree(root / "VIPeR")
    assert dry(root) == 3
    said = capsys.readouterr().out
    assert (
        said.partition("would train")[0].count("MISSING") == 2
        and "source cuhk_sysu: MISSING" in said
        and "target viper: MISSING" in said
    )
    argv = ["--protocol", "1", "--config", CONFIG, "--root", str(root), "--workdir", str(tmp_path / "w")]
    with pytest.raises(DataError, match=r"(?s)2 sets cannot be used.*cropped_image.*cam_a/000_45.bmp"):
        command.main(argv)
    assert not os.path.exists(tmp_path / "w")
    assert dry(root, "--without", "cuhk_sysu", "viper") == 0
    assert dry(root, "--at", f"cuhk_sysu={five}", f"viper={five}") == 0


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--sources cuhk01 market1501 --targets cuhk02", "cuhk01, which trains, and cuhk02 show the same"),
        ("--sources market1501 --targets market1501", "market1501 trains and is tested"),
        ("--sources market1501 synthetic --targets viper", "synthetic sets go with each other only"),
        ("--domains synthetic synthetic2", "name three or more"),
        ("--sources nothing --targets viper", "no data set is called 'nothing'"),
        ("--sources market1501", "belong together"),
        ("--protocol 2 --rows viper", "there are cuhk03, msmt17, market1501"),
        ("--protocol 2 --set loss.margin", "is not FIELD=VALUE"),
        ("--protocol 2 --set loss.marging=1", "there is no field config.loss.marging"),
        ("--protocol 2 --set loss.margin=x", "'x' is no value for config.loss.margin"),
    ],
)
def test_what_cannot_be(argv, message):
    with pytest.raises(ConfigError, match=message):
        command.main([*argv.split(), "--config", CONFIG, "--workdir", "/nowhere"])


def test_a_workdir_is_for_one_command(tmp_path):
    argv = f"--protocol 2 --config {CONFIG} --workdir {tmp_path} --root x".split()

    def check(*more):
        args = command.parse([*argv, *more])
        return [command.check_same(args, job) for job in command.jobs_of(args)]

    check(), check("--seeds", "0", "1", "--rows", "cuhk03")  # more of the same
    with pytest.raises(ConfigError, match="--set was .*another --workdir"):
        check("--set", "loss.margin=0.2")
    with pytest.raises(ConfigError, match="holds runs of one config without a label"):
        check("--config", f"a={CONFIG}")
    check("--config", f"a={CONFIG}", f"b={CONFIG}", "--workdir", f"{tmp_path}/several")
    with pytest.raises(ConfigError, match="several/a holds runs of another command: --config was"):
        check("--config", f"a={CONFIG}-x".replace("smoke-x", "market"), "--workdir", f"{tmp_path}/several")


# ---- the table
def test_cells_by_hand():
    assert results.cell({0: [50.0]}) == "50.0"
    assert results.cell({0: [40.0, 60.0]}) == "50.0 ± 10.0"  # population deviation over the splits
    assert results.cell({0: [50.0], 1: [60.0]}) == "55.0 (seeds ± 7.1)"
    assert results.cell({0: [40.0, 60.0], 1: [50.0, 60.0]}) == "52.5 ± 7.5 (seeds ± 3.5)"


def run_of(**targets):
    """What `tested` gives: {target: rank-1 of each split}."""
    return {
        "step": 12,
        "seconds": 90.0,
        "own": {"rank1": 90.0, "mAP": 70.0},
        "settings": {},
        "targets": {
            name: {i: {"rank1": v, "mAP": v / 2, "drawn": {"train_ids": [i]}} for i, v in enumerate(values)}
            for name, values in targets.items()
        },
    }


def test_table_csv_and_json(tmp_path):
    a, b = protocols.leave_one_out(*[tuple(map(protocols.Domain, ("market1501", "viper")))] * 2)
    done = {"market1501": {0: run_of(market1501=[10.0])}, "viper": {0: run_of(viper=[20.0, 40.0])}}
    found = [sets.Counted(r.name, r.sources[0], "source", "", (3, 9)) for r in (a, b)]
    text = results.write([a, b], done, "Title", found, {"protocol": "x"}, str(tmp_path))
    table = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == ["trained on", "tested on", "rank-1", "mAP", "at home: rank-1 / mAP"]
    assert table[2] == ["viper", "market1501", "10.0", "5.0", "90.0 / 70.0"]
    assert table[3] == ["M", "viper", "30.0 ± 10.0", "15.0 ± 5.0", "90.0 / 70.0"]
    assert table[4][:3] == ["mean", "", "20.0"]
    assert "- M: market1501 3 / 9; together 3 identities, 9 pictures" in text and "last checkpoint" in text
    with open(tmp_path / "dg.csv") as f:
        lines = list(csv.reader(f))
    assert lines[0] == ["row", "seed", "target", "split", "rank1", "mAP"]
    assert lines[2:] == [
        ["viper", "0", "viper", "0", "20.0", "10.0"],
        ["viper", "0", "viper", "1", "40.0", "20.0"],
    ]
    kept = json.loads((tmp_path / "dg.json").read_text())
    assert kept["rows"]["viper"]["0"]["targets"]["viper"]["1"]["drawn"] == {"train_ids": [1]}
    assert kept["sources"][0] == {"row": "market1501", "set": "viper", "ids": 3, "images": 9}


def test_several_configs_by_hand(tmp_path):
    """Means over targets of the seeds that all rows have, and differences to the first seed by seed."""
    rows = protocols.leave_one_out(*[tuple(map(protocols.Domain, ("market1501", "viper")))] * 2)
    a = {"market1501": {0: run_of(market1501=[10.0]), 1: run_of(market1501=[20.0])}}
    a |= {"viper": {0: run_of(viper=[20.0, 40.0]), 1: run_of(viper=[30.0, 50.0])}}
    b = {"market1501": {0: run_of(market1501=[14.0])}, "viper": {0: run_of(viper=[32.0, 32.0])}}
    c = {"viper": {1: run_of(viper=[60.0])}}
    done, paths = {"A": a, "B": b, "C": c}, {"A": "a.py:x", "B": "b.py", "C": "c.py"}
    text = compared.write(rows, done, "Title", paths, str(tmp_path))
    table = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0][1:6] == ["market1501", "viper", "mean rank-1", "mean mAP", "mean mAP minus A"]
    assert table[2][1:] == [
        *("15.0 / 7.5", "35.0 / 17.5", "25.0 (seeds ± 7.1)", "12.5 (seeds ± 3.5)", "-", "70.0", "1.5"),
    ]
    assert table[3][1:6] == ["14.0 / 7.0", "32.0 / 16.0", "23.0", "11.5", "1.5 (up in 1 of 1)"]
    assert table[4][1:6] == ["-", "60.0 / 30.0", "-", "-", "-"]  # its mean would be of other targets
    assert "- A: a.py:x, seeds [0, 1]" in text
    with open(tmp_path / "dg.csv") as f:
        assert list(csv.reader(f))[1] == ["A", "market1501", "0", "market1501", "0", "10.0", "5.0"]
    assert json.loads((tmp_path / "dg.json").read_text())["A"]["mean"]["mAP"] == {"0": [10.0], "1": [15.0]}


@pytest.mark.parametrize(
    "given, message",
    [
        ([CONFIG, CONFIG], "is not LABEL=CONFIG"),
        ([f"a={CONFIG}", f"a={CONFIG}"], "two runs are called 'a'"),
        ([f"data={CONFIG}"], "'data' cannot be a run's label"),
        (["@/nowhere/list.txt"], "list.txt"),
    ],
)
def test_configs_need_labels(given, message):
    with pytest.raises(ConfigError, match=message):
        command.parse(["--protocol", "2", "--workdir", "x", "--config", *given])


def test_configs_of_a_table_draw_the_same_sets():
    argv = argv_of("/nowhere", "--config", f"A={CONFIG}", f"B={CONFIG.replace('smoke', 'synthetic')}")
    sizes = [x for x in argv if not x.startswith("data.synthetic.train_ids")]
    with pytest.raises(ConfigError, match="A and B draw other sets: data.synthetic.train_ids is 6 and 100; "):
        command.main(sizes)
    rows, jobs = command.rows_of(command.parse(argv)), command.jobs_of(command.parse(argv))
    command.check_drawn(rows, jobs)


def test_splits_are_taken_out_of_one_embedding(five):
    """Rows of each split's own pictures, with its own labels, whatever the order of the features."""
    where = sets.Where(str(five), {}, None, "")
    for name in ("viper", "grid", "ilids"):
        domain = protocols.Domain(name)
        splits = [sets.target(domain, where, n) for n in protocols.splits_of(domain)]
        paths = sorted({os.path.relpath(r.path, d.root) for d in splits for r in (*d.query, *d.gallery)})[
            ::-1
        ]
        count = np.arange(len(paths), dtype=np.float32)[:, None]
        none = np.zeros(len(paths), np.int64)
        features = FeatureSet(count, none, none, np.array(paths), np.full(len(paths), "images"))
        for d in splits:
            part = results.of_split(features, {p: i for i, p in enumerate(paths)}, d)
            assert [paths[int(i)] for i in part.feature[:, 0]] == list(part.path)
            assert [*part.pid] == [r.pid for r in (*d.query, *d.gallery)]
            assert [*part.split] == ["query"] * len(d.query) + ["gallery"] * len(d.gallery)
        assert results.protocol_of(splits[0]) == "all-pairs"  # one picture of everybody: nothing to draw


def test_who_has_several_gallery_pictures_is_drawn():
    def dataset(pids, protocol):
        gallery = tuple(Record(f"/{i}", pid, 0) for i, pid in enumerate(pids))
        return Dataset("x", "/", gallery, gallery, gallery, ("c1",), protocol=protocol)

    protocol = [results.protocol_of(dataset(p, "single-gallery")) for p in ((1, 2, 0, 0), (1, 1, 2))]
    assert protocol == ["all-pairs", "single-gallery"]
    assert results.protocol_of(dataset((1, 2), "market")) == "market"


# ---- nothing of the target is read
def spied(monkeypatch):
    """List that fills with the paths that Python opens or lists."""
    seen = []

    def noting(call):
        return lambda *given, **options: (seen.append(str(given[:1])), call(*given, **options))[1]

    for module, name in ((builtins, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    return seen


SIZES = dict(train_ids=4, test_ids=3, cameras=2, images=2, height=32, width=16, distractors=1, junk=1)
SMALL = [f"data.synthetic.{field}={value}" for field, value in SIZES.items()]


def argv_of(workdir, *more):
    names = ["synthetic", "synthetic2", "synthetic3"]
    fields = [*SMALL, "data.ids=2", "train.steps=4", "data.threads=1", "model.bn_group=global"]
    argv = ["--domains", *names, "--config", CONFIG, "--workdir", str(workdir), "--set", *fields]
    return [*argv, *more]


def training_set(workdir, row):
    """The Dataset of a row as its run loads it."""
    args = command.parse(argv_of(workdir))
    (job,) = command.jobs_of(args)
    config = job.config
    (row,) = [r for r in command.rows_of(args) if r.name == row]
    where = job.where
    sets.survey([row], where)  # draws them, as the command does first
    for flag in sets.flags(row, where, 0):
        field, _, value = flag[len("--config.data.") :].partition("=")
        if flag.startswith("--config.data.") and field in ("name", "root", "train_on"):
            config.data[field] = value
    config.data.synthetic.style = 1
    return config, row


def spoil(folder, seed=0):
    """Noise in place of every file below a folder."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.suffix == ".jpg":
            path.write_bytes(np.random.default_rng(seed).bytes(200))


def test_loading_of_the_sources_opens_nothing_of_the_target(tmp_path, monkeypatch):
    config, row = training_set(tmp_path, "synthetic2")
    with monkeypatch.context() as patch:
        seen = spied(patch)
        dataset = datasets.load(config.data, None)
    assert any("seed-0/synthetic3" in path for path in seen) and any(f"seed-0/{FOLDER}" in p for p in seen)
    assert dataset.domain_names == ("synthetic", "synthetic3") and len(dataset.train) == 32
    assert not any("synthetic2" in path for path in seen)


def stubborn(monkeypatch):
    """Runs of the command in forked processes instead of new ones, which is quicker; counts them."""
    import command as forked

    started = []

    def call(line, stdout=None, **options):
        started.append(line)
        return type("Done", (), {"returncode": forked.end(forked.start(line[3:], stdout.name), 300)})

    monkeypatch.setattr(process.subprocess, "run", call)
    return started


@pytest.mark.slow
def test_from_start_to_end_and_again(tmp_path, monkeypatch, capsys):
    """One left out of three, two seeds; the second call trains nothing; a run that was cut short goes on."""
    started = stubborn(monkeypatch)
    assert command.main(argv_of(tmp_path, "--seeds", "0", "1")) == 0
    text = capsys.readouterr().out
    assert len(started) == 6 and text.count("(seeds ±") >= 12 and "synthetic2 + synthetic3" in text
    first = files(tmp_path)
    assert {"dg.md", "dg.csv", "dg.json"} <= set(first)
    made = json.loads(first["dg.json"])
    assert set(made["rows"]) == {"synthetic", "synthetic2", "synthetic3"}
    assert all(set(runs) == {"0", "1"} and runs["0"]["step"] == 4 for runs in made["rows"].values())
    assert made["sources"][0] == {"row": "synthetic", "set": "synthetic2", "ids": 4, "images": 16}
    assert command.main(argv_of(tmp_path, "--seeds", "0", "1")) == 0
    assert len(started) == 6 and files(tmp_path) == first
    # killed before its end: checkpoints are there, the summary is not
    folder = tmp_path / "synthetic2" / "seed-1"
    os.remove(folder / "summary.json")
    assert command.main(argv_of(tmp_path, "--seeds", "0", "1", "--rows", "synthetic2")) == 0
    assert len(started) == 7 and "going on from step 4" in (folder / "log.txt").read_text()
    assert (tmp_path / "dg.md").read_bytes() == first["dg.md"]


@pytest.mark.slow
def test_two_configs_in_one_table(tmp_path, monkeypatch, capsys):
    """On the same drawn sets; a config that is added later trains alone."""
    started = stubborn(monkeypatch)
    argv = argv_of(tmp_path, "--config", f"A={CONFIG}")
    assert command.main(argv) == 0
    capsys.readouterr()
    argv += [f"B={Path(CONFIG).parent}/metabin.py:smoke"]
    assert command.main([*argv, "--dry-run"]) == 0
    assert "train 6 rows x 1 seed = 6 runs, 3 of them finished" in capsys.readouterr().out
    assert command.main(argv) == 0
    said = capsys.readouterr()
    assert len(started) == 6 and said.err.count("training B, synthetic") == 3
    text = (tmp_path / "dg.md").read_text()
    assert text in said.out and "mean mAP minus A" in text and len(list(tmp_path.glob("*/dg.md"))) == 2
    assert os.listdir(tmp_path / "data") == ["seed-0"] and not (tmp_path / "A" / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "noise"])
def test_training_is_the_same_bits_whatever_the_target_is(tmp_path, monkeypatch, how):
    """The target's folder is gone, or its pictures are noise: the same parameters, moments and metrics."""
    stubborn(monkeypatch)
    for name in ("whole", "without"):
        folder = tmp_path / name
        config, row = training_set(folder, "synthetic2")
        target = folder / "data" / "seed-0" / "synthetic2"
        assert target.is_dir()
        if name == "without":
            shutil.rmtree(target) if how == "deleted" else spoil(target)
        assert command.main(argv_of(folder, "--rows", "synthetic2", "--only", "train")) == 0
    runs.assert_same_run(tmp_path / "whole/synthetic2/seed-0", tmp_path / "without/synthetic2/seed-0")
    assert (tmp_path / "without/data/seed-0/synthetic2").exists() == (how == "noise")
    if how == "deleted":
        with pytest.raises(ConfigError, match="nothing is trained of synthetic seed 0"):
            command.main(argv_of(tmp_path / "without", "--only", "test"))
