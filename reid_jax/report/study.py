"""The study of a degradation GAN: figures over training, the grid of swapped degradations, scores, codes."""

import base64
import io
import os

import numpy as np
from PIL import Image

from reid_jax.report import figures
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
}
_CELL = 96  # pixels, height of a grid's cell on the page
_COLOURS = 24  # steps of the colours of a t-SNE
_ARRAYS = ("level", "level_score", "clean_score", "poor_score", "code", "code_score", "code_brightness")


def build(run):
    """What the page shows of the last stage with a study, None when there is none."""
    lines = [line for line in run.studies if numbers(line)]
    if not lines:
        return None
    stage = str(lines[-1].get("stage", ""))
    lines = of_stage(lines, stage)
    found = {"stage": stage, "rows": rows(lines), "charts": charts(lines) if len(lines) > 1 else []}
    arrays = read_arrays(os.path.join(run.workdir, "eval", stage, "study.npz"), fits)
    return found | pictures(arrays or {})


def rows(lines):
    """The table of the first and the last figures."""
    first, last = numbers(lines[0]), numbers(lines[-1])
    return [
        {"title": title, "meaning": meaning, "last": f"{last[n]:.3g}", "first": f"{first.get(n, np.nan):.3g}"}
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
    points = len(arrays["code"])
    return (
        arrays["level_score"].shape[:1] == arrays["level"].shape
        and arrays["level_score"].ndim == arrays["code"].ndim == 2
        and arrays["code_score"].shape == arrays["code_brightness"].shape == (points,)
        and all(g.ndim == 5 and g.dtype == np.uint8 and g.shape[4] == 3 and g.size for g in grids)
    )


def pictures(arrays):
    """{"grid", "levels", "scores", "tsne"} as far as there are arrays for them."""
    if not arrays:
        return {"grid": None, "scores": None}
    return {
        "grid": sheet(arrays["grid/cross"]) if "grid/cross" in arrays else None,
        "levels": levels(arrays["level"], arrays["level_score"]),
        "scores": histogram(-arrays["clean_score"], -arrays["poor_score"]),
        "tsne": codes(arrays),
    }


def sheet(grid):
    """A grid u8[R,C,H,W,3] as a data URI."""
    rows_, columns, height, width, _ = grid.shape
    image = Image.fromarray(grid.transpose(0, 2, 1, 3, 4).reshape(rows_ * height, columns * width, 3))
    size = columns * max(1, round(_CELL * width / height)), rows_ * _CELL
    memory = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(memory, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


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
    """t-SNE of the degradation codes, coloured by brightness and by degradation score."""
    code = arrays["code"]
    if len(code) < 8 or np.ptp(code, axis=0).max() < 1e-6:  # all equal: t-SNE would crash
        return []
    points = figures.embed_2d(code)
    shades = {"brightness": arrays["code_brightness"], "degradation score": -arrays["code_score"]}
    found = []
    for name, values in shades.items():
        order = np.argsort(np.argsort(values)) * _COLOURS // len(values)
        colours = [f"hsl({250 - 10 * int(i)} 75% 50%)" for i in order]
        svg = figures.scatter(points, colours, f"t-SNE of degradation codes coloured by {name}")
        note = f"blue low, red high; {len(values)} pictures"
        found.append({"title": f"Degradation codes by {name}", "note": note, "svg": svg})
    return found
