"""Charts as inline SVG whose colours are the page's CSS variables, so that they follow its theme."""

import io
import re
import zlib
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.figure import Figure

MAX_POINTS = 1000  # of a curve
SERIES = 8  # colours --s0 .. --s7
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "report",
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "path.simplify_threshold": 0.5,
}
# Colours that matplotlib is told, and what the page shows in their place.
_INK, _GRID, _MUTED = "#000001", "#000002", "#000003"
_VARIABLES = {_INK: "var(--ink2)", _GRID: "var(--grid)", _MUTED: "var(--ink3)"}
_VARIABLES |= {f"#0000{0x10 + i:02x}": f"var(--s{i})" for i in range(SERIES)}
_STYLE |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK)
_STYLE |= {"axes.edgecolor": _MUTED, "xtick.color": _MUTED, "grid.color": _GRID}
_KEPT_PROPERTIES = (
    "fill", "fill-opacity", "opacity", "stroke", "stroke-dasharray", "stroke-opacity", "stroke-width",
)  # fmt: skip


class Line(NamedTuple):
    """One curve."""

    x: Any
    y: Any
    series: int = 0  # colour
    strong: bool = True
    dashed: bool = False
    raw: Any = None  # y before smoothing, drawn faintly


def colour(series):
    """The stand-in for page colour number `series`."""
    return f"#0000{0x10 + series % SERIES:02x}"


def smooth(y, share=0.04):
    """Centred moving mean over `share` of the points; the window is cut at both ends. f64[N] -> f64[N]."""
    y = np.asarray(y, float)
    window = int(len(y) * share) | 1
    if window < 3:
        return y
    ones = np.ones(window)
    return np.convolve(y, ones, "same") / np.convolve(np.ones(len(y)), ones, "same")


def curve(x, y, series=0):
    """A Line of a noisy measurement: smoothed, thinned out to MAX_POINTS, the measurement behind it."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    smoothed = smooth(y)
    return Line(x[keep], smoothed[keep], series, raw=y[keep] if (smoothed != y).any() else None)


def chart(lines, label, *, size=(4.4, 2.2), level=None, xlabel="", markers=False):
    """Line chart. label: what it shows, for screen readers; level: a y value marked by a dotted line."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        if level is not None:
            axes.axhline(level, color=_MUTED, lw=1.2, ls=(0, (1, 2)))
        for line in lines:
            _draw(axes, line, markers)
        _limit(axes, lines, level)
        _ticks(axes, xlabel)
        return _svg(figure, label)


def _draw(axes, line, markers):
    if line.raw is not None:
        axes.plot(line.x, line.raw, color=colour(line.series), lw=0.8, alpha=0.28)
    axes.plot(
        line.x,
        line.y,
        color=colour(line.series),
        lw=2 if line.strong else 1.2,
        alpha=1 if line.strong else 0.75,
        ls="--" if line.dashed else "-",
        marker="o" if markers or len(line.x) == 1 else "",
        ms=4.5 if line.strong else 3,
        mew=0,
        zorder=3 if line.strong else 2,
    )


def _limit(axes, lines, level):
    """y limits that a few outliers of the raw values do not stretch."""
    values = [np.asarray(line.y, float) for line in lines]
    values += [np.percentile(line.raw, (1, 99)) for line in lines if line.raw is not None]
    values = np.concatenate([*values, [] if level is None else [level]])
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _ticks(axes, xlabel):
    axes.margins(x=0.03)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, min_n_ticks=1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(compact))
    axes.set_xlabel(xlabel)


def compact(value, _=None):
    """A tick label: 12000 -> 12k, 0.0003 -> 3e-4."""
    if value and abs(value) < 1e-3:
        return np.format_float_scientific(value, precision=2, trim="-", exp_digits=1)
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def cmc(lines, label):
    """Cumulative matching characteristic; x is the rank, logarithmic."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.0), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line, False)
        axes.set_xscale("log")
        last = max(max(line.x) for line in lines)
        shown = [r for r in (1, 2, 5, 10, 20, 50, 100) if r <= last]
        axes.set_xticks(shown, [str(r) for r in shown])
        axes.set_xticks([], minor=True)
        low = min(float(min(line.y)) for line in lines)
        axes.set_ylim(max(0, 10 * np.floor((low - 4) / 10)), 101)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel("rank")
        axes.set_ylabel("queries with a match, %")
        return _svg(figure, label)


def roc(lines, label):
    """Receiver operating characteristic in percent; x, the false match rate, is logarithmic."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.0), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line, False)
        axes.set_xscale("log")
        first = min(float(np.min(line.x[line.x > 0])) for line in lines)
        axes.set_xlim(max(first, 1e-5), 100)
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(compact))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_ylim(0, 101)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel("pairs of two persons at or above the threshold, %")
        axes.set_ylabel("pairs of one person, %")
        return _svg(figure, label)


def distributions(edges, same, other, label, level=None):
    """Shares of pairs f64[bins] of one person and of two over the similarity; level: a marked similarity."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        for shares, series in ((other, 1), (same, 0)):
            axes.stairs(100 * shares, edges, fill=True, color=colour(series), alpha=0.22, lw=0)
            axes.stairs(100 * shares, edges, color=colour(series), lw=1.6)
        if level is not None:
            axes.axvline(level, color=_MUTED, lw=1.2, ls=(0, (1, 2)))
        axes.set_ylim(0, None)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(compact))
        axes.set_xlabel("similarity")
        axes.set_ylabel("pairs of either sort, %")
        return _svg(figure, label)


def embed_2d(features, *, seed=0):
    """t-SNE of f32[N,D] -> f32[N,2]; rows are L2-normalised first, so that distance follows cosine."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, np.float32)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(features) - 1) / 3)
    with threadpool_limits(1):  # t-SNE's threads wait actively: on busy cores they take many times longer
        if min(features.shape) > 50:
            features = PCA(50, random_state=seed).fit_transform(features)
        tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
        return tsne.fit_transform(features)


def scatter(points, colours, label, *, size=3.6):
    """Dots at f32[N,2]; colours: CSS colour per dot, None for the grey background."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(size, size))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        names = sorted({c for c in colours if c})
        stand_in = {c: f"#01{i >> 8:02x}{i & 255:02x}" for i, c in enumerate(names)}
        for c in (None, *stand_in):
            rows = [i for i, x in enumerate(colours) if x == c]
            color = stand_in[c] if c else _MUTED
            axes.plot(*points[rows].T, "o", color=color, ms=4 if c else 2.5, mew=0, alpha=0.85 if c else 0.3)
        return _svg(figure, label, {v: k for k, v in stand_in.items()})


def _svg(figure, label, colours=None):
    """A figure as an <svg> element for the page: no XML head, own ids, colours by CSS."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())
    _clean(root, f"f{zlib.crc32(out.getvalue().encode()):x}-", _VARIABLES | (colours or {}))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(root, prefix, colours):
    """Drops metadata and style elements, namespaces and unused properties; prefixes the ids in use."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(" ".join(e.attrib.values()) for e in root.iter())))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag not in ("text", "tspan"):
            element.text = None
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            _attribute(element, name.rpartition("}")[2], value, prefix, used, colours)


def _attribute(element, name, value, prefix, used, colours):
    if name == "id":
        if value in used:
            element.set("id", prefix + value)
    elif name == "style":
        style = _style(value, colours, element.tag == "text")
        if style:
            element.set("style", style)
    elif name in ("href", "clip-path"):
        element.set(name, re.sub(r"#(?=[\w-])", f"#{prefix}", value))
    elif name in ("x", "y", "d"):
        element.set(name, _rounded(value))
    elif name != "version" and "rotate(-0" not in value:
        element.set(name, value)


def _rounded(numbers):
    """Coordinates with at most two decimals, on one line."""
    short = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", numbers)
    return " ".join(short.split())


def _style(value, colours, text):
    """Only what changes the look; `font` becomes a size, so that the page's typeface is used."""
    properties = []
    for item in value.split(";"):
        name, _, setting = (x.strip() for x in item.partition(":"))
        size = re.search(r"([\d.]+)px", setting) if name in ("font", "font-size") else None
        if size:
            properties.append(f"font-size:{size[1]}px")
        elif name in _KEPT_PROPERTIES or (text and name == "text-anchor"):
            properties.append(f"{name}:{colours.get(setting, setting)}")
    return ";".join(properties)
