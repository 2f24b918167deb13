"""`python -m reid_jax.serve.check FOLDER FILE`: a file of an export, loaded anew, beside the run's features.

Prints JSON: the largest difference and the least cosine over batches of 1, 3 and 16 of check.npz. Each format
is read by what its users have: StableHLO by jax alone, ONNX by ONNX Runtime.
"""

import json
import os
import sys

import numpy as np

BATCHES = (1, 3, 16)
DIFFERENCE, COSINE = 1e-5, 1 - 1e-6  # what an export may be away from the run


def archive(folder, path):
    """Features by reid_jax.load in JAX: u8[n,H,W,3] -> f32[n,D]."""
    from reid_jax.serve import embedder

    return embedder.load(folder, backend="jax", device="cpu")


def stablehlo(folder, path):
    """Features by a StableHLO file, by jax alone."""
    from jax import export

    with open(path, "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    return lambda images: np.asarray(exported.call(images))


def onnx(folder, path):
    """Features by an ONNX file; normalised maps [n,3,H,W] where it wants them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    if given.type != "tensor(float)":
        return lambda images: session.run(None, {given.name: images})[0]
    with open(os.path.join(folder, "card.json"), encoding="utf-8") as file:
        told = json.load(file)["input"]

    def apply(images):
        maps = (images / np.float32(255) - np.float32(told["mean"])) / np.float32(told["std"])
        return session.run(None, {given.name: np.ascontiguousarray(maps.transpose(0, 3, 1, 2))})[0]

    return apply


LOADERS = {".safetensors": archive, ".stablehlo": stablehlo, ".onnx": onnx}


def compare(folder, name):
    """{"difference": largest absolute one, "cosine": least} of a file and check.npz."""
    path = os.path.join(folder, name)
    with np.load(os.path.join(folder, "check.npz")) as stored:
        images, want = stored["image"], stored["feature"]
    function, difference, cosine = LOADERS[os.path.splitext(name)[1]](folder, path), 0.0, 1.0
    for size in BATCHES:
        have, wanted = np.asarray(function(images[:size]), np.float64), want[:size].astype(np.float64)
        if have.shape != wanted.shape or not np.isfinite(have).all():
            return {"difference": float("inf"), "cosine": -1.0}
        norms = np.linalg.norm(have, axis=1) * np.linalg.norm(wanted, axis=1)
        difference = max(difference, float(np.abs(have - wanted).max()))
        cosine = min(cosine, float(((have * wanted).sum(1) / np.maximum(norms, 1e-12)).min()))
    return {"difference": difference, "cosine": cosine}


if __name__ == "__main__":
    print(json.dumps(compare(*sys.argv[1:3])))
