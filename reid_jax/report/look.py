"""Where the network looks: heat maps over the frames of a few tracklets, and the frames' weights."""

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from reid_jax.eval import pointing
from reid_jax.report.run import read_arrays

HEIGHT = 160  # pixels of a frame on the page


def read(path):
    """{name: array} of eval/look.npz, None when there is none or it cannot be read."""
    return read_arrays(path, fits)


def fits(stored):
    """Whether the arrays are those that train.pictures.look makes."""
    image = stored["image"]
    clips, types = image.shape[:2], {"image": "u", "pid": "i", "camid": "i"}
    shapes = {"image": (*clips, *image.shape[2:4], 3), "pid": clips[:1], "camid": clips[:1], "weight": clips}
    for name, array in stored.items():
        shape = shapes.get(name)
        if name.startswith("map/") and array.ndim == 4:
            shape = (*clips, *array.shape[2:])
        if name.startswith(("rows/", "columns/")):
            kind, _, title = name.partition("/")
            shape = stored[f"map/{title}"].shape[2:3] if kind == "rows" else stored[f"map/{title}"].shape[3:]
        if array.shape != shape or not array.size or array.dtype.kind != types.get(name, "f"):
            return False
    return stored["pid"].size > 0 and stored["camid"].min() >= 0


def build(path, titles):
    """[{"pid", "camid", "rows": [{"title", "frames": [data URI]}], "weights": [percent]}] or None.

    titles: {map: title} in the order of the rows; other maps follow.
    """
    stored = read(path)
    if not stored or not {"image", "pid", "camid"} <= set(stored) or stored["image"].ndim != 5:
        return None
    maps = {n.removeprefix("map/"): a for n, a in stored.items() if n.startswith("map/")}
    maps = {n: maps[n] for n in sorted(maps, key=[*titles, *maps].index)}
    items = []
    for i, frames in enumerate(stored["image"]):
        rows = [{"title": "frames", "frames": [uri(f) for f in frames]}]
        for name, values in maps.items():
            places = stored.get(f"rows/{name}"), stored.get(f"columns/{name}")
            shown = [uri(overlay(f, m, *places)) for f, m in zip(frames, values[i], strict=True)]
            rows.append({"title": titles.get(name, name), "frames": shown})
        weights = [round(100 * float(w), 1) for w in stored["weight"][i]] if "weight" in stored else []
        item = {"pid": int(stored["pid"][i]), "camid": int(stored["camid"][i])}
        items.append({**item, "rows": rows, "weights": weights, "most": max(weights, default=0)})
    return items


def overlay(frame, heat, rows=None, columns=None):
    """u8[H,W,3]: a map f32[h,w] in [0,1], linear between cells, in jet colours over half of the frame.

    rows f[h], columns f[w]: where the cells are centred, in pixels of the frame; evenly spread by default.
    """
    large = pointing.at_pixels(heat, frame.shape[:2], rows, columns)
    colours = matplotlib.colormaps["jet"](np.clip(large, 0, 1))[..., :3] * 255
    return (0.5 * frame + 0.5 * colours).astype(np.uint8)


def uri(frame):
    """A frame as a data URI, HEIGHT pixels high."""
    width = max(1, round(HEIGHT * frame.shape[1] / frame.shape[0]))
    memory = io.BytesIO()
    picture = Image.fromarray(frame).resize((width, HEIGHT), Image.Resampling.BICUBIC)
    picture.save(memory, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
