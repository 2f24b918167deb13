"""Using a finished run: embed, evaluate, cross; its training data may be gone."""

import json
import os
import shutil

import numpy as np
import pytest
from runs import load, tiny, train
from sklearn import metrics

from reid_jax.commands import cross, embed, score
from reid_jax.data import synthetic
from reid_jax.errors import CheckpointError, ConfigError, DataError
from reid_jax.eval import store

SIZES = dict(height=32, width=16, progress=False)


def generate(root, **sizes):
    defaults = dict(train_ids=4, test_ids=4, cameras=3, images=2, distractors=2, junk=2)
    return synthetic.generate(str(root), **(defaults | SIZES | sizes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Workdir of a finished smoke run whose training set has been moved away; `moved`: where to."""
    workdir = tmp_path_factory.mktemp("apply")
    config = tiny("baseline", data__name="market1501", train__eval_every=0)
    dataset = load(config, generate(workdir / "data", train_ids=6))
    train(config, dataset, workdir / "run")
    shutil.move(config.data.root, workdir / "moved")
    return workdir


def test_embed_gives_the_features_of_the_run(run, tmp_path, capsys):
    out = tmp_path / "f.npz"
    flags = ["--output", str(out), "--checkpoint", "latest"]
    assert embed.main([str(run / "run"), f"market1501:{run / 'moved'}", *flags]) == 0
    got, want = store.load(out), store.load(run / "run" / "eval" / "final.npz")
    np.testing.assert_allclose(got.feature, want.feature, rtol=1e-4, atol=1e-5)
    for name in ("pid", "camid", "path", "split"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert "step 12" in capsys.readouterr().out


def test_embed_a_folder_of_pictures(run, tmp_path):
    folder = tmp_path / "pictures" / "inside"
    folder.mkdir(parents=True)
    names = sorted(p.name for p in (run / "moved" / "query").glob("*.jpg"))[:5]
    for i, name in enumerate(names):
        shutil.copy(run / "moved" / "query" / name, folder / (name if i < 3 else f"holiday{i}.jpg"))
    out = tmp_path / "f.npz"
    embed.main([str(run / "run"), str(folder.parent), "--output", str(out), "--checkpoint", "latest"])
    got, all_ = store.load(out), store.load(run / "run" / "eval" / "final.npz")
    rows = {p.split("/")[-1]: i for i, p in enumerate(all_.path) if p.startswith("query")}
    assert set(got.split) == {"images"} and len(got) == 5
    for i, path in enumerate(got.path):
        name = path.split("/")[-1]
        if name in rows:
            assert got.pid[i] == all_.pid[rows[name]] and got.camid[i] >= 1
            np.testing.assert_allclose(got.feature[i], all_.feature[rows[name]], rtol=1e-4, atol=1e-5)
        else:
            assert (got.pid[i], got.camid[i]) == (-1, 0)


def test_pictures_that_cannot_be_read(run, tmp_path, capsys):
    """They stop the command with their names and the way out, or are left out."""
    folder = tmp_path / "pictures"
    shutil.copytree(run / "moved" / "query", folder)
    names = sorted(p.name for p in folder.glob("*.jpg"))
    for name, kept in ((names[0], 0), (names[3], 90)):
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])
    args = [str(run / "run"), str(folder), "--output", str(tmp_path / "f.npz"), "--checkpoint", "latest"]
    with pytest.raises(DataError, match=f"{names[0]}.*--on_broken=skip"):
        embed.main(args)
    embed.main([*args, "--on_broken=skip"])
    got = store.load(tmp_path / "f.npz")
    assert got.path.tolist() == [n for n in names if n not in (names[0], names[3])]
    all_ = store.load(run / "run" / "eval" / "final.npz")
    rows = {p.split("/")[-1]: i for i, p in enumerate(all_.path) if p.startswith("query")}
    want = all_.feature[[rows[p] for p in got.path]]
    np.testing.assert_allclose(got.feature, want, rtol=1e-4, atol=1e-5)


def test_targets_on_which_nothing_can_be_tested(run, tmp_path):
    """Told before any picture is embedded."""
    own = tmp_path / "own"
    for split, name in (("query", "0001_c1_0.jpg"), ("gallery", "0001_c1_1.jpg")):
        (own / split).mkdir(parents=True)
        shutil.copy(next((run / "moved" / "query").glob("*.jpg")), own / split / name)
    targets = [f"market1501:{run / 'moved'}", f"mine=folder:{own}"]
    with pytest.raises(DataError, match="target mine: none of the 1 queries has a match.*one camera"):
        cross.main([str(run / "run"), "--targets", *targets, "--workdir", str(tmp_path / "cross")])
    assert not (tmp_path / "cross").exists()


def test_embed_whatever_lies_in_a_folder(run, tmp_path):
    """Any name and any identity; hidden copies and links that lead nowhere are left out."""
    folder = tmp_path / "odd"
    (folder / ".thumbnails").mkdir(parents=True)
    some = sorted((run / "moved" / "query").glob("*.jpg"))[0]
    for name in ("20260101123001_c4_\u884c.jpg".encode("gbk"), b".thumbnails/1_c1.jpg", b"12_c1\n.jpg"):
        shutil.copy(some, bytes(folder) + b"/" + name)
    (folder / "3_c1.jpg").symlink_to("nowhere.jpg")
    out = tmp_path / "f.npz"
    assert embed.main([str(run / "run"), str(folder), "--output", str(out), "--checkpoint", "latest"]) == 0
    got, all_ = store.load(out), store.load(run / "run" / "eval" / "final.npz")
    assert got.pid.tolist() == [12, 20260101123001] and got.pid.dtype == np.int64
    assert [os.fsencode(str(p)) for p in got.path] == [
        b"12_c1\n.jpg",
        "20260101123001_c4_\u884c.jpg".encode("gbk"),
    ]
    want = all_.feature[[p.split("/")[-1] for p in all_.path].index(some.name)]
    np.testing.assert_allclose(got.feature, [want, want], rtol=1e-4, atol=1e-5)


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().split("\n")[-1])


def test_evaluate_gives_the_figures_of_the_run(run, tmp_path, capsys):
    final = str(run / "run" / "eval" / "final.npz")
    files = [tmp_path / "out.json", tmp_path / "cmc.png"]
    assert (
        score.main([f"base={final}", "--per-camera", "--json", str(files[0]), "--plot", str(files[1])]) == 0
    )
    result = last_json(capsys)["base"]
    assert result == json.loads(files[0].read_text())["base"]
    assert files[1].read_bytes()[:4] == b"\x89PNG"
    stored = json.loads((run / "run" / "eval" / "final.json").read_text())
    figures = stored["nets"][stored["net"]]
    for name in ("rank1", "rank5", "mAP", "mINP", "prop", "auc", "eer"):
        assert abs(result[name] - figures[name]) < 1e-9, name
    cameras = result["cameras"].values()
    total = sum(c["queries"] for c in cameras)
    assert total == result["queries_with_match"]
    for name in ("rank1", "mAP", "mINP"):
        assert abs(sum(c["queries"] * c[name] for c in cameras) / total - result[name]) < 1e-9, name


def features(path, seed=0, ids=6, each=4, dim=8):
    """A feature file of noisy identities seen by different cameras."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((ids, dim))
    pid = np.repeat(np.arange(1, ids + 1), each).astype(np.int32)
    camid = np.tile(np.arange(each), ids).astype(np.int32)
    feature = (centre[pid - 1] + 0.9 * rng.standard_normal((len(pid), dim))).astype(np.float32)
    split = np.where(camid == 0, "query", "gallery")
    names = np.array([f"{i}.jpg" for i in range(len(pid))])
    store.save(path, store.FeatureSet(feature, pid, camid, names, split))
    return feature, pid, camid, split


def naive_rank1(distance, pid, g_pid):
    return 100 * np.mean(g_pid[distance.argmin(1)] == pid)


def test_protocols_reranking_and_expansion(tmp_path, capsys):
    path = str(tmp_path / "f.npz")
    feature, pid, camid, split = features(path)
    q, g = split == "query", split == "gallery"
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    results = {}
    for name, flags in {
        "market": [],
        "all": ["--protocol=all-pairs"],
        "single": ["--protocol=single-shot", "--trials=7"],
        "gallery": ["--protocol=single-gallery"],
        "rerank": ["--rerank", "--k1=4", "--k2=2"],
        "expand": ["--expand=2"],
    }.items():
        assert score.main([path, *flags]) == 0
        results[name] = last_json(capsys)[path]
    plain = naive_rank1(-unit[q] @ unit[g].T, pid[q], pid[g])
    assert abs(results["market"]["rank1"] - plain) < 1e-9
    assert results["all"]["rank1"] == results["market"]["rank1"]  # cameras of query and gallery differ
    assert (results["single"]["trials"], results["gallery"]["trials"]) == (7, 10)
    assert results["rerank"]["mAP"] != results["market"]["mAP"]
    cosine = unit @ unit.T
    near = np.argsort(-cosine, 1)[:, :2]
    mean = (np.take_along_axis(cosine, near, 1)[..., None] ** 3 * feature[near]).sum(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    expanded = naive_rank1(-mean[q] @ mean[g].T, pid[q], pid[g])
    assert abs(results["expand"]["rank1"] - expanded) < 1e-9


def test_features_that_end_with_weights(tmp_path, capsys):
    """(cosine + 1) / 2 as a ratio with one weight, 1, of every picture: the figures of the cosine."""
    paths = [str(tmp_path / name) for name in ("plain.npz", "ratio.npz")]
    feature, pid, camid, split = features(paths[0])
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    one = np.ones_like(unit[:, :1])
    weighted = np.concatenate([unit * 0.5**0.5, one * 0.5**0.5, one], 1)
    store.save(paths[1], store.FeatureSet(weighted, pid, camid, np.array([f"{n}" for n in pid]), split))
    assert score.main(paths[:1]) == 0
    expected = last_json(capsys)[paths[0]]
    assert score.main([paths[1], "--distance=ratio1"]) == 0
    found = last_json(capsys)[paths[1]]
    assert all(found[name] == expected[name] for name in ("rank1", "mAP", "mINP", "queries"))
    assert found["auc"] == pytest.approx(expected["auc"], abs=0.01)
    for flags in (
        ["--distance=ratio1", "--rerank"],
        ["--distance=ratio1", "--expand=2"],
        ["--distance=ratio"],
    ):
        with pytest.raises(ConfigError):
            score.main([paths[1], *flags])


def test_same_person_or_not(tmp_path, capsys):
    """Thresholds for wanted false match rates, in the table and the JSON; by any distance, also re-ranked."""
    path, drawn = str(tmp_path / "f.npz"), tmp_path / "roc.png"
    feature, pid, _, split = features(path)
    q, g = split == "query", split == "gallery"
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    same, similarity = (pid[q][:, None] == pid[g]).ravel(), (unit[q] @ unit[g].T).ravel()
    assert score.main([f"a={path}", "--fmr=0.1,0.02", "--roc", str(drawn)]) == 0
    text = capsys.readouterr().out
    result = json.loads(text.strip().split("\n")[-1])["a"]
    fpr, tpr, threshold = metrics.roc_curve(same, similarity, drop_intermediate=False)
    assert result["auc"] == pytest.approx(100 * metrics.roc_auc_score(same, similarity), abs=1e-3)
    for rate in (0.1, 0.02):
        at = np.searchsorted(fpr, rate, side="right") - 1
        assert result[f"threshold@{rate}"] == pytest.approx(threshold[at], abs=2e-5)
        assert result[f"tpr@{rate}"] == pytest.approx(100 * tpr[at])
        assert f"{100 * tpr[at]:.1f} ({threshold[at]:.4f}"[:12] in text
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    assert sum(result["similarity"]["same"]) == pytest.approx(1) and result["roc"]["tpr"][-1] == 1
    for flags in (["--distance=euclidean"], ["--rerank", "--k1=4", "--k2=2"], ["--protocol=single-shot"]):
        assert score.main([path, *flags]) == 0
        other = last_json(capsys)[path]
        assert (
            50 < other["auc"] <= 100 and "threshold@0.01" not in other or other["threshold@0.01"] is not None
        )
        assert (other["auc"] == result["auc"]) == (flags == ["--protocol=single-shot"])
    for wrong in ("0", "1.5", "x", "0.1,"):
        with pytest.raises(ConfigError, match=f"--fmr={wrong}: false match rates lie"):
            score.main([path, f"--fmr={wrong}"])
    with pytest.raises(ConfigError, match="--roc=.*cannot be written"):
        score.main([path, "--roc", str(tmp_path / "no" / "roc.png")])


def test_cross(run, tmp_path, capsys, monkeypatch):
    other = generate(tmp_path / "other", seed=3)
    command = [f"a={run / 'run'}", str(run / "run"), "--targets", f"market1501:{run / 'moved'}"]
    command += [f"dark=market1501:{other}", "--workdir", str(tmp_path / "cross"), "--checkpoint", "latest"]
    assert cross.main(command) == 0
    text = capsys.readouterr().out
    assert "dark rank-1 / mAP" in text
    table = json.loads((tmp_path / "cross" / "cross.json").read_text())
    stored = json.loads((run / "run" / "eval" / "final.json").read_text())
    got = table["run"]["targets"]["market1501"]
    assert abs(got["mAP"] - stored["nets"]["net"]["mAP"]) < 1e-6
    assert table["a"]["targets"] == table["run"]["targets"]
    assert len((tmp_path / "cross" / "cross.csv").read_text().splitlines()) == 5
    monkeypatch.setattr("reid_jax.train.restore.Restored.features", None)  # a second time nothing is embedded
    assert cross.main(command) == 0
    assert capsys.readouterr().out == text


def test_what_cannot_be_used(run, tmp_path):
    path = str(tmp_path / "f.npz")
    feature, pid, camid, _ = features(path)
    only = np.full(len(pid), "images")
    store.save(path, store.FeatureSet(feature, pid, camid, only, only))
    with pytest.raises(DataError, match="splits images; scoring needs query and gallery"):
        score.main([path])
    workdir, out = str(run / "run"), ["--output", path]
    with pytest.raises(DataError, match="neither a folder nor NAME:FOLDER"):
        embed.main([workdir, "nothing:there", *out])
    with pytest.raises(CheckpointError, match="holds no run"):
        embed.main([str(tmp_path), f"market1501:{run / 'moved'}", *out])
    with pytest.raises(ConfigError, match="best, latest or one of"):
        embed.main([workdir, f"market1501:{run / 'moved'}", *out, "--checkpoint", "99"])
    with pytest.raises(ConfigError, match="one network at a time"):
        embed.main([workdir, f"market1501:{run / 'moved'}", *out, "--net", "all"])
    with pytest.raises(ConfigError, match="two runs are called 'run'"):
        cross.main([workdir, workdir, "--targets", f"market1501:{run / 'moved'}", "--workdir", str(tmp_path)])
    with pytest.raises(DataError, match="no query and gallery"):
        folder = str(run / "moved" / "query")
        cross.main([workdir, "--targets", folder, "--workdir", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        embed.main([workdir, str(tmp_path / "empty"), *out])
    with pytest.raises(ConfigError):
        embed.main([workdir, "x", "--output", "f.txt"])
