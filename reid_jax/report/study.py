"""The study of a degradation GAN: figures and grids over training, maps, scores, codes."""

import base64
import io
import os
import re

import numpy as np
from PIL import Image

from reid_jax.report import figures, look
from reid_jax.report.run import numbers, of_stage, read_arrays

FIGURES = {  # name in the files: (title, meaning)
    "strength": ("Transfer strength", "of the donor's degradation: 0 none, 1 as the true degradation"),
    "psnr": ("PSNR, dB", "of pictures degraded by transfer against truly degraded ones"),
    "psnr_nothing": ("PSNR of doing nothing, dB", "of the clean pictures against the same"),
    "sharpness": ("Sharpness", "of reconstructions, originals 1"),
    "score_gap": ("Score gap", "of D_deg between clean and degraded pictures; its margin is 1"),
    "score_auc": ("Score AUC, %", "a clean and a degraded picture of any people told apart by D_deg"),
    "content": ("Content distance", "of a picture and its degraded version, that of two people 1"),
    "code_std": ("Code deviation", "of the degradation codes over people"),
    "map_change": ("Change of content maps", "under the degradation, by their norm: 0 none"),
    "map_change_teacher": ("Change of the teacher's maps", "the same of its last maps"),
}
_CELL, _LARGE = 96, 192  # pixels, height of a grid's cell: of earlier grids and of the last
_MAPS = {"content": "content (E_con)", "teacher": "teacher (E_id)"}  # titles of rows
_COLOURS = 24  # steps of the colours of a t-SNE
_ARRAYS = ("level", "level_score", "clean_score", "poor_score", "code", "code_score")
_SHADES = {"code_brightness": "brightness", "code_sharpness": "sharpness"}  # what codes are coloured by


def build(run):
    """What the page shows of the last stage with a study, None when there is none."""
    lines = [line for line in run.studies if numbers(line)]
    if not lines:
        return None
    stage = str(lines[-1].get("stage", ""))
    lines = of_stage(lines, stage)
    found = {"stage": stage, "rows": rows(lines), "charts": charts(lines) if len(lines) > 1 else []}
    folder = os.path.join(run.workdir, "eval", stage)
    arrays = read_arrays(os.path.join(folder, "study.npz"), fits) or {}
    found |= {"step": lines[-1]["step"], "earlier": []}
    if "grid/cross" in arrays:
        found["earlier"] = earlier(os.path.join(folder, "grids"), arrays["grid/cross"], found["step"])
    return found | pictures(arrays)


def rows(lines):
    """The table of the first and the last figures."""
    first, last = numbers(lines[0]), numbers(lines[-1])
    shown = {n: f"{v:.3g}" for n, v in first.items()}
    return [
        {"title": title, "meaning": meaning, "last": f"{last[n]:.3g}", "first": shown.get(n, "–")}
        for n, (title, meaning) in FIGURES.items()
        if n in last
    ]


def charts(lines):
    """Line charts of the figures over steps, PSNR beside that of doing nothing."""
    found = []
    for name, (title, _) in FIGURES.items():
        points = [(line["step"], numbers(line)[name]) for line in lines if name in numbers(line)]
        if name == "psnr_nothing" or len(points) < 2:
            continue
        level = numbers(lines[-1]).get("psnr_nothing") if name == "psnr" else None
        line = figures.Line(*zip(*points, strict=True))
        svg = figures.chart([line], f"{title} against step", xlabel="step", level=level, markers=True)
        found.append({"title": title, "last": f"{points[-1][1]:.3g}", "svg": svg})
    return found


def fits(arrays):
    """Whether the arrays are those of a study: finite, of shapes that belong together."""
    if not set(_ARRAYS) <= set(arrays) or any(arrays[n].dtype.kind != "f" for n in _ARRAYS):
        return False
    if not all(np.isfinite(arrays[n]).all() and arrays[n].size for n in _ARRAYS):
        return False
    grids = [a for n, a in arrays.items() if n.startswith("grid/")]
    maps = {n: a for n, a in arrays.items() if n.startswith("map/")}
    points = len(arrays["code"])
    shades = [arrays[n] for n in _SHADES if n in arrays]
    return (
        arrays["level_score"].shape[:1] == arrays["level"].shape
        and arrays["level_score"].ndim == arrays["code"].ndim == 2
        and arrays["code_score"].shape == (points,)
        and all(a.shape == (points,) and a.dtype.kind == "f" and np.isfinite(a).all() for a in shades)
        and all(g.ndim == 5 and g.dtype == np.uint8 and g.shape[4] == 3 and g.size for g in grids)
        and (not maps or maps_fit(**maps))
    )


def maps_fit(**maps):
    """Whether map/image u8[N,2,H,W,3] and the maps f[N,2,h,w] belong together."""
    image = maps.pop("map/image")
    return (
        (image.ndim, image.dtype, image.shape[1], image.shape[4]) == (5, np.uint8, 2, 3)
        and image.size > 0
        and all(m.ndim == 4 and m.dtype.kind == "f" and m.size for m in maps.values())
        and all(m.shape[:2] == image.shape[:2] and np.isfinite(m).all() for m in maps.values())
    )


def pictures(arrays):
    """{"grid", "maps", "levels", "scores", "tsne"} as far as there are arrays for them."""
    if not arrays:
        return {"grid": None, "maps": [], "scores": None}
    return {
        "grid": sheet(side_by_side(arrays["grid/cross"]), len(arrays["grid/cross"]), _LARGE)
        if "grid/cross" in arrays
        else None,
        "maps": maps({n.removeprefix("map/"): a for n, a in arrays.items() if n.startswith("map/")}),
        "levels": levels(arrays["level"], arrays["level_score"]),
        "scores": histogram(-arrays["clean_score"], -arrays["poor_score"]),
        "tsne": codes(arrays),
    }


def side_by_side(grid):
    """A grid u8[R,C,H,W,3] as one picture."""
    rows_, columns, height, width, _ = grid.shape
    return Image.fromarray(grid.transpose(0, 2, 1, 3, 4).reshape(rows_ * height, columns * width, 3))


def sheet(image, rows_, cell):
    """A picture of a grid as a data URI, its cells about `cell` pixels high: small ones keep their pixels."""
    height = image.height // rows_
    if height > cell:
        image = image.resize((max(1, image.width * cell // height), rows_ * cell), Image.Resampling.LANCZOS)
    else:
        times = max(1, round(cell / height))
        image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def earlier(folder, grid, last):
    """[{"step", "src"}]: the first and the middle one of the grids of FOLDER, cross_STEP.png, before `last`.

    Pictures of another size than `grid` and those that cannot be read are left out.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = sorted(int(m[1]) for m in (re.fullmatch(r"cross_(\d+)\.png", n) for n in names) if m)
    before = [s for s in steps if s < last]
    chosen = sorted({*before[:1], *before[len(before) // 2 :][:1]})
    size, found = side_by_side(grid).size, []
    for step in chosen:
        try:
            with Image.open(os.path.join(folder, f"cross_{step:06d}.png")) as image:
                if image.size == size:
                    found.append({"step": step, "src": sheet(image.convert("RGB"), len(grid), _CELL)})
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return found


def maps(found):
    """Rows of pictures of each person, clean and degraded: [[{"title", "frames": [data URI]}]].

    found: image u8[N,2,H,W,3], maps f[N,2,h,w]; the colours of a row have one scale.
    """
    people = []
    for i, frames in enumerate(found.get("image", ())):
        rows_ = [{"title": "picture", "frames": [look.uri(f) for f in frames]}]
        for name in (n for n in _MAPS if n in found):
            heat = found[name][i]
            heat = (heat - heat.min()) / max(np.ptp(heat), 1e-12)
            shown = [look.uri(look.overlay(f, m)) for f, m in zip(frames, heat, strict=True)]
            rows_.append({"title": _MAPS[name], "frames": shown})
        people.append(rows_)
    return people


def levels(level, score):
    """Chart of the mean degradation score f[L,N] over levels f[L], and its outer tenths."""
    low, middle, high = np.quantile(-score, (0.1, 0.5, 0.9), axis=1)
    lines = [
        figures.Line(level, y, 0, strong, not strong) for y, strong in ((low, 0), (middle, 1), (high, 0))
    ]
    return figures.chart(lines, "degradation score against level", xlabel="level")


def histogram(clean, poor):
    """Shares of degradation scores, two curves."""
    edges = np.histogram_bin_edges(np.concatenate([clean, poor]), 24)
    centres = (edges[1:] + edges[:-1]) / 2
    curves = [np.histogram(v, edges)[0] / len(v) for v in (clean, poor)]
    lines = [figures.Line(centres, y, i) for i, y in enumerate(curves)]
    return figures.chart(lines, "scores of clean and degraded pictures", xlabel="degradation score")


def codes(arrays):
    """t-SNE of the degradation codes, coloured by brightness, sharpness and degradation score."""
    code = arrays["code"]
    if len(code) < 8 or np.ptp(code, axis=0).max() < 1e-6:  # all equal: t-SNE would crash
        return []
    points = figures.embed_2d(code)
    shades = {title: arrays[n] for n, title in _SHADES.items() if n in arrays}
    shades["degradation score"] = -arrays["code_score"]
    found = []
    for name, values in shades.items():
        order = np.argsort(np.argsort(values)) * _COLOURS // len(values)
        colours = [f"hsl({250 - 10 * int(i)} 75% 50%)" for i in order]
        svg = figures.scatter(points, colours, f"t-SNE of degradation codes coloured by {name}")
        note = f"blue low, red high; {len(values)} pictures"
        found.append({"title": f"Degradation codes by {name}", "note": note, "svg": svg})
    return found
