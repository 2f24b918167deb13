"""Damaged and random bytes to all that reads files, bad values to all flags: only ReidErrors come out.

Seeds are fixed. The default run takes a few hundred variants a reader, `-m slow` many more.
"""

import io
import json
import os
import shutil
import types
import warnings
import zipfile

import numpy as np
import pytest
import torchfile
from absl import flags
from batches import opened
from ml_collections import config_flags
from PIL import Image, ImageCms
from report.arrays import study_arrays
from scipy import io as matlab

from reid_jax import config as c
from reid_jax import main, methods, presets, report
from reid_jax.benchmarks import data as data_benchmark
from reid_jax.benchmarks import scaling
from reid_jax.commands import compare, zoo
from reid_jax.data import datasets, decode, images, pipeline, synthetic
from reid_jax.data.loaders import common, labels, walk
from reid_jax.errors import DataError, ReidError
from reid_jax.eval import store
from reid_jax.methods.direid import STUDY
from reid_jax.models import weights
from reid_jax.parity import case
from reid_jax.plan import stored
from reid_jax.report import figures, look, rankings, strips
from reid_jax.train import checkpoint, evaluate, stages, titles, writer
from reid_jax.trained import labels as run_labels
from reid_jax.trained.figures import result

JUNK = (
    *(None, True, -1, 0, 2**70, 1e300, float("nan"), float("-inf")),
    *("", "x" * 300, "\0", "../..", "</style><script>"),
    *([], {}, [[]], {"": None}, [1, "a"], {"a": {"b": []}}),
)


def many(few, lots):
    """Parameter `count`: a few variants by default, many in slow runs."""
    return pytest.mark.parametrize("count", [few, pytest.param(lots, marks=pytest.mark.slow)])


def random_bytes(rng, size):
    return rng.integers(0, 256, size, np.uint8).tobytes()


def damaged(data, rng):
    """The bytes, damaged in one way: cut, flipped, lost, doubled, overwritten, replaced."""
    way, at = rng.integers(8), int(rng.integers(len(data) + 1))
    size = int(2 ** rng.uniform(0, 8))
    if way == 0:
        return data[:at]
    if way == 1:
        return random_bytes(rng, size)
    if way == 2:
        return data[:at] + data[at + size :]
    if way == 3:
        return data[:at] + data[at : at + size] + data[at:]
    if way == 4:
        return data[:at] + random_bytes(rng, size) + data[at + size :]
    if way == 5:
        return data[:at] + bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * min(size, 8) + data[at + size :]
    broken = bytearray(data)
    for i in rng.integers(0, max(len(data), 1), 1 + size // 16):
        broken[i] ^= 1 << int(rng.integers(8))
    return bytes(broken)


def damaged_zip(data, rng):
    """A zip archive that has a member damaged, missing or under another name, or is damaged itself."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        victim, way = names[rng.integers(len(names))], rng.random()
        for name in names:
            body = old.read(name)
            if name == victim and way < 0.1:
                continue
            if name == victim and way < 0.2:
                name = f"../{name}"
            elif name == victim:
                head = 128 if rng.random() < 0.5 else len(body)  # half of the time in the header
                body = damaged(body[:head], rng) + body[head:]
            new.writestr(name, body)
    return out.getvalue()


def damaged_json(tree, rng):
    """A tree of JSON values, one of which is junk or missing."""
    tree = json.loads(json.dumps(tree))
    node, key = tree, None
    while isinstance(node, dict | list) and len(node) and (key is None or rng.random() < 0.8):
        parent = node
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = keys[rng.integers(len(keys))]
        node = parent[key]
    if key is None or rng.random() < 0.02:
        return JUNK[rng.integers(len(JUNK))]
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = JUNK[rng.integers(len(JUNK))]
    return tree


def survives(read, seen, what=""):
    """Calls read(); only a ReidError may come out. seen: counts of results and errors."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            read()
    except ReidError as error:
        assert str(error)
        seen["errors"] += 1
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} {what}") from error
    else:
        seen["read"] += 1


def fuzz_file(path, data, read, count, damage=damaged, seed=0):
    """read(path) of `count` damaged versions of a file; some must fail, the sound one must not."""
    path.write_bytes(data)
    read(path)
    rng, seen = np.random.default_rng([seed, len(data)]), {"read": 0, "errors": 0}
    for i in range(count):
        broken = damage(data, rng)
        path.write_bytes(broken)
        survives(lambda: read(path), seen, f"(variant {i} of {path.name}, {broken[:40]!r}...)")
    assert seen["errors"] > count // 20, seen


# ---- pictures


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("decoder", decode.DECODERS)
@many(60, 3000)
def test_pictures(tmp_path, decoder, form, count):
    if decoder != "pil":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    pixels = np.random.default_rng(1).integers(0, 255, (24, 12, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)

    def read(path):
        picture = images.read(str(path), 32, 16, decode.find(decoder))
        assert picture.shape == (32, 16, 3) and picture.dtype == np.uint8

    fuzz_file(tmp_path / "picture", out.getvalue(), read, count)


SAVED = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B")
FORMATS = (
    *(
        "AVIF",
        "BLP",
        "BMP",
        "DDS",
        "DIB",
        "GIF",
        "ICNS",
        "ICO",
        "IM",
        "JPEG",
        "JPEG2000",
        "MPO",
        "MSP",
        "PCX",
    ),
    *("PNG", "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM"),
)  # that Pillow writes and opens


def in_mode(mode, size=(16, 32)):
    """A picture of a mode, its values spread over all that the mode can hold."""
    small = np.random.default_rng(7).integers(0, 256, (4, 2, 3), np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    grey = np.asarray(image.convert("L"))
    if mode in ("I", "F"):
        return Image.fromarray((grey * 257.0).astype(np.int32 if mode == "I" else np.float32))
    if mode.startswith("I;16"):
        deep = grey.astype(np.uint16) * 257
        return Image.frombytes(mode, size, deep.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    if mode == "LAB":
        profiles = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    return image.convert(mode)


def files_of(form):
    """{mode: bytes} of the modes that Pillow can write in a format."""
    found = {}
    for mode in SAVED:
        out, image = io.BytesIO(), in_mode(mode, (32, 32) if form in ("ICNS", "ICO") else (16, 32))
        try:
            image.save(out, form)
            Image.open(out).load()  # Pillow 12 writes TIFFs of YCbCr that it cannot read
        except (OSError, ValueError, KeyError):
            continue
        found[mode] = out.getvalue()
    assert found
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_every_mode_and_format(form):
    """All decoders see the same picture, deep ones with the contrast of 8 bits."""
    for package in ("cv2", "simplejpeg"):
        pytest.importorskip(package)
    for mode, contents in files_of(form).items():
        want = decode.original(contents)
        for name, decoder in ((n, decode.find(n)) for n in decode.DECODERS):
            found = decoder(contents, *want.shape[:2])
            assert np.abs(found.astype(int) - want).max() <= 1, (mode, name)
            small = decoder(contents, want.shape[0] // 2, want.shape[1] // 2)
            assert small.shape == (want.shape[0] // 2, want.shape[1] // 2, 3) and small.dtype == np.uint8
        lossy = form in ("AVIF", "GIF", "WEBP")  # they hold no deep values: PIL cuts them as it writes
        if form != "ICNS" and ((mode[0] in "IF" and not lossy) or mode == "L"):  # it is written resized
            grey = np.asarray(in_mode("L", want.shape[1::-1])).astype(int)
            assert np.abs(want[..., 0] - grey).mean() < (40 if lossy else 6), mode


def test_no_format_of_pillow_is_forgotten():
    """What Pillow opens and writes is in FORMATS, but for documents and formats that other programs draw."""
    Image.init()
    others = {"EPS", "PDF", "PALM", "WMF", "BUFR", "GRIB", "HDF5"}
    assert set(Image.SAVE) - others <= set(FORMATS)


@pytest.mark.parametrize(
    "form", [f for f in FORMATS if f not in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")]
)
@many(8, 500)
def test_damaged_pictures_of_every_format(tmp_path, form, count):
    """Whatever a plugin raises (AVIF's is a RuntimeError) is a message that names the file."""
    rng, seen, path = np.random.default_rng(len(form)), {"read": 0, "errors": 0}, tmp_path / "picture"
    for mode, data in files_of(form).items():
        for i in range(count):
            path.write_bytes(damaged(data, rng) if i else data[: len(data) // 2])
            survives(lambda: images.read(str(path), 32, 16), seen, f"(variant {i} of {form} {mode})")
    assert seen["errors"], seen


@pytest.mark.parametrize("decoder", decode.DECODERS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
def test_a_small_file_cannot_claim_a_huge_picture(tmp_path, decoder, form):
    """Width and height in the header: 20,000 x 20,000, which would take 1.2 GB."""
    if decoder != "pil":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    out, size = io.BytesIO(), 20000
    Image.new("RGB", (0x1234, 0x21)).save(out, form)
    data = out.getvalue()
    if form == "BMP":
        claimed = data.replace(b"\x34\x12\0\0\x21\0\0\0", size.to_bytes(4, "little") * 2)
    elif form == "PNG":
        head = b"IHDR" + size.to_bytes(4, "big") * 2 + data[24:29]
        claimed = data[:12] + head + zipfile.crc32(head).to_bytes(4, "big") + data[33:]
    else:
        claimed = data.replace(b"\x00\x21\x12\x34", size.to_bytes(2, "big") * 2)
    assert claimed != data
    path = tmp_path / "picture"
    path.write_bytes(claimed)
    with pytest.raises(DataError, match="cannot be read as an image"):
        images.read(str(path), 32, 16, decode.find(decoder))


# ---- arrays


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@many(150, 10000)
def test_feature_files(tmp_path, count):
    rng = np.random.default_rng(0)
    text = np.array([f"query/{i}.jpg" for i in range(6)])
    data = npz(
        feature=rng.standard_normal((6, 4), np.float32),
        pid=np.arange(6), camid=np.arange(6) % 2, path=text, split=np.repeat(["query", "gallery"], 3),
    )  # fmt: skip
    fuzz_file(tmp_path / "features.npz", data, lambda p: store.load(str(p)), count, damaged_zip)


@many(100, 5000)
def test_parity_cases(tmp_path, count):
    meta = json.dumps({"reference": "r", "seed": 1, "mode": "train", "config": {"weights_seed": 3}})
    arrays = {
        "in/x": np.ones((2, 3), np.float32),
        "param/a.weight": np.ones(3),
        "shape/b.weight": np.array([2, 2]),
    }
    data = npz(**arrays, **{"out/y": np.ones(2, np.float32)}, meta=np.array(meta))

    def read(path):
        found = case.load(str(path))
        found.input("x")
        found.recorded()

    fuzz_file(tmp_path / "a__b.npz", data, read, count, damaged_zip)


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "weights.npz", "weights.safetensors"])
@many(150, 10000)
def test_weights(tmp_path, kind, count):
    path, entries = tmp_path / kind, {f"layer{i}.weight": np.full((2, i), i, np.float32) for i in range(1, 4)}
    if kind == "weights.npz":
        np.savez(path, **entries)
    elif kind == "weights.safetensors":
        weights.save(path, entries, {"made": "here"})
    else:
        write = torchfile.write_zip if kind == "zip.pth" else torchfile.write_legacy
        write(path, {"state_dict": entries, "epoch": 1})
    damage = damaged_zip if kind in ("zip.pth", "weights.npz") else damaged
    fuzz_file(path, path.read_bytes(), lambda p: weights.read(str(p)), count, damage)


# ---- lists of data sets


@many(60, 3000)
def test_own_labels(tmp_path, count):
    for i in range(8):
        Image.new("RGB", (4, 8)).save(tmp_path / f"{i}.png")
    rows = "".join(
        f"{i}.png,p{i % 4},c{i % 2},{s}\n" for i, s in enumerate(["train", "train", "query", "gallery"] * 2)
    )

    def read(path):
        options = common.Options(csv=str(path))
        found = datasets.load_folder("folder", str(tmp_path), options)
        for record in (*found.train, *found.query, *found.gallery):
            assert record.path.startswith(f"{tmp_path}/") and ".." not in record.path

    fuzz_file(tmp_path / "labels.csv", f"path,pid,camid,split\n{rows}".encode(), read, count)


TURNS = {  # of a table's lines; what any of them does, the pictures and labels are the same
    "separator": lambda lines, rng: lines,
    "index": lambda lines, rng: [["" if not i else str(i), *line] for i, line in enumerate(lines)],
    "column": lambda lines, rng: [[*line, "size" if not i else "3"] for i, line in enumerate(lines)],
    "order": lambda lines, rng: list(zip(*rng.permutation(np.array(lines, object).T).tolist(), strict=True)),
    "capitals": lambda lines, rng: [[v.title() for v in lines[0]], *lines[1:]],
    "spaces": lambda lines, rng: [[f" {v} " for v in line] for line in lines],
    "quotes": lambda lines, rng: [[f'"{v}"' for v in line] for line in lines],
    "empty": lambda lines, rng: [x for line in lines for x in (line, [""] * len(line))],
    "floats": lambda lines, rng: change(lines, "pid", lambda v: f"{v}.0"),
    "backslashes": lambda lines, rng: change(lines, "path", lambda v: v.replace("/", "\\")),
    "dots": lambda lines, rng: change(lines, "path", lambda v: f"./{v}"),
    "names": lambda lines, rng: change(lines, "pid", lambda v: v if v[:1] in "-0" else f"p{v}"),
}


def change(lines, column, function):
    """Lines with the values of a column changed."""
    at = [name.strip(' "').lower() for name in lines[0]].index(column)
    return [[*v[:at], function(v[at]) if i else v[at], *v[at + 1 :]] for i, v in enumerate(lines)]


@many(60, 3000)
def test_tables_of_every_shape(tmp_path, count):
    """Ways to write a table are mixed at random; all say the same."""
    lines = [["path", "pid", "camid", "split"]]
    for i in range(12):
        Image.new("RGB", (4, 8)).save(tmp_path / f"{i}.png")
        split = "train" if i < 4 else "query" if i < 6 else "gallery"
        who = "-1" if i == 10 else "0" if i == 11 else str(21 + i % 2 + 2 * (i >= 4))
        lines.append([f"x/../{i}.png", who, str(1 + i // 2 % 2), split])
    rng, path, want = np.random.default_rng(8), tmp_path / "labels.csv", None
    (tmp_path / "x").mkdir()
    for i in range(count):
        ways = rng.choice(list(TURNS), rng.integers(0, 6) if i else 0, replace=False).tolist()
        ways.sort(key=lambda way: way in ("empty", "spaces", "quotes"))  # the others know the plain lines
        turned = lines
        for way in ways:
            turned = TURNS[way](turned, rng)
        separator = rng.choice([",", ";", "\t", "|"]) if "separator" in ways else ","
        mark, end = rng.choice(["", "\ufeff"]), rng.choice(["\n", "\r\n", "\r"])
        text = mark + end.join(separator.join(line) for line in turned) + end * int(rng.integers(3))
        path.write_text(
            text, encoding=str(rng.choice(["utf-8", "utf-16"])) if not mark else "utf-8", newline=""
        )
        found = datasets.load_folder("folder", str(tmp_path))
        first = min(r.pid for r in found.query) - 1
        splits = [
            [(r.path, r.pid - first * (r.pid > 0) * (s is not found.train), r.camid) for r in s]
            for s in (found.train, found.query, found.gallery)
        ]
        want = want or splits
        assert splits == want, (ways, text)


NAMES = (
    *("a.png", "b.JPG", "\u884c.png", "e\u0301.webp", " .png", "-x.png", "a\nb.png", "#.png", "%s.png", "d"),
    *("c,d;e.png", "'q'.png", "~", "x" * 200 + ".png", ".h.png", "@eaDir", "__MACOSX", "Thumbs.db", "f.heic"),
)


def random_tree(root, rng, depth=0):
    """Files, folders and links of odd names below a folder; {path: whether a person sees a picture there}."""
    seen = {}
    for name in rng.choice(NAMES, rng.integers(2, 8), replace=False).tolist():
        kind = rng.random()
        raw = os.path.join(os.fsencode(root), name.encode("gbk", "replace") if kind > 0.9 else name.encode())
        shown = name.lower().endswith((".png", ".jpg", ".webp")) and not name.startswith(".")
        if kind < 0.3 and depth < 3:
            os.mkdir(raw)
            below = random_tree(os.fsdecode(raw), rng, depth + 1)
            hidden = name.startswith(".") or name in ("@eaDir", "__MACOSX")
            seen |= {p: s and not hidden for p, s in below.items()}
        elif kind < 0.4:
            os.symlink(rng.choice(["..", ".", "nowhere", "/nowhere/x"]), raw)
        else:
            with open(raw, "wb") as f:
                f.write(b"x")
            seen[os.fsdecode(raw)] = shown
    return seen


@many(40, 2000)
def test_paths(tmp_path, count):
    """Trees of any names and links: exactly what a person sees is listed, once, and can be printed."""
    for i in range(count):
        root = tmp_path / str(i)
        root.mkdir()
        seen = random_tree(str(root), np.random.default_rng([9, i]))
        want = sorted(path for path, shown in seen.items() if shown)
        with walk.noting() as left:
            places = walk.once(str(root), walk.pictures(str(root)), lambda path: None)
        assert sorted(places) == want, i
        told = walk.told(left, (*walk.PICTURES, walk.OTHER), str(root))
        labels.printable(told).encode()
        if want:
            assert [r.path for r in datasets.pictures(str(root))] == places


@many(200, 10000)
def test_matlab_files(tmp_path, count):
    cells = np.empty((1, 3), object)
    cells[:] = [[np.arange(3), "text", np.ones((2, 2))]]
    for compressed in (False, True):
        out = io.BytesIO()
        variables = {"rows": np.arange(12).reshape(3, 4), "cells": cells, "s": {"a": 1, "b": "x"}}
        matlab.savemat(out, variables, do_compression=compressed)
        fuzz_file(
            tmp_path / "x.mat", out.getvalue(), lambda p: common.read_mat(str(p), "rows", "cells", "s"), count
        )


# ---- files of a run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The files of a finished run with six queries, without pictures."""
    monkeypatch.setattr(rankings, "tsne", lambda *given: None)  # takes long, and sees arrays only
    monkeypatch.setattr(figures, "_svg", lambda figure, *given: "")  # the same
    tree = methods.defaults("baseline")
    presets.smoke(tree)
    folder, rng = tmp_path / "run", np.random.default_rng(0)
    (folder / "eval").mkdir(parents=True)
    pid, camid = np.repeat(np.arange(1, 7), 2), np.tile([0, 1], 6)
    names = np.array([f"{i}.jpg" for i in range(12)])
    split = np.where(camid == 0, "query", "gallery")
    features = store.FeatureSet(rng.standard_normal((12, 4), np.float32), pid, camid, names, split)
    store.save(str(folder / "eval" / "final.npz"), features)
    result = evaluate.score(c.namespace(tree), features)
    evaluate.save_final(c.namespace(tree), str(folder), 12, {("", "net"): result}, {})
    lines = [
        {"kind": "train", "step": s, "epoch": s / 3, "seconds": 1.0, "loss": 1 / s, "lr": 0.1}
        for s in (1, 2, 3)
    ]
    lines += [
        {"kind": "eval", "step": 3, "epoch": 1.0, "seconds": 2.0, "net": "net", "rank1": 50.0, "mAP": 40.0}
    ]
    lines += [{"kind": "study", "step": s, "epoch": 1.0, "strength": s / 9, "psnr": 20.0} for s in (2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    monkeypatch.setattr(figures, "embed_2d", lambda points: points[:, :2])
    store.save_arrays(str(folder / "eval" / "study.npz"), study_arrays())
    titles.write(str(folder), c.namespace(tree), {"train": ("net",)})
    checkpoint.write_json(str(folder / "titles.json"), titles.read(str(folder)) | {"study": STUDY})
    checkpoint.write_json(str(folder / "config.json"), tree)
    summary = {
        "seconds": 9.0,
        "steps": 12,
        "parameters": 100,
        "data_root": str(tmp_path),
        "camera_names": ["a", "b"],
        "versions": {"jax": "1"},
    }
    checkpoint.write_json(
        str(folder / "summary.json"), summary | {"images_per_second": 3.0, "devices": "cpu"}
    )
    return folder


def use(folder):
    """What readers of a run do with it."""
    stages.of_run(str(folder))
    titles.networks(str(folder), "train")
    for line in writer.read(str(folder / "metrics.jsonl")):
        line["step"]
    with open(report.build(str(folder), queries=2)) as f:
        assert "<script" not in f.read()
    (row,) = zoo.read([str(folder)]) or [None]  # left out, with a warning, when it cannot be read
    zoo.markdown(zoo.page([row] if row else [], ""))
    compare.table({"a": {0: result(folder, "")}}, "a")


@many(200, 5000)
def test_tables_of_unseen_sets(run, tmp_path, count):
    """dg.json, which zoo reads: a row is left out with a warning, or is there."""
    shutil.copytree(run, tmp_path / "A" / "x" / "seed-0")
    (tmp_path / "A" / "dg-asked.json").write_text("{}")
    figures = {"targets": {"y": {"0": {"rank1": 50.0, "mAP": 40.0}}}}
    rng, seen = np.random.default_rng(5), {"read": 0, "errors": 0}
    for i in range(count):
        table = {"rows": {"x": {"0": figures, "1": figures}}}
        broken = json.dumps(damaged_json(table, rng)).encode()
        (tmp_path / "A" / "dg.json").write_bytes(damaged(broken, rng) if i % 4 == 0 else broken)
        rows = zoo.read([str(tmp_path / "A")])
        zoo.markdown(zoo.page(rows, ""))
        seen["read" if rows else "errors"] += 1
    assert min(seen.values()) > 3, seen


@pytest.mark.parametrize(
    "name",
    [
        *("eval/final.json", "metrics.jsonl", "eval/final.npz"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("config.json", "summary.json")),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("titles.json", "eval/study.npz")),
    ],
)
@many(3, 1000)
def test_files_of_a_run(run, name, count):
    use(run)
    path = run / name
    data, rng, seen = path.read_bytes(), np.random.default_rng(len(name)), {"read": 0, "errors": 0}
    for i in range(count):
        if name.endswith("npz"):
            broken = damaged_zip(data, rng)
        elif i % 3 == 0:
            broken = damaged(data, rng)
        elif name.endswith("jsonl"):
            lines = [json.loads(x) for x in data.splitlines()]
            broken = "\n".join(json.dumps(x) for x in damaged_json(lines, rng) or []).encode()
        else:
            broken = json.dumps(damaged_json(json.loads(data), rng)).encode()
        path.write_bytes(broken)
        survives(lambda: use(run), seen, f"(variant {i} of {name}: {broken[:3000]!r})")


@many(100, 3000)
def test_plans(tmp_path, count):
    """What plan --json wrote, for the model of scaling and the cores of a host."""
    sorts = [{"kind": "all-reduce", "calls": 3, "bytes": 8e6}, {"kind": "all-gather", "calls": 1, "bytes": 4}]
    step = dict(name="train: train", rows=64, trains=True, flops=1e12, moved=8e9, collectives=sorts)
    plan = {"place": "v5e:2x2", "devices": 4, "programs": [step, step | {"trains": False}]}
    args = types.SimpleNamespace(workers=2, decoders=["pil"])

    def read(path):
        scaling.main([f"--plan={path}", "--devices=1,8"])
        data_benchmark.print_hosts(stored.read(path), {"threads_pil_2": 1.0, "cached_2": 2.0}, args)

    def damage(data, rng):
        return json.dumps(damaged_json(json.loads(data), rng)).encode()

    fuzz_file(tmp_path / "plan.json", json.dumps(plan).encode(), read, count, damage)
    fuzz_file(tmp_path / "plan.json", json.dumps(plan).encode(), read, count)


@many(100, 3000)
def test_lists_of_runs(tmp_path, count):
    lines = "# two rows\na=configs/efl.py:smoke\nb=configs/baseline.py:smoke\n"

    def read(path):
        run_labels.configs([f"@{path}"])

    fuzz_file(tmp_path / "runs.txt", lines.encode(), read, count)


@many(100, 3000)
def test_arrays_for_pictures_of_a_report(tmp_path, count):
    image = np.zeros((1, 2, 8, 4, 3), np.uint8)
    stored = {"image": image, "pid": np.ones(1, int), "camid": np.zeros(1, int), "weight": np.ones((1, 2))}
    data = npz(**stored, **{"map/F_ID": np.zeros((1, 2, 4, 2), np.float32)})
    frames = npz(path=np.array(["a", "b"]), frames=np.array([["a", "b"], ["c", "d"]]))
    rng, seen = np.random.default_rng(3), {"read": 0, "errors": 0}
    for sound, read in ((data, lambda path: look.build(path, {})), (frames, strips.read_frames)):
        for _ in range(count):
            (tmp_path / "x.npz").write_bytes(damaged_zip(sound, rng))
            survives(lambda read=read: read(str(tmp_path / "x.npz")), seen)


@many(8, 200)
def test_checkpoints(tmp_path, count):
    state = {"a": np.arange(6.0, dtype=np.float32), "b": np.int32(3)}
    kept = checkpoint.Checkpoints(str(tmp_path / "run"), "train")
    kept.save(1, state, {"step": 1}, wait=True)
    kept.close()
    sound, rng, seen = tmp_path / "sound", np.random.default_rng(4), {"read": 0, "errors": 0}
    shutil.copytree(tmp_path / "run", sound)
    for i in range(count):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(sound, tmp_path / "run")
        files = sorted(p for p in (tmp_path / "run").rglob("*") if p.is_file())
        victim = files[rng.integers(len(files))]
        if i % 4 == 3:
            victim.unlink()
        else:
            victim.write_bytes(damaged(victim.read_bytes(), rng))

        def read():
            again = checkpoint.Checkpoints(str(tmp_path / "run"), "train")
            try:
                again.restore(state)
            finally:
                again.close()

        survives(read, seen, str(victim))


# ---- flags

BAD = (
    "",
    "x",
    "-1",
    "0",
    "1e400",
    "nan",
    "None",
    "True",
    "()",
    "(1,)",
    "[",
    "9" * 30,
    "../..",
    "\0",
    "é",
    "1,2",
    "{}",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small data set in Market-1501's layout."""
    root = tmp_path_factory.mktemp("market")
    synthetic.generate(
        str(root), train_ids=4, test_ids=4, cameras=2, images=2, height=32, width=16, progress=False
    )
    return str(root)


def fields(tree):
    return [f for f in c.flatten(tree) if not f.startswith(("data.synthetic.", "stages."))]


def test_flags_of_every_field(monkeypatch):
    """Values of a wrong type are refused by the parser in words that name the flag."""
    tree, seen = c.defaults(), {"read": 0, "errors": 0}
    rng = np.random.default_rng(5)
    for field in [*fields(tree), "none.such", "data", "data.synthetic", ""]:
        for value in rng.choice(BAD, 2, replace=False):
            given = flags.FlagValues()
            config_flags.DEFINE_config_file("config", None, flag_values=given)
            with monkeypatch.context() as patch:
                arguments = ["main", "--config=configs/baseline.py:smoke", f"--config.{field}={value}"]
                patch.setattr(main.flags, "FLAGS", given)
                patch.setattr("sys.argv", arguments)  # where overrides are looked for
                survives(lambda a=arguments: main.parse_flags(a), seen, f"({arguments[2]})")
    assert min(seen.values()) > len(fields(tree)) // 4, seen


NUMBERS = (-1, 0, 1, 3, 1.5, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", "x", "\0", "../..", "a+b", "market1501+market1501", "1,2", "[", "(?P<pid>x)")
LISTS = ((), (0,), (-1, 1), (1, 0), (1, 2, 3, 4, 5), (float("nan"),) * 3)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_values_of_data_fields(every, pictures, tmp_path, monkeypatch):
    """Loading a set and making batches of it with one field out of its range, or odd: each 4th, or all."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")  # of all folders that "../.." may be, a small one
    tree, seen = c.defaults(), {"read": 0, "errors": 0}
    presets.smoke(tree)
    tree["data"].update(name="market1501", root=pictures, threads=1, height=16, width=8)
    values = {bool: (True, False), int: NUMBERS[:4], float: NUMBERS, str: TEXTS, tuple: LISTS, list: LISTS}

    def batch(data):
        dataset = datasets.load(data, None)
        pipeline.check_fields(dataset, data)
        with opened(dataset, data) as batches:
            next(batches)
        with pipeline.eval_batches(dataset.query, data, 4) as batches:
            next(batches)

    batch(c.namespace(tree["data"]))
    fields = tree["data"].keys() - {"workers"}  # they start processes
    odd = [(f, value) for f in sorted(fields) for value in values.get(type(tree["data"][f]), ())]
    for field, value in odd[::every]:
        data = c.namespace(tree["data"] | {field: value})
        survives(lambda d=data: batch(d), seen, f"(config.data.{field} = {value!r})")
    assert min(seen.values()) > 50 / every, seen


@pytest.mark.parametrize(
    "value",
    [
        *("configs", "configs/none.py", "configs/baseline.py:", "configs/baseline.py:x:y", "README.md"),
        *("", ":", "tests/cases/efl__ema.npz", "\0"),
    ],
)
def test_config_files_that_are_none(value, monkeypatch):
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=given)
    monkeypatch.setattr(main.flags, "FLAGS", given)
    survives(lambda: main.parse_flags(["main", f"--config={value}"]), {"read": 0, "errors": 0})
