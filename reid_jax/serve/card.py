"""The card of a model: where it comes from, what it takes and gives, how good it is, what it is not for."""

import json
import os
import platform
import sys
from importlib import metadata

import jax
import numpy as np

from reid_jax import __version__
from reid_jax.data.loaders import LAYOUTS
from reid_jax.errors import DataError
from reid_jax.eval import calibrate, store
from reid_jax.train import checkpoint

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "onnx", "onnxruntime")
READ_UNTIL = "six months after jax {jax}: JAX reads StableHLO files for so long"
FIGURES = ("rank1", "rank5", "rank10", "mAP", "mINP")
USES = (
    "Finding a person again in pictures of other cameras, by people who may look at these pictures. A "
    "hit is a suggestion: somebody has to look."
)
LIMITS = (
    "Clothes count most: after a change of clothes the person is another one. Figures and thresholds hold "
    "for pictures like those they were taken on; calibrate on your own."
)
PRIVACY = (
    "Features find people again and are biometric data in many laws (in the EU: GDPR, articles 4 and 9, and "
    "the AI Act's limits on remote biometric identification). Have a lawful basis, keep them as short as "
    "pictures, publish neither."
)


def of_net(net):
    """The card of a nets.Net, a dict as JSON holds it; files and parity are added by the export."""
    config = net.origin.config
    height, width = net.size
    return {
        "format": 1,
        "hash": net.hash,
        "dim": int(net.dim),
        "made_with": versions(),
        "method": config["method"],
        "stage": net.origin.stage,
        "net": net.name,
        "step": net.origin.step,
        "backbone": config["model"]["backbone"],
        "head": config["model"]["head"],
        "parameters": int(sum(np.size(x) for path, x in net.arrays.items() if "/params/" in path)),
        "input": {
            "size": [int(height), int(width)],
            "channels": "RGB",
            "type": "uint8",
            "resize": "Pillow bicubic with antialiasing, turned as EXIF says",
            "mean": list(config["data"]["mean"]),
            "std": list(config["data"]["std"]),
            "camera": "unknown: the mean of the cameras' embeddings"
            if net.method.wants_camera
            else "not used",
        },
        "output": f"float32 [N, {net.dim}], rows of unit length; compare by inner products (cosine)",
        "training": training(config, net.origin.info),
        "figures": figures(net.where),
        "thresholds": thresholds(net.where),
        "uses": USES,
        "limits": LIMITS,
        "privacy": PRIVACY,
    }


def versions():
    """{package: version} of what made the export."""
    packages = {"reid_jax": __version__, "python": platform.python_version(), "jax": jax.__version__}
    for name in PACKAGES:
        if name in sys.modules or name == "jaxlib":
            packages[name] = metadata.version(name)
    return packages


def training(config, info):
    """What the net was trained on."""
    names = config["data"]["name"].split("+")
    terms = {n: LAYOUTS[n].terms for n in names if n in LAYOUTS and getattr(LAYOUTS[n], "terms", "")}
    counts = {"identities": info["num_pids"], "cameras": info["num_cams"], "unlabelled": info["num_images"]}
    return {"sets": names, **counts, "terms": terms}


def figures(workdir):
    """The run's last figures with their protocol, {} before its first evaluation."""
    path = os.path.join(workdir, "eval", "final.json")
    try:
        with open(path, encoding="utf-8") as file:
            final = json.load(file)
        net = final["nets"][final["net"]]
        shown = {k: round(float(net[k]), 2) for k in FIGURES if k in net}
        return {"protocol": final["protocol"], "split": final["split"], "step": final["step"], **shown}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def thresholds(workdir):
    """calibrate.of_features of the run's test features; empty lists where there are none."""
    path = os.path.join(workdir, "eval", "final.npz")
    try:
        return calibrate.of_features(store.load(path))
    except DataError:
        return {"fpir": [], "fmr": []}


def readme(card):
    """README.md of a card."""
    size = "x".join(map(str, card["input"]["size"]))
    lines = [f"# {card['method']}, {card['backbone']}: features of people", "", card["uses"], ""]
    lines += [
        "| | |",
        "|---|---|",
        f"| input | {size} {card['input']['channels']}, {card['input']['resize']} |",
        f"| output | {card['output']} |",
        f"| parameters | {card['parameters']:,} |",
        f"| trained on | {', '.join(card['training']['sets'])}: {card['training']['identities']} people, "
        f"{card['training']['cameras']} cameras |",
        f"| figures | {_shown(card['figures'])} |",
        f"| made with | {_shown(card['made_with'])} |",
        f"| model hash | `{card['hash']}` |",
        "",
    ]
    lines += _rates(card["thresholds"]) + _parity(card) + _use(card)
    lines += ["## Limits", "", card["limits"], "", "## Privacy", "", card["privacy"], ""]
    for name, terms in card["training"]["terms"].items():
        lines += [f"Terms of {name}: {terms}", ""]
    return "\n".join(lines)


def _shown(values):
    return ", ".join(f"{k} {v}" for k, v in values.items()) or "not evaluated"


def _rates(limits):
    if not limits["fpir"] and not limits["fmr"]:
        return []
    lines = ["## Thresholds", "", "| rate of | is | from a similarity of | finds |", "|---|---|---|---|"]
    for key, name in (("fpir", "unknown people who get a hit"), ("fmr", "pairs of two people")):
        lines += [f"| {name} | {r:g} | {s:.4f} | {100 * h:.1f} % |" for r, s, h in limits[key]]
    return [*lines, ""]


def _parity(card):
    rows = [f"| {n} | {p['difference']:.1e} | {p['cosine']:.9f} |" for n, p in card.get("parity", {}).items()]
    head = ["## Compared with the run", "", "| file | most different | least cosine |", "|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def _use(card):
    files, lines = card.get("files", {}), ["## Use", "", "```python", "import reid_jax"]
    lines += ['f = reid_jax.load("THIS FOLDER")(["a.jpg", "b.jpg"])', "```", ""]
    if "model.stablehlo" in files:
        until = READ_UNTIL.format(**card["made_with"])
        lines += [f"`model.stablehlo`: `jax.export.deserialize(open(...).read()).call(images)`; {until}.", ""]
    if "model.onnx" in files:
        lines += [
            "`model.onnx`: `image` uint8 [N,H,W,3] RGB of the input's size -> `feature`. TensorRT:",
            f"`trtexec --onnx=model.onnx {_shapes(card)} --fp16 --saveEngine=model.plan`",
            "",
        ]
    if "model_nchw.onnx" in files:
        lines += [
            "`model_nchw.onnx`: `images` float32 [N,3,H,W], (x / 255 - mean) / std -> `output0`, for "
            "trackers. Their bilinear resize gives others than ours: cosine about 0.9996, at worst 0.998.",
            "",
        ]
    return lines


def _shapes(card):
    height, width = card["input"]["size"]
    return " ".join(
        f"--{k}Shapes=image:{n}x{height}x{width}x3" for k, n in (("min", 1), ("opt", 16), ("max", 64))
    )


def write(folder, card):
    """Writes card.json and README.md."""
    checkpoint.write_json(os.path.join(folder, "card.json"), card)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(readme(card))
