"""What a method measured of itself: figures, and arrays that say by their names how to draw them.

The names and what titles.json says of them: reid_jax/train/titles.py. Whatever is damaged is left out.
"""

import base64
import io
import os
import re

import numpy as np
from PIL import Image

from reid_jax.report import figures, look
from reid_jax.report.run import numbers, of_stage, read_arrays

_CELL, _LARGE = 96, 192  # pixels, height of a grid's cell: of earlier grids and of the last
_COLOURS = 24  # steps of the colours of a t-SNE


def build(run):
    """What the page shows of the last stage with a study, None when there is none."""
    lines = [line for line in run.studies if numbers(line)]
    if not lines:
        return None
    stage = str(lines[-1].get("stage", ""))
    lines, words = of_stage(lines, stage), run.titles["study"]
    folder = os.path.join(run.workdir, "eval", stage)
    arrays = read_arrays(os.path.join(folder, "study.npz"), lambda arrays: True) or {}
    title = text(words, "title", "What stage {stage} measured").replace("{stage}", stage)
    return {
        "title": title,
        "link": text(words, "link", "Study"),
        "lead": text(words, "lead"),
        "rows": rows(lines, words),
        "charts": charts(lines, words) if len(lines) > 1 else [],
        "grids": grids(arrays, words, os.path.join(folder, "grids"), lines[-1]["step"]),
        "maps": maps(arrays, words),
        "plots": bands(arrays, words) + histograms(arrays, words),
        "scatters": scatters(arrays, words),
    }


# ---- what titles.json says
def text(words, key, default=""):
    """A text of a description."""
    return words[key] if isinstance(words.get(key), str) else default


def texts(words, key):
    """{name: text} of a description."""
    table = words.get(key)
    return {k: v for k, v in table.items() if isinstance(v, str)} if isinstance(table, dict) else {}


def words_of(words, array):
    """The description of an array or a group of them, {} when there is none."""
    arrays = words.get("arrays")
    described = arrays.get(array) if isinstance(arrays, dict) else None
    return described if isinstance(described, dict) else {}


def figure_titles(lines, words):
    """{figure: (title, meaning)} of all figures of the last line, those that are described first."""
    described = words.get("figures") if isinstance(words.get("figures"), dict) else {}
    last = numbers(lines[-1])
    names = [n for n in described if n in last] + [n for n in last if n not in described]
    known = {n: t for n, t in described.items() if isinstance(t, list) and len(t) == 2}
    return {n: tuple(map(str, known.get(n, (n, "")))) for n in names}


# ---- figures
def rows(lines, words):
    """The table of the first and the last figures."""
    first, last = numbers(lines[0]), numbers(lines[-1])
    shown = {n: f"{v:.3g}" for n, v in first.items()}
    return [
        {"title": title, "meaning": meaning, "last": f"{last[n]:.3g}", "first": shown.get(n, "–")}
        for n, (title, meaning) in figure_titles(lines, words).items()
    ]


def charts(lines, words):
    """Line charts of the figures over steps; what is a level in another chart has none of its own."""
    levels, shown = texts(words, "levels"), []
    for name, (title, _) in figure_titles(lines, words).items():
        points = [(line["step"], numbers(line)[name]) for line in lines if name in numbers(line)]
        if name in levels.values() or len(points) < 2:
            continue
        level = numbers(lines[-1]).get(levels.get(name))
        line = figures.Line(*zip(*points, strict=True))
        svg = figures.chart([line], f"{title} against step", xlabel="step", level=level, markers=True)
        shown.append({"title": title, "last": f"{points[-1][1]:.3g}", "svg": svg})
    return shown


# ---- pictures
def group(arrays, prefix):
    """{rest of the name: array} of the arrays PREFIX/..., in order."""
    return {n.removeprefix(f"{prefix}/"): a for n, a in arrays.items() if n.startswith(f"{prefix}/")}


def subgroups(arrays, prefix):
    """{NAME: {LABEL: array}} of the arrays PREFIX/NAME/LABEL."""
    groups = {}
    for name, array in group(arrays, prefix).items():
        title, _, label = name.partition("/")
        groups.setdefault(title, {})[label] = array
    return groups


def finite(array, ndim):
    """Whether an array is of so many axes, not empty, and of finite floating point numbers."""
    return array.ndim == ndim and array.size > 0 and array.dtype.kind == "f" and np.isfinite(array).all()


def is_pictures(array):
    """Whether an array is u8[.,.,H,W,3]."""
    return array.ndim == 5 and array.dtype == np.uint8 and array.shape[4] == 3 and array.size > 0


def grids(arrays, words, folder, step):
    """[{"title", "lead", "alt", "alt_earlier", "step", "src", "earlier": [{"step", "src"}]}] of the grids."""
    shown = []
    for name, grid in group(arrays, "grid").items():
        if not is_pictures(grid):
            continue
        said = words_of(words, f"grid/{name}")
        entry = {k: text(said, k) for k in ("lead", "alt", "alt_earlier")}
        entry |= {"title": text(said, "title", name), "step": step}
        entry["src"] = sheet(side_by_side(grid), len(grid), _LARGE)
        shown.append(entry | {"earlier": earlier(folder, name, grid, step)})
    return shown


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


def earlier(folder, name, grid, last):
    """[{"step", "src"}]: the first and the middle one of the grids of FOLDER, NAME_STEP.png, before `last`.

    Pictures of another size than `grid` and those that cannot be read are left out.
    """
    files = os.listdir(folder) if os.path.isdir(folder) else []
    matches = (re.fullmatch(re.escape(name) + r"_(\d+)\.png", file) for file in files)
    before = sorted(step for step in (int(m[1]) for m in matches if m) if step < last)
    chosen = sorted({*before[:1], *before[len(before) // 2 :][:1]})
    size, shown = side_by_side(grid).size, []
    for step in chosen:
        try:
            with Image.open(os.path.join(folder, f"{name}_{step:06d}.png")) as image:
                if image.size == size:
                    shown.append({"step": step, "src": sheet(image.convert("RGB"), len(grid), _CELL)})
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return shown


def maps(arrays, words):
    """{"title", "lead", "columns", "people": [[{"title", "frames": [data URI]}]]} of the heat maps, or None.

    The colours of a row have one scale, from 0 to 1 of the maps that the description calls shares.
    """
    heats = group(arrays, "map")
    image = heats.pop("image", None)
    if image is None or not is_pictures(image):
        return None
    said = words_of(words, "map")
    titles = texts(said, "rows")
    heats = {n: h for n, h in heats.items() if finite(h, 4) and h.shape[:2] == image.shape[:2]}
    names = [*(n for n in titles if n in heats), *(n for n in heats if n not in titles)]
    columns, shares = said.get("columns"), said.get("shares")
    shares = shares if isinstance(shares, list | tuple) else ()
    return {
        "title": text(said, "title", "Maps"),
        "lead": text(said, "lead"),
        "columns": list(map(str, columns)) if isinstance(columns, list) else [],
        "people": [
            [{"title": "picture", "frames": [look.uri(frame) for frame in frames]}]
            + [
                {
                    "title": titles.get(n, n),
                    "frames": overlaid(frames, heats[n][i], *centres(arrays, n), whole=n in shares),
                }
                for n in names
            ]
            for i, frames in enumerate(image)
        ],
    }


def centres(arrays, name):
    """(rows f[h], columns f[w]) of the cells of map/NAME, (None, None) where they are not there or not so."""
    places = arrays.get(f"rows/{name}"), arrays.get(f"columns/{name}")
    right = all(
        p is not None and finite(p, 1) and len(p) == n and (np.diff(p) > 0).all()
        for p, n in zip(places, arrays[f"map/{name}"].shape[2:], strict=True)
    )
    return places if right else (None, None)


def overlaid(frames, heat, rows=None, columns=None, whole=False):
    """Data URIs of frames u8[K,H,W,3] under heat maps f[K,h,w] of one scale; rows, columns: `centres`.

    whole: the scale is from 0 to 1, otherwise from the least to the most.
    """
    heat = heat if whole else (heat - heat.min()) / max(np.ptp(heat), 1e-12)
    pairs = zip(frames, heat, strict=True)
    return [look.uri(look.overlay(frame, m, rows, columns)) for frame, m in pairs]


# ---- plots
def bands(arrays, words):
    """Charts of the median of y f[L,N] against x f[L], and its outer tenths."""
    shown = []
    for name, axes in subgroups(arrays, "band").items():
        x, y = axes.get("x"), axes.get("y")
        if x is None or y is None or not (finite(x, 1) and finite(y, 2)) or y.shape[:1] != x.shape:
            continue
        low, middle, high = np.quantile(y, (0.1, 0.5, 0.9), axis=1)
        lines = [
            figures.Line(x, v, 0, strong, not strong) for v, strong in ((low, 0), (middle, 1), (high, 0))
        ]
        shown.append(plot(words_of(words, f"band/{name}"), name, lines))
    return shown


def histograms(arrays, words):
    """Charts of shares of values, a curve for each label."""
    shown = []
    for name, values in subgroups(arrays, "hist").items():
        values = {label: v for label, v in values.items() if finite(v, 1)}
        if not values:
            continue
        edges = np.histogram_bin_edges(np.concatenate([*values.values()]), 24)
        centres = (edges[1:] + edges[:-1]) / 2
        shares = [np.histogram(v, edges)[0] / len(v) for v in values.values()]
        lines = [figures.Line(centres, y, i) for i, y in enumerate(shares)]
        shown.append(plot(words_of(words, f"hist/{name}"), name, lines) | {"legend": list(enumerate(values))})
    return shown


def plot(said, name, lines):
    """{"title", "svg", "legend": []} of curves."""
    title = text(said, "title", name)
    return {"title": title, "svg": figures.chart(lines, title, xlabel=text(said, "xlabel")), "legend": []}


def scatters(arrays, words):
    """[{"title", "note", "svg"}]: t-SNE of points, coloured by each of the values that belong to them."""
    shown = []
    for name, values in subgroups(arrays, "scatter").items():
        points = values.pop("points", None)
        if points is None or not finite(points, 2) or len(points) < 8:
            continue
        values = {label: v for label, v in values.items() if finite(v, 1) and len(v) == len(points)}
        if not values or np.ptp(points, axis=0).max() < 1e-6:  # all equal: t-SNE would crash
            continue
        positions, said = figures.embed_2d(points), words_of(words, f"scatter/{name}")
        labels, title = texts(said, "labels"), text(said, "title", f"{name} by {{}}")
        for label, shade in values.items():
            heading = title.replace("{}", labels.get(label, label))
            svg = figures.scatter(positions, shades(shade), f"t-SNE: {heading}")
            note = f"blue low, red high; {len(shade)} pictures"
            shown.append({"title": heading, "note": note, "svg": svg})
    return shown


def shades(values):
    """A colour for each value by its rank, from blue to red."""
    order = np.argsort(np.argsort(values)) * _COLOURS // len(values)
    return [f"hsl({250 - 10 * int(i)} 75% 50%)" for i in order]
