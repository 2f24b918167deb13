"""A model in use: `e(pictures)` beside the compiled function alone, and its ONNX file beside PyTorch.

Weights are random. Ratios above 1 mean that ours is faster.
"""

import contextlib
import os

import jax
import numpy as np
from PIL import Image

from reid_jax import methods
from reid_jax.fields import namespace
from reid_jax.serve import nets
from reid_jax.serve.embedder import Embedder
from reid_jax.train import stages

INFO = {"num_pids": 100, "num_cams": 6, "num_images": 0, "domains": []}


def net_of(backbone, height, width):
    """nets.Net of a baseline with random weights."""
    config = methods.defaults("baseline")
    config["model"]["backbone"] = backbone
    config["data"] |= {"height": height, "width": width}
    if backbone.startswith(("vit", "deit")):
        config["model"]["head"] = "token"
    _, method = stages.build(namespace(config), "train", methods.Info(100, 6))
    shapes, rng = nets.flat(stages.state_shapes(method))[0], np.random.default_rng(0)
    leaves = lambda paths: {path: drawn(rng, path, shapes[path].shape) for path in paths}  # noqa: E731
    return nets.Net(nets.Origin(config, "train", "auto", INFO, 0), leaves)


def drawn(rng, path, shape):
    """f32 of a leaf: kernels that keep the size of maps, norms that do nothing; compiles nothing."""
    if path.endswith("kernel"):
        return rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
    return np.full(shape, path.endswith(("scale", "var")), np.float32)


def measure(args, folder, best):
    """{figure: value}; best: (rounds, *routes) -> the least seconds of each."""
    net = net_of(args.backbone, *args.picture)
    e = Embedder(net, batch=args.batch)
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (args.pictures, *net.size, 3), np.uint8)
    paths = [os.path.join(folder, f"{i}.jpg") for i in range(args.pictures)]
    for path, pixels in zip(paths, arrays, strict=True):
        Image.fromarray(pixels).resize(net.size[::-1]).save(path, quality=90)
    parts = [arrays[i : i + e.chunk] for i in range(0, args.pictures, e.chunk)]
    on_device = [jax.device_put(part, net.device) for part in parts]

    def bare():
        return [np.asarray(net(part)) for part in on_device]

    def decoding():
        return list(e._pool().map(e.reader, paths))

    e(arrays)  # compiles for the numbers there are
    files, ours, alone, decode = best(args.rounds, lambda: e(paths), lambda: e(arrays), bare, decoding)
    figures = {
        "embed_arrays": alone / ours,
        "embed_files": max(alone, decode) / files,
        "embed_second": args.pictures / ours,
        "decode_second": args.pictures / decode,
    }
    return figures | of_onnx(net, args, folder, best)


def of_onnx(net, args, folder, best):
    """The ONNX file beside our own CPU form and, where there is one, PyTorch; {} without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    from reid_jax.serve import export

    export.write_onnx(folder, net)
    place = os.path.join(folder, "model.onnx")
    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (args.batch, *net.size, 3), np.uint8)
    routes = [lambda: session.run(None, {"image": images}), lambda: np.asarray(net(images))]
    with contextlib.ExitStack() as stack:
        if args.torch_python and args.backbone == "resnet50":
            from reid_jax.benchmarks.step import Peer

            sizes = dict(batch=args.batch, height=net.size[0], width=net.size[1], num_pids=100, num_cams=6)
            for last in (False, True):
                options = dict(bf16=False, channels_last=last, device="cpu")
                peer = Peer(args.torch_python, step="extract", **sizes, **options)
                stack.callback(peer.close)
                routes.append(peer.run)
        onnx, ours, *torch = best(args.rounds, *routes)
    figures = {"onnx_jax": ours / onnx, "onnx_second": args.batch / onnx}
    return figures | dict(zip(("onnx_torch_nchw", "onnx_torch_last"), np.array(torch) / onnx, strict=False))
