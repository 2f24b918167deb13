"""The report page: what it shows for hand-made rankings, hostile strings, missing files."""

import base64
import dataclasses
import html.parser
import io
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from report.arrays import study_arrays
from sklearn import metrics

from reid_jax import cli, methods, report
from reid_jax.data import decode
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import store
from reid_jax.fields import namespace
from reid_jax.methods.direid import STUDY
from reid_jax.report import __main__ as command
from reid_jax.report import figures, kept, lights, rankings, sections, strips
from reid_jax.report import run as runs
from reid_jax.train import pictures, titles

CAMERAS, IDS = 3, 6
VOID = {"meta", "link", "br", "img", "hr"}
HOSTILE = '</style><script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open[-3:], self.getpos())

    def handle_data(self, data):
        self.text.append(data)


def picture_names():
    """(split, pid, camid, path) of every image: one query and one gallery image per identity and camera."""
    rows = [(s, p, c) for s in ("query", "gallery") for p in range(1, IDS + 1) for c in range(CAMERAS)]
    rows += [("gallery", 0, 0), ("gallery", -1, 1)]
    return [(s, p, c, f"{s}/{p:04d}_c{c + 1}.jpg") for s, p, c in rows]


def feature_set(camera_share, seed=0):
    """Identity directions plus `camera_share` camera directions and a little noise."""
    rng, rows = np.random.default_rng(seed), picture_names()
    split, pid, camid, path = (np.array(x) for x in zip(*rows, strict=True))
    pid, camid = pid.astype(np.int32), camid.astype(np.int32)
    feature = 0.1 * rng.standard_normal((len(rows), 16))
    feature[np.arange(len(rows)), np.clip(pid, 0, None)] += 1
    feature[np.arange(len(rows)), 10 + camid] += camera_share
    return store.FeatureSet(feature.astype(np.float32), pid, camid, path, split)


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(workdir, data, camera_share=0.1, method="efl", steps=60):
    """A finished run's files."""
    (workdir / "eval").mkdir(parents=True)
    tree = methods.defaults("efl") | {"method": method}
    tree["data"].update(name="synthetic", root=str(data))
    tree["efl"]["lambda_mi"] = 0.125
    (workdir / "config.json").write_text(json.dumps(tree))
    titles.write(str(workdir), namespace(tree), {"train": ("m1", "m2")})
    last, first = runs.rank(feature_set(camera_share)), runs.rank(feature_set(3.0))
    store.save(workdir / "eval" / "final.npz", last.features)
    store.save(workdir / "eval" / "first.npz", first.features)
    found = {n: {**last.retrieval.figures(), "camera_probe": 40.0} for n in ("m1", "m2")}
    for figure in found.values():
        figure.update(cmc=(100 * last.retrieval.cmc).tolist(), num_query=18, num_gallery=20)
    final = {"step": steps, "net": "m1", "nets": found, "random": {"rank1": 5.0, "mAP": 7.0}}
    (workdir / "eval" / "final.json").write_text(json.dumps(final))
    lines = [{"kind": "train", "step": s, "epoch": s / 10, "loss": 1 / s, "lr": 0.1} for s in range(1, steps)]
    for step, ranked in ((30, first), (60, last)):
        figure = {"net": "m1", **ranked.retrieval.figures()}
        lines.append({"kind": "eval", "step": step, "epoch": step / 10, "seconds": step, **figure})
    write_lines(workdir / "metrics.jsonl", lines)
    summary = {"seconds": 61.0, "images_per_second": 12.0, "data_root": str(data)}
    summary["versions"] = {"jax": "0.10.9"}
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Tiny pictures of every image of `picture_names`."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for _, _, _, path in picture_names():
        (root / path).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 16, 3), np.uint8)).save(root / path)
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "efl", data)


@pytest.fixture(scope="module")
def page(finished):
    """The text of a whole report."""
    path = report.build(str(finished))
    assert path == str(finished / "report.html")
    with open(path, encoding="utf-8") as f:
        return f.read()


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy to break."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_tsne(monkeypatch):
    """t-SNE replaced by the first two dimensions: most tests do not look at it."""
    monkeypatch.setattr(figures, "embed_2d", lambda features, seed=0: np.asarray(features)[:, :2])


def read(workdir, **options):
    """The parsed page of a new build, and its text."""
    text = open(report.build(str(workdir), **options), encoding="utf-8").read()
    return Page(text), text


# ---- the page as a whole
def test_page_is_self_contained_html(page):
    parsed = Page(page)
    assert "script" not in parsed.tags and "iframe" not in parsed.tags
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import", page)
    for name, value in parsed.attributes:
        assert name != "src", value
        assert name != "href" or value.startswith(("#", "data:")), value
    targets = re.findall(r"url\(([^)]{0,30})", page)
    assert len(targets) > 20
    for target in targets:
        assert target.strip('"').startswith(("data:image/jpeg;base64,", "#")), target


def test_page_fragments_and_ids_fit_together(page):
    parsed = Page(page)
    ids = [v for n, v in parsed.attributes if n == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for n, v in parsed.attributes if n == "href" and v.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids) and len(wanted) > 15


def test_page_shows_figures_and_settings(page):
    text = " ".join(Page(page).text)
    last, first = runs.rank(feature_set(0.1)), runs.rank(feature_set(3.0))
    assert "synthetic data" in text and "0.10.9" in text and "1 min 1 s" in text and "12 images/s" in text
    for value in (last.retrieval.mAP, first.retrieval.mAP):
        assert f"{100 * value:.1f}" in text
    assert re.search(r"lambda_mi\s+0\.125\s+default 0\.0001", text)
    assert "var(--s0)" in page and "#0000" not in page  # no stand-in colour is left
    assert "<style>*{stroke" not in page  # nor matplotlib's own style sheet


def test_build_leaves_no_temporary_file_and_repeats(workdir, page):
    _, again = read(workdir)
    strip = re.compile(r"<code>[^<]*</code>|url\(\"data[^)]*\)")
    assert strip.sub("", again) == strip.sub("", page)
    assert [p.name for p in workdir.iterdir() if p.name.startswith(".")] == []


def test_pictures_appear_once(page):
    uris = re.findall(r'url\("(data:image/jpeg[^"]+)"', page)
    assert len(uris) == len(set(uris)) <= len(picture_names())
    numbers = {int(n) for n in re.findall(r"\.t(\d+)\{", page)}
    used = {int(n) for n in re.findall(r'class="im t(\d+)"', page)}
    assert numbers == used


@pytest.mark.slow
def test_size_stays_bounded_for_a_long_run(workdir, data, no_tsne):
    rng = np.random.default_rng(0)
    names = [f"loss_{i}" for i in range(12)]
    lines = [
        {"kind": "train", "step": s, **dict(zip(names, values, strict=True))}
        for s, values in enumerate(rng.standard_normal((5000, 12)))
    ]
    write_lines(workdir / "metrics.jsonl", lines)
    _, text = read(workdir, queries=2)
    assert len(text) < 2_000_000
    assert text.count("<figure") == 12 + 2


# ---- pairs
def test_same_person_or_not(finished, data, tmp_path, page, no_tsne):
    """Area, thresholds and what they find, against scikit-learn on all pairs; beside a comparison run's."""
    f = feature_set(0.1)
    unit = f.feature / np.linalg.norm(f.feature, axis=1, keepdims=True)
    q, g = f.split == "query", (f.split == "gallery") & (f.pid != -1)
    same = f.pid[q][:, None] == f.pid[g]
    kept = ~(same & (f.camid[q][:, None] == f.camid[g]))
    same, similarity = same[kept], (unit[q] @ unit[g].T)[kept]
    fpr, tpr, threshold = metrics.roc_curve(same, similarity, drop_intermediate=False)
    at = np.searchsorted(fpr, 0.1, side="right") - 1
    parsed = Page(page)
    text = " ".join(" ".join(parsed.text).split())
    assert f"Area under the curve {100 * metrics.roc_auc_score(same, similarity):.2f} %" in text
    assert f"all {same.sum()} pairs" in text and f"and {(~same).sum()} of two" in text
    row = rf"10 % {threshold[at]:.3f} {100 * tpr[at]:.1f}"
    assert row in text and re.search("0.1 % – –", text)  # too few pairs for a rate of 0.001
    base = make_run(tmp_path / "base", data, camera_share=3.0, method="baseline")
    _, beside = read(finished, queries=0, compare_with=str(base))
    assert "(Baseline: " in beside and "<th>Baseline, %</th>" in beside


def test_a_gallery_of_one_person_has_no_roc(workdir, no_tsne):
    f = store.load(workdir / "eval" / "final.npz")
    store.save(workdir / "eval" / "final.npz", dataclasses.replace(f, pid=np.ones_like(f.pid)))
    assert "The ROC is not shown" in read(workdir)[1]


# ---- which queries are shown
def by_hand():
    """Two rankings of four queries (cameras 0, 1, 0, 1) made by hand: (before, after)."""
    pid = np.array([1, 2, 3, 4, 1, 2, 3, 4, 9, 8], np.int32)
    camid = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1], np.int32)
    path = np.array([f"q{i}" for i in range(4)] + [f"g{i}" for i in range(6)])
    split = np.array(["query"] * 4 + ["gallery"] * 6)

    def ranked(top):
        """The query's feature is nearest to gallery row top[i]; its own person comes second."""
        feature = np.zeros((10, 6), np.float32)
        feature[4:] = np.eye(6)
        for i, row in enumerate(top):
            feature[i, i] += 0.5
            feature[i, row] += 1
        return runs.rank(store.FeatureSet(feature, pid, camid, path, split))

    # gallery row 4 is another person under camera 0, row 5 one under camera 1
    before = ranked([4, 5, 4, 4])  # query 3: another person, but another camera
    after = ranked([0, 5, 2, 3])  # query 1 is still wrong
    return before, after


def test_groups_by_hand():
    before, after = by_hand()
    assert strips.kinds(before)[:, 0].tolist() == ["same_cam", "same_cam", "same_cam", "other_cam"]
    assert strips.kinds(after)[:, 0].tolist() == ["same_id", "same_cam", "same_id", "same_id"]
    found = strips.groups(after, before)
    assert found["fixed"] == [0, 2] and found["still"] == [1] and found["right"] == [3]
    alone = strips.groups(after)
    assert alone["fixed"] == [] and alone["still"] == [1] and sorted(alone["right"]) == [0, 2, 3]


def test_groups_follow_queries_that_moved():
    """The earlier evaluation may list the queries in another order."""
    before, after = by_hand()
    order = np.r_[3, 2, 1, 0, 4:10]
    fields = {f.name: getattr(before.features, f.name)[order] for f in dataclasses.fields(store.FeatureSet)}
    moved = runs.rank(store.FeatureSet(**fields))
    assert strips.same_rows(moved, after).tolist() == [3, 2, 1, 0]
    assert strips.groups(after, moved) == strips.groups(after, before)


def test_unmatched_queries_are_in_no_group():
    _, after = by_hand()
    f = after.features
    pid = np.where(np.arange(10) == 4, 7, f.pid).astype(np.int32)  # query 0 loses its only match
    changed = runs.rank(store.FeatureSet(f.feature, pid, f.camid, f.path, f.split))
    found = strips.groups(changed)
    assert sorted(found["fixed"] + found["still"] + found["right"]) == [1, 2, 3]


def test_choose_fills_up_and_spreads_identities():
    found = {"fixed": [0, 1, 2, 3], "still": [4], "right": [5, 6, 7, 8]}
    pids = [1, 1, 2, 2, 3, 4, 5, 6, 7]
    assert strips.choose(found, pids, 4) == [(0, "fixed"), (2, "fixed"), (4, "still"), (5, "right")]
    assert [r for r, _ in strips.choose(found, pids, 8)] == [0, 2, 1, 3, 4, 5, 6, 7]
    assert len(strips.choose(found, pids, 50)) == 9 and strips.choose(found, pids, 0) == []


def test_page_shows_before_and_after(page):
    assert page.count('<article class="card strip">') == 12
    assert 'class="badge fixed"' in page and 'class="hit same_cam"' in page and "first evaluation" in page
    for row in re.findall(r'<ol class="hits">.*?</ol>', page, re.S):
        assert 1 <= row.count("<li") <= runs.TOP


def test_run_to_compare_with_takes_the_place_of_the_first_evaluation(finished, data, tmp_path, no_tsne):
    base = make_run(tmp_path / "base", data, camera_share=3.0, method="baseline")
    _, text = read(finished, queries=3, compare_with=str(base))
    rows = re.findall(r'<div class="when">before<small>(.*?)</small>', text)
    assert rows == ["Baseline"] * 3
    assert len(re.findall(r'<div class="stack">', text)) == 3  # first, baseline, this run


def test_words_of_an_older_run_and_damaged_ones(workdir, no_tsne):
    """Without usable titles the method's name stands for it, and metrics have their own names."""
    lines = [{"kind": "train", "step": s, "loss": 1.0, "ce": 2.0} for s in (1, 2)]
    write_lines(workdir / "metrics.jsonl", lines)
    assert "Identity cross entropy <code>ce</code>" in read(workdir)[1]
    for damaged in (None, "[1]", '{"method": 3, "metrics": {"ce": [1]}, "study": 7, "defaults": []}'):
        (workdir / "titles.json").unlink(missing_ok=True)
        if damaged:
            (workdir / "titles.json").write_text(damaged)
        _, text = read(workdir)
        assert "<h1>Efl on synthetic data" in text and "<h4>ce</h4>" in text and "Total loss" in text


@pytest.mark.parametrize(
    "checkpoint, split, said",
    [
        ("last", "test", "of the last checkpoint: none was chosen .* its mAP on the test identities"),
        (
            "best",
            "test",
            "chosen by its mAP on the test identities on which it is tested here: it looks better",
        ),
        ("best", "val", "best checkpoint, chosen by its mAP on identities held out of training\\."),
    ],
)
def test_where_the_checkpoint_was_chosen(checkpoint, split, said, workdir, no_tsne):
    final = json.loads((workdir / "eval" / "final.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    config["eval"]["split"] = split
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "eval" / "final.json").write_text(
        json.dumps(final | {"checkpoint": checkpoint, "split": split})
    )
    parsed, _ = read(workdir, queries=0)
    text = " ".join(" ".join(parsed.text).split())
    assert re.search(said, text)
    assert ("held-out training identities" in text) == (split == "val")


def test_further_test_sets_have_a_table_and_leave_the_headline_alone(workdir, no_tsne):
    before = runs.read(workdir)
    final = json.loads((workdir / "eval" / "final.json").read_text())
    good = {"protocol": "single-shot", "nets": {"m1": {"rank1": 12.3, "mAP": float("nan")}}}
    final["sets"] = {"viper": good, "broken": 3, "odd": {"protocol": "x", "nets": {}}, HOSTILE: good}
    (workdir / "eval" / "final.json").write_text(json.dumps(final))
    with open(workdir / "metrics.jsonl", "a") as f:
        line = {"kind": "eval", "step": 60, "epoch": 6.0, "net": "m1", "set": "viper", "rank1": 99.9}
        f.write(json.dumps(line) + "\n")
    run = runs.read(workdir)
    assert run.evals == before.evals and run.figures == before.figures
    parsed, text = read(workdir, queries=0)
    table = text[text.index("Other test sets") : text.index('id="curves"')]
    assert table.count("<tr>") == 1 + 2 and "viper, m1" in table and "12.3" in table
    assert "99.9" not in text and HOSTILE not in text and "script" not in parsed.tags


def test_sets_learnt_one_after_another(workdir, no_tsne):
    """The table step x set, what was forgotten and curves; a stage without figures is left out."""
    for name, changes in (
        ("config.json", {"data": {"name": "synthetic+synthetic2+synthetic3", "test": "all"}}),
        ("titles.json", {"sets": {s: [s] for s in ("synthetic", "synthetic2", "synthetic3")}}),
    ):
        tree = json.loads((workdir / name).read_text())
        changes = {k: tree[k] | v if k == "data" else v for k, v in changes.items()}
        (workdir / name).write_text(json.dumps(tree | changes))
    final = json.loads((workdir / "eval" / "final.json").read_text())
    (workdir / "eval" / "synthetic").mkdir()
    for folder, means in (("eval/synthetic", (61.5, 12.5, 7.5)), ("eval", (41.25, 52.5, 9.5))):
        tests = [{"protocol": "market", "nets": {"m1": {"mAP": m, "rank1": m}}} for m in means]
        final["nets"]["m1"].update(mAP=means[0], rank1=means[0])
        final["sets"] = {"synthetic2": tests[1], HOSTILE: tests[2]}
        (workdir / folder / "final.json").write_text(json.dumps(final))
    parsed, text = read(workdir, queries=0)
    table = text[text.index('id="kept"') : text.index('id="strips"')]
    assert table.count("<tr>") == 2 * (1 + 2) and table.count("<svg") == 3 + 1
    for cell in ("61.5", "41.2", "20.2", "9.5"):  # the first set: before, now; forgotten; never trained
        assert f">{cell}</td>" in table
    assert HOSTILE not in text and "script" not in parsed.tags
    assert kept.build(SimpleNamespace(titles={"sets": {}}, config={})) is None


def test_visible_and_infrared_side_by_side(workdir, no_tsne):
    """Three sorts of pairs; people in both lights; nothing of it where all cameras are visible."""
    assert lights.build(runs.read(workdir), ["c1", "c2", "c3"]) is None
    summary = json.loads((workdir / "summary.json").read_text())
    summary["camera_names"] = ["c1", "c2 infrared", "c3"]
    (workdir / "summary.json").write_text(json.dumps(summary))
    text = read(workdir, queries=0)[1]
    page = text[text.index('id="lights"') : text.index('id="strips"')]
    assert page.count("<tr>") == 1 + 3 and page.count("mean similarity across") == min(6, IDS)
    assert page.count("<img") == 6 * (4 + 2)  # four of two visible cameras, two of the infrared one


# ---- strings and paths from files
def test_hostile_strings_are_escaped(workdir, no_tsne):
    tree = json.loads((workdir / "config.json").read_text())
    tree["method"] = tree["model"]["backbone"] = tree[HOSTILE] = HOSTILE
    (workdir / "config.json").write_text(json.dumps(tree))
    final = json.loads((workdir / "eval" / "final.json").read_text())
    final["nets"][HOSTILE] = final["nets"].pop("m1")
    final["net"] = HOSTILE
    (workdir / "eval" / "final.json").write_text(json.dumps(final))
    write_lines(workdir / "metrics.jsonl", [{"kind": "train", "step": s, HOSTILE: 1.0} for s in (1, 2)])
    (workdir / "summary.json").write_text(json.dumps({"devices": HOSTILE, "versions": {HOSTILE: HOSTILE}}))
    features = store.load(workdir / "eval" / "final.npz")
    features = dataclasses.replace(features, path=np.array([f'{p}"{HOSTILE}' for p in features.path]))
    store.save(workdir / "eval" / "final.npz", features)
    parsed, text = read(workdir, queries=2)
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert all(not name.startswith("on") for name, _ in parsed.attributes)
    assert HOSTILE not in text and text.count("</style>") == 1
    assert HOSTILE in "".join(parsed.text)  # shown as it is


def test_paths_cannot_leave_the_data_folder(data, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret.jpg"
    shutil.copytree(data, root)
    shutil.copy(next(data.rglob("*.jpg")), outside)
    (root / "link.jpg").symlink_to(outside)
    thumbs = strips.Thumbnails(root)
    for path in ("../secret.jpg", str(outside), "query/../../secret.jpg", "link.jpg"):
        assert thumbs.add(path) is None
        assert thumbs.missing[path] == "outside the data set's folder"
    assert thumbs.add("query\0.jpg") is None
    assert thumbs.add("query") is None and thumbs.add("none.jpg") is None
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert thumbs.add("broken.jpg") is None and thumbs.missing["broken.jpg"] == "not a readable picture"
    assert thumbs.uris == {} and thumbs.add("query/0001_c1.jpg") == 0 == thumbs.add("query/0001_c1.jpg")


def test_thumbnails_are_small_jpegs(tmp_path):
    Image.new("RGBA", (900, 1000), (200, 10, 10, 255)).save(tmp_path / "big.png")
    thumbs = strips.Thumbnails(tmp_path)
    thumbs.add("big.png")
    image = Image.open(io.BytesIO(base64.b64decode(thumbs.uris[0].partition(",")[2])))
    assert image.format == "JPEG" and image.width <= 96 and image.height <= 192
    assert np.abs(np.asarray(image)[5, 5].astype(int) - (200, 10, 10)).max() < 8


def test_thumbnails_show_what_the_network_saw(tmp_path):
    """Turned by EXIF unless the run did not, deep grey with its contrast, names of any encoding."""
    tag, name = Image.Exif(), "\u884c\u4eba.jpg".encode("gbk")
    tag[0x0112] = 6
    upright = Image.new("RGB", (40, 80), (250, 10, 10))
    upright.paste((10, 10, 250), (0, 40, 40, 80))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", exif=tag)
    os.rename(tmp_path / "x.jpg", os.fsdecode(bytes(tmp_path) + b"/" + name))
    Image.fromarray(np.full((80, 40), 30000, np.uint16)).save(tmp_path / "deep.png")

    def shown(path, pixels=decode.AS_SEEN):
        thumbs = strips.Thumbnails(tmp_path, pixels=pixels)
        assert thumbs.add(path) == 0, thumbs.missing
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbs.uris[0].partition(",")[2])))).astype(
            int
        )

    turned = shown(os.fsdecode(name))
    assert turned.shape == (80, 40, 3)
    assert (
        np.abs(turned[5, 5] - (250, 10, 10)).max() < 12 and np.abs(turned[75, 5] - (10, 10, 250)).max() < 12
    )
    assert shown(os.fsdecode(name), decode.Pixels(exif=False)).shape == (40, 80, 3)
    assert 100 < shown("deep.png").mean() < 240
    assert shown("deep.png", decode.Pixels(grey=(0, 30000))).min() > 250


def test_names_that_are_not_utf8_are_shown_escaped(workdir, no_tsne):
    features = store.load(workdir / "eval" / "final.npz")
    odd = np.array([os.fsdecode("\u884c".encode("gbk")) + str(p) for p in features.path])
    store.save(workdir / "eval" / "final.npz", dataclasses.replace(features, path=odd))
    page = open(report.build(str(workdir), queries=2), encoding="utf-8").read()
    assert r"\udcd0\udcd0" in page


def test_tracklets_show_their_frames_in_order(tmp_path):
    """Four frames of one colour each, left to right and top to bottom; one is missing: no sheet."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (10, 10, 10)]
    names = [f"f{i}.png" for i in range(4)]
    for name, colour in zip(names, colours, strict=True):
        Image.new("RGB", (20, 40), colour).save(tmp_path / name)
    np.savez(tmp_path / "frames.npz", path=["f0.png", "f1.png"], frames=[names, [*names[:3], "gone.png"]])
    thumbs = strips.Thumbnails(tmp_path, strips.read_frames(tmp_path / "frames.npz"))
    assert thumbs.add("f0.png") == 0 and thumbs.add("f1.png") is None
    assert thumbs.missing == {"f1.png": "no such file"}
    image = Image.open(io.BytesIO(base64.b64decode(thumbs.uris[0].partition(",")[2])))
    assert image.size == (44, 84)
    pixels = np.asarray(image).astype(int)
    for (y, x), colour in zip([(20, 10), (20, 34), (64, 10), (64, 34)], colours, strict=True):
        assert np.abs(pixels[y, x] - colour).max() < 30
    assert strips.read_frames(tmp_path / "none.npz") == {}


@pytest.mark.slow
def test_moved_pictures_leave_placeholders(workdir, data, tmp_path, no_tsne):
    _, text = read(workdir, data_root=str(tmp_path / "nowhere"), queries=2)
    assert "data:image/jpeg" not in text and "no such file" in text and 'class="im none"' in text
    _, text = read(workdir, data_root=str(data), queries=2)
    assert "data:image/jpeg" in text and 'class="im none"' not in text


# ---- files that are not there
@pytest.mark.parametrize("name", ["config.json", "eval/final.json"])
def test_needed_files_are_named(workdir, name):
    (workdir / name).unlink()
    with pytest.raises(DataError, match=re.escape(name) + r".* missing.*python -m reid_jax\.main"):
        report.build(str(workdir))
    (workdir / name).write_text("{ broken")
    with pytest.raises(DataError, match=re.escape(name) + " cannot be read"):
        report.build(str(workdir))


def test_without_its_last_stage_the_last_finished_one_stands_for_a_run(workdir, no_tsne):
    """The lines of `gan` come after those of `teacher`; a stage in progress has no files."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    staged = [{"stage": s, **line} for s in ("teacher", "gan") for line in lines]
    write_lines(workdir / "metrics.jsonl", [*staged, {**staged[-1], "stage": "dfen", "rank1": 99.0}])
    before = runs.read(workdir)
    for stage in ("teacher", "gan"):
        shutil.copytree(workdir / "eval", workdir / "kept" / stage)
    shutil.rmtree(workdir / "eval")
    (workdir / "kept").rename(workdir / "eval")
    (workdir / "eval" / "teacher" / "final.json").write_text("{ broken")
    run = runs.read(workdir)
    assert run.final == before.final and run.last is not None
    assert {line["stage"] for line in run.evals} == {"gan"} and len(run.evals) == 2
    for name in ("first.npz", "final.npz"):
        (workdir / "eval" / "gan" / name).unlink()
        assert f"eval/{name} is not in the workdir" in read(workdir)[1]


@pytest.mark.parametrize(
    "names, said",
    [
        (["summary.json"], "Run time, speed, devices and versions are not shown: summary.json"),
        (["metrics.jsonl"], "Training curves are not shown: metrics.jsonl"),
        (["eval/first.npz"], "no earlier one is stored"),
        (["eval/final.npz"], "Retrieval strips are not shown: eval/final.npz"),
        (["summary.json", "metrics.jsonl", "eval/first.npz", "eval/final.npz"], "t-SNE is not shown"),
    ],
)
def test_optional_files_may_be_missing(workdir, names, said, no_tsne):
    for name in names:
        (workdir / name).unlink()
    parsed, _ = read(workdir, queries=3)
    assert said in " ".join("".join(parsed.text).split())


def test_damaged_optional_files_are_noted(workdir, no_tsne):
    (workdir / "eval" / "first.npz").write_bytes(b"no zip file")
    (workdir / "summary.json").write_text("[1]")
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "step": 70, "lo')
    parsed, _ = read(workdir, queries=3)
    text = "".join(parsed.text)
    assert "first.npz is no readable feature file" in text and "it is no JSON object" in text
    assert "Total loss" in text


def test_sparse_figures_do_not_break_the_page(workdir, no_tsne):
    """One network with rank-1 only, values that are not finite, no random level."""
    final = {"net": "net", "nets": {"net": {"rank1": 50.0}}, "random": None}
    (workdir / "eval" / "final.json").write_text(json.dumps(final))
    values = (1.0, float("nan"), "text", None, 2.0)
    lines = [{"kind": "train", "step": s, "loss": v} for s, v in enumerate(values)]
    write_lines(workdir / "metrics.jsonl", lines)
    for name in ("final.npz", "first.npz"):
        (workdir / "eval" / name).unlink()
    parsed, _ = read(workdir)
    assert "50.0" in parsed.text and "Total loss" in "".join(parsed.text)


def test_a_run_without_a_test_set(workdir, no_tsne):
    """The page says what it cannot show; curves of training and further test sets are there."""
    final = {"step": 60, "split": "test", "checkpoint": "last", "nets": {}}
    final["sets"] = {"viper": {"protocol": "single-shot", "nets": {"m1": {"rank1": 12.3}}}}
    (workdir / "eval" / "final.json").write_text(json.dumps(final))
    for name in ("final.npz", "first.npz"):
        (workdir / "eval" / name).unlink()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    labels = {"kind": "labels", "step": 9, "phase": "train", "round": 1, "clusters": 5, "labelled": 90.0}
    write_lines(workdir / "metrics.jsonl", [*(x for x in lines if x["kind"] == "train"), labels])
    run = runs.read(workdir)
    assert run.untested and run.figures == {} and run.net == ""
    parsed, text = read(workdir)
    said = " ".join("".join(parsed.text).split())
    assert "This run has no test set of its own" in said and "config.eval.also" in said
    assert said.count("not shown: the run has no test set of its own") >= 3
    assert "Total loss" in said and "viper, m1" in said and "12.3" in said
    assert "how many clusters there were" in said and "adjusted Rand index" not in said


def test_left_out_pictures_are_counted(workdir, no_tsne):
    final = json.loads((workdir / "eval" / "final.json").read_text())
    (workdir / "eval" / "final.json").write_text(json.dumps(final | {"left_out": ["a.jpg", "b.jpg"]}))
    assert "2 unreadable test pictures" in read(workdir, queries=0)[1]


def test_run_to_compare_with_is_looked_at_before_training(finished, data, tmp_path, caplog):
    """What the report would refuse after it; a run that is not finished may be so by then."""
    config = json.loads((finished / "config.json").read_text())
    report.check_compared(str(finished), config, "market")
    viper, val = {"data": config["data"] | {"name": "viper"}}, {"eval": config["eval"] | {"split": "val"}}
    for tree, protocol, message in (
        (config, "all-pairs", "was tested by the protocol market, this run by all-pairs"),
        (config | viper, "market", r"config\.data\.name is 'synthetic'"),
        (config | val, "market", r"config\.eval\.split"),
    ):
        with pytest.raises(DataError, match=message):
            report.check_compared(str(finished), tree, protocol)
    with pytest.raises(DataError, match="config.json is missing"):
        report.check_compared(str(tmp_path / "nowhere"), config, "market")
    shutil.copytree(finished, tmp_path / "going")
    (tmp_path / "going" / "eval" / "final.json").write_text(json.dumps({"step": 1, "nets": {}}))
    with pytest.raises(DataError, match="nothing to compare with"):
        report.check_compared(str(tmp_path / "going"), config, "market")
    (tmp_path / "going" / "eval" / "final.json").unlink()
    report.check_compared(str(tmp_path / "going"), config, "market")
    assert "is not finished" in caplog.text


def test_run_to_compare_with_must_fit(finished, data, tmp_path):
    with pytest.raises(DataError, match="config.json is missing"):
        report.build(str(finished), compare_with=str(tmp_path))
    other = make_run(tmp_path / "other", data)
    tree = json.loads((other / "config.json").read_text())
    tree["data"]["synthetic"]["seed"] = 5
    (other / "config.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"cannot be compared.*config\.data\.synthetic"):
        report.build(str(finished), compare_with=str(other))
    with pytest.raises(ConfigError, match="report.queries"):
        report.build(str(finished), queries=-1)


def test_command(workdir, capsys, no_tsne):
    assert command.main([str(workdir), "--queries", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    assert cli.exit_code(command.main, [str(workdir / "none")]) == 2
    assert "error: " in capsys.readouterr().err


# ---- numbers behind the sections
def test_smooth_is_the_mean_of_a_cut_window():
    y = np.random.default_rng(0).standard_normal(101)
    naive = [y[max(0, i - 2) : i + 3].mean() for i in range(101)]
    np.testing.assert_allclose(figures.smooth(y, 0.05), naive, rtol=1e-10)
    assert figures.smooth([1.0, 5.0]).tolist() == [1.0, 5.0]


def test_curve_keeps_both_ends_of_a_long_run():
    line = figures.curve(np.arange(12345), np.ones(12345))
    assert len(line.x) == figures.MAX_POINTS and line.x[0] == 0 and line.x[-1] == 12344
    np.testing.assert_allclose(line.y, 1)


def test_tick_labels():
    values = (0, 12000, 3e-4, 2.5e6, -0.25)
    assert [figures.compact(v) for v in values] == ["0", "12k", "3e-4", "2.5M", "-0.25"]


def test_camera_table_equals_a_naive_loop():
    ranked = runs.rank(feature_set(0.9, seed=3))
    table = rankings.cameras(ranked, "cosine")
    q, g = ranked.features.of("query"), ranked.features.of("gallery")

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    score = unit(q.feature) @ unit(g.feature).T
    assert table["columns"] == ["c1", "c2", "c3"]
    for a, row in enumerate(table["rows"]):
        assert row["camera"] == f"c{a + 1}" and row["queries"] == IDS
        for b, (rank1, count) in enumerate(row["pairs"]):
            if a == b:
                assert rank1 is None
                continue
            keep = np.flatnonzero((g.camid == b) & (g.pid != -1))
            hits = [g.pid[keep[score[i, keep].argmax()]] == q.pid[i] for i in np.flatnonzero(q.camid == a)]
            assert count == IDS and rank1 == pytest.approx(100 * np.mean(hits))


def test_tsne_rows_prefer_the_largest_identities():
    pid = np.array([5] * 9 + [6] * 8 + [7] * 1 + [0] * 3 + [-1] * 4)
    rows, ids = rankings.tsne_rows(pid)
    assert ids.tolist() == [5, 6, 7] and len(rows) == 21 and (pid[rows] != -1).all()
    rows, ids = rankings.tsne_rows(np.arange(1, 5000) // 3)
    assert len(rows) == rankings.TSNE_POINTS and len(ids) == rankings.TSNE_IDS
    assert np.isin(np.arange(1, 5000) // 3, ids).sum() == np.isin((np.arange(1, 5000) // 3)[rows], ids).sum()


def test_settings_mark_what_differs():
    tree = methods.defaults("efl")
    tree = json.loads(json.dumps(tree))
    tree["optim"]["lr"], tree["efl"]["mode"], tree["model"]["unheard_of"] = 1.0, "mmt", 3

    def marked(defaults):
        shown = [(s, *row) for s, rows in sections.settings(tree, defaults) for row in rows]
        return {f"{s}.{f}": (v, d) for s, f, v, d, changed in shown if changed}

    own = {k: v for k, v in methods.defaults("efl").items() if k in ("method", "efl")}
    want = {"optim.lr": ("1.0", "0.0003"), "efl.mode": ("mmt", "full")}
    assert marked(methods.defaults("efl") | own) == want
    assert marked({}) == {"run.method": ("efl", "(empty)"), "optim.lr": ("1.0", "0.0003")}  # an older run


@pytest.mark.slow
def test_study_of_degradation(workdir, no_tsne):
    """The section with grids of two steps and maps, and without the arrays."""
    tree = json.loads((workdir / "titles.json").read_text()) | {"study": STUDY}
    (workdir / "titles.json").write_text(json.dumps(tree))
    with open(workdir / "metrics.jsonl", "a") as f:
        for step, strength in ((3, 0.25), (4, 0.5)):
            line = {"kind": "study", "stage": "gan", "step": step, "epoch": 1.0, "strength": strength}
            f.write(json.dumps(line) + "\n")
    for step in (3, 4):
        pictures.save_study(str(workdir / "eval" / "gan"), step, study_arrays())
    _, text = read(workdir)
    section = text[text.index('id="study"') : text.index('id="tsne"')]
    assert [section.count(t) for t in ("Step 4<", "Step 3<", "teacher (E_id)<")] == [1, 1, 2]
    assert section.count("<img") == 2 + 2 * 3 * 2
    (workdir / "eval" / "gan" / "study.npz").unlink()
    _, text = read(workdir)
    section = text[text.index('id="study"') : text.index('id="tsne"')]
    assert "<img" not in section and "Transfer strength" in section
