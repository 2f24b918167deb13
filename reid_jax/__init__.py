"""Person re-identification in JAX: identity separated from camera and degradation.

    e = reid_jax.load("runs/a")
    features = e(["a.jpg", "b.jpg"])        # f32[2, D], rows of unit length

`import reid_jax` itself imports neither jax nor anything else of weight.
"""

import importlib

__version__ = "0.2.0"
_OFFERED = {"load": "embedder", "Embedder": "embedder", "Gallery": "gallery"}  # name: module of serve


def __getattr__(name):
    if name not in _OFFERED:
        raise AttributeError(f"module 'reid_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"reid_jax.serve.{_OFFERED[name]}"), name)


def __dir__():
    return sorted([*globals(), *_OFFERED])
