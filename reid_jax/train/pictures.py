"""What a run keeps for pictures: camera features, where the network looks, tracklets' frames, studies."""

import os

import numpy as np
from PIL import Image

from reid_jax.data import clips, decode, images
from reid_jax.eval import store
from reid_jax.train import evaluate

CLIPS = 4  # tracklets whose heat maps are shown
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
        embedder = evaluate.Embedder(method, method.camera_net, devices)
        splits = {"query": query, "gallery": gallery}
        features = evaluate.feature_set(config, embedder, state, splits, dataset.root)
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

    image u8[N,T,H,W,3]; pid i64[N]; camid i32[N]; map/TITLE f32[N,T,h,w] in [0,1] per frame; weight f32[N,T].
    """
    chosen = [query[i] for i in np.unique(np.linspace(0, len(query) - 1, CLIPS).astype(int))]
    image = np.stack([read_clip(r, config.data) for r in chosen])
    found = devices.compile_embed(lambda state, image: method.look(state, image))
    parts = [found(state, np.repeat(clip[None], len(devices.local), 0)) for clip in image]
    arrays = {"image": image, "pid": np.array([r.pid for r in chosen], np.int64)}
    arrays["camid"] = np.array([r.camid for r in chosen], np.int32)
    for name in parts[0]:
        values = np.stack([np.asarray(p[name], np.float32)[0] for p in parts])
        arrays[name] = unit_range(values) if name.startswith("map/") else values
    return arrays


def read_clip(record, data):
    """u8[T,H,W,3]: the first frame of each of T equal parts of a tracklet."""
    index = clips.rrs_test(len(record), data.frames)
    decoder = decode.find("pil", decode.Pixels.of(data))
    return np.stack([images.read(record.frames[i], data.height, data.width, decoder) for i in index])


def unit_range(maps):
    """Maps f32[N,T,h,w] stretched to [0,1], frame by frame."""
    low, high = maps.min((2, 3), keepdims=True), maps.max((2, 3), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)
