"""Imports point down: losses, models, data, eval < methods < train, report < serve < benchmarks, commands."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "reid_jax"
LOW = {"losses", "models", "data", "eval"}
BASE = {"config", "errors", "fields", "places"}
MAY = {
    **{layer: BASE | {layer} for layer in LOW},
    "methods": BASE | LOW | {"methods"},
    "train": BASE | LOW | {"methods", "train"},
    "parity": BASE | LOW | {"methods", "parity"},
    "serve": BASE | LOW | {"methods", "train", "serve"},
    "plan": BASE | LOW | {"methods", "train", "plan"},
    "report": BASE | LOW | {"report"},
    "benchmarks": BASE | LOW | {"methods", "train", "serve", "benchmarks", "cli"},
    "commands": BASE
    | LOW
    | {"train", "serve", "plan", "cli", "dry", "hardware", "tables"},  # none imports another
    "dg": BASE | LOW | {"commands", "train", "dg", "cli", "dry", "hardware", "tables"},  # joins commands
    "main": BASE | LOW | {"methods", "train", "report", "cli", "dry", "hardware"},
    "zoo": BASE | {"methods", "commands", "report", "serve", "cli", "hardware", "tables"},
    "dry": BASE | LOW | {"methods", "train"},
    **dict.fromkeys(("compare", "convert", "cross", "embed", "evaluate", "export"), {"commands", "cli"}),
    "__main__": {"cli", "config", "errors", "fields"},
    "cli": {"errors", "models", "hardware", "places", "tables"},
    "hardware": {"errors"},
    "tables": {"errors"},
    "config": {"errors", "fields", "models"},  # whose fields it collects
    "fields": {"errors"},
    "presets": {"methods", "fields"},
    "places": {"errors"},
    "errors": set(),
}
PARSE = {"__main__.py", "drift.py"}  # files inside the layers that are commands


def imports(path):
    """Layers of reid_jax that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "reid_jax" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1]


def test_imports_point_down():
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        layer = relative.parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        allowed = MAY[layer] | ({"cli", "dry"} if path.name in PARSE else set())
        for target in imports(path):
            assert target in allowed, f"{relative} imports reid_jax.{target}"
            seen += 1
    assert seen > 30


def test_steps_need_neither_the_input_pipeline_nor_heavy_packages():
    """Models, losses, methods and the step benchmark import where only jax, flax and optax are."""
    blocked = (
        "grain",
        "tensorflow_datasets",
        "ml_collections",
        "orbax",
        "torch",
        "tensorflow",
        "sklearn",
        "tqdm",
    )
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from reid_jax.methods import efl, baseline\n"
        "from reid_jax.models import heads, weights, club\n"
        "from reid_jax.train import devices\n"
        "import reid_jax.benchmarks.step\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_core_imports_no_torch_or_tensorflow():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:  # top level only
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", "") or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom) and "torch_peer" not in path.name:
                assert not any(n.split(".")[0] in ("torch", "tensorflow") for n in names), path
