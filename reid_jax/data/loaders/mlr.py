"""Cross-resolution sets in DI-REID's folders: {train,query,gallery}/PID/PID_cX_N.jpg, c0 low, c1 high.

MLR-CUHK03 and MLR-VIPeR are made from CUHK03 and VIPeR by `build`; the authors' own files are not public.
"""

import json
import os
import shutil

import numpy as np
from PIL import Image
from tqdm import tqdm

from reid_jax import places
from reid_jax.data import decode
from reid_jax.data.loaders import cuhk03, viper
from reid_jax.data.loaders.common import (
    Layout,
    Options,
    Reading,
    find_root,
    from_one,
    integer_folders,
    read_flat,
    writing,
)
from reid_jax.errors import ConfigError, DataError

SPLITS = ("train", "query", "gallery")
RATIOS = (2, 3, 4)
NOTE = "split.json"  # what `build` drew
CAMERAS = {0: "low", 1: "high"}


def read(root, options):
    """The three folders; val/ of published copies is not used."""
    del options
    splits, strange = {}, []
    for split in SPLITS:
        splits[split] = []
        for _, folder in integer_folders(os.path.join(root, split), strange):
            records, odd = read_flat(folder)
            splits[split] += records
            strange += odd
    return Reading(from_one(splits), strange, read_note(os.path.join(root, NOTE)), CAMERAS)


def read_note(path):
    """What `build` drew, without the long list of ratios; {} for a copy made elsewhere."""
    if not os.path.exists(path):
        return {}
    try:
        with open(path) as f:
            note = json.load(f)
        return {k: v for k, v in note.items() if k != "ratios"}
    except (OSError, ValueError, AttributeError) as e:
        raise DataError(f"cannot read {path} ({e}): build the set again") from e


# ---- making one -----------------------------------------------------------------------------------------
def build(source, target, seed=0, name="", progress=True):
    """Writes MLR-VIPeR or MLR-CUHK03 to the folder `target`; returns its path.

    source: folder of VIPeR or CUHK03, or its parent. name: mlr_viper | mlr_cuhk03, "" = whichever the source
    holds. The pictures of the first camera (VIPeR a, CUHK03 view 1) are down-sampled once by PIL's bicubic
    filter to 1/2, 1/3 or 1/4, drawn for each, and stored in that size as c0; the others are c1. Test
    identities: VIPeR half of them, drawn by seed; CUHK03 the 100 of the classic split 0 (detected boxes).
    TARGET/split.json keeps seed, split and ratios. The same source and seed give the same files.
    Errors: DataError for a source that cannot be read, a target that exists already or cannot be written;
    ConfigError for an unknown name.
    """
    reading = read_source(source, seed, name)
    target = os.path.abspath(places.written(target, "the folder to make"))
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise DataError(f"{target} exists already; remove it or give another folder")
    part = target + ".part"
    with writing(part):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        ratios = write_splits(reading.splits, part, seed, progress)
        note = {"seed": seed, **reading.drawn, "ratios": ratios}
        with open(os.path.join(part, NOTE), "w") as f:
            json.dump(note, f, indent=1)
        if os.path.isdir(target):
            os.rmdir(target)
        os.replace(part, target)
    return target


def read_source(source, seed, name):
    """Reading of the set that `name` is made from."""
    sources = {
        "mlr_viper": (viper.LAYOUTS["viper"], ""),
        "mlr_cuhk03": (cuhk03.LAYOUTS["cuhk03"], "classic-detected"),
    }
    if name and name not in sources:
        raise ConfigError(f"{name!r} cannot be built; there are {', '.join(map(repr, sources))}")
    source = os.path.abspath(places.local(source, "the source"))
    reasons = []
    for each in [name] if name else sources:
        layout, variant = sources[each]
        try:
            root = find_root(layout, source)
        except DataError as e:
            reasons.append(str(e))
        else:
            return layout.read(root, Options(variant, seed=seed))
    raise DataError("\n".join(reasons))


def write_splits(splits, folder, seed, progress):
    """Writes all pictures below `folder`; {path of a low one: its ratio}.

    Numbers count from 0 within an identity and camera.
    """
    low, high = 1, 2  # cameras of the source
    query = [r for r in splits["query"] if r.camid == low]
    gallery = [r for r in splits["gallery"] if r.camid == high]
    numbered = sorted({r.pid for records in splits.values() for r in records})
    numbers = {pid: i for i, pid in enumerate(numbered, 1)}
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, len(RATIOS)))))
    ratios, seen = {}, {}
    parts = {"train": splits["train"], "query": query, "gallery": gallery}
    total = sum(map(len, parts.values()))
    with tqdm(total=total, unit="image", desc="down-sampling", disable=not progress) as bar:
        for split, records in parts.items():
            for r in sorted(records, key=lambda r: (r.pid, r.camid, r.path)):
                pid, camera = numbers[r.pid], r.camid - low
                count = seen[pid, camera] = seen.get((pid, camera), -1) + 1
                ratio = int(rng.choice(RATIOS)) if camera == 0 else 1
                name = f"{split}/{pid:04d}/{pid:05d}_c{camera}_{count:05d}.jpg"
                write_picture(r.path, os.path.join(folder, name), ratio)
                if ratio > 1:
                    ratios[name] = ratio
                bar.update()
    return ratios


def write_picture(source, path, ratio):
    """A JPEG of the picture, 1 / ratio as large."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(source, "rb") as file:
            picture = decode.picture(file.read())
    except Exception as e:  # PIL's plugins raise whatever a damaged byte leads to
        raise DataError(f"{source} cannot be read as an image ({e}): copy it again") from e
    if ratio > 1:
        size = [max(1, round(length / ratio)) for length in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    picture.save(path, "JPEG", quality=95, subsampling=0)


_ADVICE = (
    "It is made from {0}: reid_jax.data.loaders.mlr.build(FOLDER OF {0}, TARGET). The authors' own split "
    "(Huang, Zha, Fu and Zhang, DI-REID, 2020) is not public."
)
_TREE = (
    "{0}/\n    train/0020/00020_c0_00000.jpg  (c0 low resolution, c1 high)\n"
    "    query/...  (c0)\n    gallery/...  (c1)"
)
LAYOUTS = {
    "mlr_cuhk03": Layout(
        "MLR-CUHK03",
        read,
        ("MLR-CUHK03", "mlr_cuhk03"),
        (SPLITS,),
        _TREE.format("MLR-CUHK03"),
        _ADVICE.format("CUHK03"),
        {"train ids": 1367, "query ids": 100, "gallery ids": 100, "images": 14097, "cameras": 2},
        terms="those of CUHK03",
        protocol="single-shot",
    ),
    "mlr_viper": Layout(
        "MLR-VIPeR",
        read,
        ("MLR-VIPeR", "mlr_viper"),
        (SPLITS,),
        _TREE.format("MLR-VIPeR"),
        _ADVICE.format("VIPeR"),
        viper.COUNTS,
        terms="those of VIPeR",
        protocol="single-shot",
    ),
}
