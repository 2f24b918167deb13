"""What a run keeps for pictures: camera features, where the network looks, tracklets' frames, studies."""

import collections
import os

import jax
import numpy as np
from PIL import Image

from reid_jax.data import clips, decode, images
from reid_jax.data.synthetic import bodies
from reid_jax.errors import ConfigError
from reid_jax.eval import pointing as measures
from reid_jax.eval import store
from reid_jax.models import cells
from reid_jax.train import embedding, evaluate

CLIPS = 4  # tracklets whose heat maps are shown
MANY = 64  # tracklets that mean maps and `pointing` are taken over
FRAMES = 4  # of a tracklet in a retrieval strip


def save(config, workdir, method, state, devices, dataset):
    """Writes WORKDIR/eval/camera.npz and look.npz, as far as the method offers what they hold.

    On tracklets frames.npz too; nothing where there is nobody to test on. state: as the devices's compiled
    step returns it.
    """
    folder = os.path.join(workdir, "eval")
    query, gallery = evaluate.split_records(config, dataset)
    if not query:
        return
    if config.data.frames:
        store.save_arrays(os.path.join(folder, "frames.npz"), frames([*query, *gallery], dataset.root))
    if not (method.camera_net or (method.look is not None and config.data.frames)):
        return
    state = devices.local_state(state)
    if method.camera_net:
        embedder = embedding.Embedder(method, method.camera_net, devices)
        splits = {"query": query, "gallery": gallery}
        features = embedding.feature_set(config, embedder, state, splits, dataset.root)
        store.save(os.path.join(folder, "camera.npz"), features)
    if method.look is not None and config.data.frames:
        store.save_arrays(os.path.join(folder, "look.npz"), look(config, method, state, devices, query))


def frames(records, root):
    """{path: str[N], frames: str[N,FRAMES]}: the first frame of each of FRAMES equal parts of tracklets."""
    parts = [[r.frames[i] for i in clips.rrs_test(len(r), FRAMES)] for r in records]
    relative = [[os.path.relpath(p, root) for p in row] for row in parts]
    return {"path": np.array([os.path.relpath(r.path, root) for r in records]), "frames": np.array(relative)}


def save_study(folder, step, arrays):
    """Writes FOLDER/study.npz, and FOLDER/grids/TITLE_STEP.png for arrays grid/TITLE u8[R,C,H,W,3]."""
    grids = {name.removeprefix("grid/"): a for name, a in arrays.items() if name.startswith("grid/")}
    os.makedirs(os.path.join(folder, "grids") if grids else folder, exist_ok=True)
    store.save_arrays(os.path.join(folder, "study.npz"), arrays)
    for title, grid in grids.items():
        rows, columns, height, width, _ = grid.shape
        sheet = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
        Image.fromarray(sheet).save(os.path.join(folder, "grids", f"{title}_{step:06d}.png"))


def look(config, method, state, devices, query):
    """{name: array} of CLIPS query tracklets, spread over the list.

    image u8[N,T,H,W,3]; pid i64[N]; camid i32[N]; map/TITLE f32[N,T,h,w], in [0,1] over the frames of a
    tracklet; weight f32[N,T]; rows/TITLE f[h] and columns/TITLE f[w], where cells are centred in the picture.
    """
    some = spread_over(query, MANY)
    image, maps = heat_maps(config, method, state, devices, some)
    shown = spread_over(range(len(some)), CLIPS)
    arrays = {"image": image[shown], "pid": np.array([some[i].pid for i in shown], np.int64)}
    arrays["camid"] = np.array([some[i].camid for i in shown], np.int32)
    for name, values in maps.items():
        of_clips = values if name.startswith(("rows/", "columns/")) else values[shown]
        arrays[name] = unit_range(of_clips) if name.startswith("map/") else of_clips
    return arrays


def spread_over(items, count):
    """At most `count` items of a list, evenly spread over it."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))]


def heat_maps(config, method, state, devices, records):
    """(clips u8[N,T,H,W,3], {name: array} of Method.look as `look` has them, in the network's own units).

    Of maps that method.look_deviation names it is, at each cell, the squared distance of its feature from the
    mean over all these clips and frames of the features there.
    """
    image = np.stack([read_clip(r, config.data) for r in records])
    compiled = devices.compile_embed(lambda state, image: method.look(state, image))

    def looked(clip):
        return compiled(state, np.repeat(clip[None], len(devices.local), 0))

    deviating = [f"map/{title}" for title in method.look_deviation]
    means = mean_features(map(looked, image), deviating) if deviating else {}
    parts = [deviations(looked(clip), means) for clip in image]
    maps = {n: np.stack([part[n] for part in parts]) for n in parts[0]}
    read = cells.windows(method.look, state, jax.ShapeDtypeStruct(image[:1].shape, image.dtype))
    for name in [n for n in maps if n.startswith("map/")]:
        title = name.removeprefix("map/")
        centres = cells.centres(read, image.shape[2:4], maps[name].shape[2:])
        maps[f"rows/{title}"], maps[f"columns/{title}"] = (np.float32(c) for c in centres)
    return image, maps


def mean_features(looked, names):
    """{name: f64[h,w,C]}: means over clips and frames of what `Method.look` gives of each clip."""
    total, count = collections.Counter(), 0
    for out in looked:
        count += 1
        for name in set(names) & set(out):
            total[name] = total[name] + np.asarray(out[name][0], np.float64).mean(0)
    return {name: value / count for name, value in total.items()}


def deviations(looked, means):
    """{name: f32[T,...]} of one clip's `Method.look`, squared distances where there is a mean."""
    first = {name: np.asarray(value, np.float32)[0] for name, value in looked.items()}
    return first | {name: np.square(first[name] - mean).sum(-1) for name, mean in means.items()}


def pointing(config, method, state, devices, dataset):
    """{"pointing/TITLE": correlation of the method's maps with the bodies} of a drawn set of tracklets.

    Over the pixels of all frames of a clip, the mean over MANY query tracklets. {} for others. state: as the
    devices' compiled step returns it.
    """
    query, _ = evaluate.split_records(config, dataset)
    if method.look is None or not config.data.frames or not query:
        return {}
    try:
        known = bodies.Bodies(dataset.root)
    except ConfigError:
        return {}
    records = spread_over(query, MANY)
    image, maps = heat_maps(config, method, devices.local_state(state), devices, records)
    shown = np.stack([silhouettes(known, r, config.data) for r in records])
    figures = {}
    for title in (n.removeprefix("map/") for n in maps if n.startswith("map/")):
        places = maps[f"rows/{title}"], maps[f"columns/{title}"]
        heat = measures.at_pixels(maps[f"map/{title}"], image.shape[2:4], *places)
        figures[f"pointing/{title}"] = float(measures.correlation(heat, shown).mean())
    return figures


def silhouettes(known, record, data):
    """f32[T,H,W] of the frames that `read_clip` reads."""
    paths = [record.frames[i] for i in clips.rrs_test(len(record), data.frames)]
    return known.silhouettes(paths, data.height, data.width)


def read_clip(record, data):
    """u8[T,H,W,3]: the first frame of each of T equal parts of a tracklet."""
    index = clips.rrs_test(len(record), data.frames)
    decoder = decode.find("pil", decode.Pixels.of(data))
    return np.stack([images.read(record.frames[i], data.height, data.width, decoder) for i in index])


def unit_range(maps):
    """Maps f32[N,T,h,w] stretched to [0,1], one scale for the frames of a tracklet."""
    low, high = maps.min((1, 2, 3), keepdims=True), maps.max((1, 2, 3), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)
