"""CUHK-SYSU (person search): crops of its people, as published codes cut them, and its lifelong form.

The crops are cropped_image/pPPPPP_nNN_sSSSSS_hardH.png (person, appearance, scene), made once from the scenes
where they are missing, or cropped_images/pPPPPP_sSSSSS.jpg. They tell no camera and train alone. Variant
"lifelong" is cuhksysu4reid/{train,query,gallery}/PPPPP_sSSSSS_BBBBBBB_H.jpg.
"""

import os
import re
import shutil

import numpy as np
from PIL import Image
from tqdm import tqdm

from reid_jax.data.loaders.common import Layout, Reading, inside, read_flat, read_mat, writing
from reid_jax.errors import DataError

CROPS = ("cropped_image", "cropped_images")
SCENES, PERSONS = "Image/SSM", "annotation/Person.mat"
_CROP = re.compile(r"p(\d+)_(?:n\d+_)?s\d+")
_LIFELONG = re.compile(r"(\d+)_s\d+_")


def read(root, options):
    """All crops train, by one camera; variant lifelong: query is camera 0, the gallery camera 1."""
    if options.variant == "lifelong":
        splits, strange = {}, []
        for split, camera in (("train", 0), ("query", 0), ("gallery", 1)):
            splits[split], odd = read_flat(os.path.join(root, split), _LIFELONG, camera)
            strange += odd
        return Reading(splits, strange)
    folder = next((p for p in (os.path.join(root, name) for name in CROPS) if os.path.isdir(p)), None)
    folder = folder or cut(root, os.path.join(root, CROPS[0]))
    records, strange = read_flat(folder, _CROP, 0)
    return Reading({"train": records, "query": [], "gallery": []}, strange)


def cut(root, folder):
    """Writes the crops of all people in the scenes to `folder`, which is returned.

    They gather in FOLDER.part, which gets its name at the end; a run that was stopped goes on there.
    """
    crops, part = boxes(os.path.join(root, PERSONS)), folder + ".part"
    scenes = {}
    for name, scene, box in crops:
        scenes.setdefault(scene, []).append((name, box))
    with writing(part):
        os.makedirs(part, exist_ok=True)
    done = set(os.listdir(part))
    for scene, wanted in tqdm(sorted(scenes.items()), desc="CUHK-SYSU crops", unit="scene"):
        if left := [(name, box) for name, box in wanted if name not in done]:
            cut_scene(inside(os.path.join(root, SCENES), scene, PERSONS), left, part)
    with writing(folder):
        if os.path.isdir(folder):  # another process was faster
            shutil.rmtree(part, ignore_errors=True)
        else:
            os.replace(part, folder)
    return folder


def cut_scene(path, wanted, part):
    """Writes crops [(name, (x, y, w, h))] of one scene; DataError where they lie outside of it."""
    try:
        with Image.open(path) as opened:
            scene = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as e:
        raise DataError(f"cannot read {path} ({e}): unpack the archive again") from e
    for name, (x, y, w, h) in wanted:
        box = max(x, 0), max(y, 0), min(x + w, scene.width), min(y + h, scene.height)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DataError(f"{PERSONS} has a box {x}, {y}, {w}, {h} outside of {path}: copy the file again")
        new = os.path.join(part, f"{name}.{os.getpid()}")
        with writing(part):
            scene.crop(box).save(new, "PNG")
            os.replace(new, os.path.join(part, name))


def boxes(path):
    """[(name of the crop, scene, (x, y, w, h))] of Person.mat; DataError where it is of another form."""
    (persons,) = read_mat(path, "Person")
    crops = []
    try:
        for person in (p.fields for p in persons.ravel()):
            number = int(re.fullmatch(r"p(\d+)", str(person["idname"][0]))[1])
            for i, seen in enumerate((s.fields for s in person["scene"].ravel()), 1):
                scene = str(seen["imname"][0])
                hard = int(np.ravel(seen["ishard"])[0])
                name = f"p{number:05d}_n{i:02d}_{os.path.splitext(scene)[0]}_hard{hard}.png"
                crops.append((name, scene, tuple(int(v) for v in np.ravel(seen["idlocate"]))))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as e:
        raise DataError(f"{path}: Person is not as published ({e!r}); copy the file again") from e
    if bad := [name for name, _, box in crops if len(box) != 4 or not _CROP.match(name)]:
        raise DataError(f"{path}: {bad[0]} has no box of four numbers; copy the file again")
    return crops


LAYOUTS = {
    "cuhk_sysu": Layout(
        "CUHK-SYSU",
        read,
        ("CUHK-SYSU", "CUHK_SYSU", "cuhk_sysu", "CUHK-SYSU/dataset"),
        ((CROPS[0],), (CROPS[1],), (SCENES, PERSONS)),
        "CUHK-SYSU/\n    cropped_image/p00001_n01_s00001_hard0.png  (or cropped_images/p1_s1.jpg)\n"
        "or  Image/SSM/s00001.jpg and annotation/Person.mat, from which the crops are made",
        "Ask its authors for a copy (Xiao et al., Joint Detection and Identification Feature Learning for "
        "Person Search, 2017).",
        {"train ids": 11934, "train images": 34574, "cameras": 1},
        terms="academic research only; ask its authors",
        variants=("", "lifelong"),
        differs={
            "lifelong": {
                "names": ("cuhksysu4reid", "CUHK-SYSU/cuhksysu4reid", "cuhk_sysu/cuhksysu4reid"),
                "parts": (("train", "query", "gallery"),),
                "tree": "cuhksysu4reid/\n    {train,query,gallery}/00001_s00001_0000001_0.jpg",
                "counts": {},
                "tests": True,
            }
        },
        tests=False,
    ),
}
