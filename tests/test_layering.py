"""Imports point down: losses, models, data, eval < methods < train, report < serve < benchmarks, commands."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "reid_jax"
LOW = {"losses", "models", "data", "eval"}
BASE = {"config", "errors", "fields", "places"}
SHIMS = ("compare", "convert", "cross", "embed", "evaluate", "export", "zoo")  # other names of commands
MAY = {
    **{layer: BASE | {layer} for layer in LOW},
    "methods": BASE | LOW | {"methods"},
    "train": BASE | LOW | {"methods", "train"},
    "parity": BASE | LOW | {"methods", "parity"},
    "serve": BASE | LOW | {"methods", "train", "serve"},
    "plan": BASE | LOW | {"methods", "train", "plan"},
    "report": BASE | LOW | {"report"},
    "benchmarks": BASE | LOW | {"methods", "train", "serve", "plan", "benchmarks", "cli", "tables"},
    "trained": BASE | LOW | {"tables", "trained"},
    "commands": BASE
    | LOW
    | {"methods", "train", "serve", "plan", "report", "trained", "cli", "dry", "hardware", "tables"},
    "dg": BASE | LOW | {"train", "trained", "dg", "cli", "dry", "hardware", "tables"},
    "main": BASE | LOW | {"methods", "train", "report", "cli", "dry", "hardware"},
    "dry": BASE | LOW | {"methods", "train"},
    **dict.fromkeys(
        ("compare", "convert", "cross", "embed", "evaluate", "export", "zoo"), {"commands", "cli"}
    ),
    "__main__": {"cli", "config", "errors", "fields"},
    "cli": {"errors", "fields", "models", "hardware", "places", "tables"},
    "hardware": {"errors"},
    "tables": {"errors"},
    "config": {"errors", "fields", "models"},  # whose fields it collects
    "fields": {"errors"},
    "presets": {"methods", "fields"},
    "places": {"errors"},
    "errors": set(),
}
PARSE = {"__main__.py", "drift.py", "labels.py"}  # files inside the layers that are of commands


def imports(path):
    """Layers of reid_jax that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        for name in named(node):
            parts = name.split(".")
            if parts[0] == "reid_jax" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1]


def named(node):
    """Dotted names that an import statement asks for; [] of other nodes."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{a.name}" for a in node.names]
    return []


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


def test_no_command_imports_another():
    """Only its other name, reid_jax/NAME.py, imports from commands/, and no command imports such a name."""
    seen = 0
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / f"{name}.py" for name in SHIMS}:
        for layer in imports(path):
            seen += 1
            assert layer not in ("commands", *SHIMS), (
                f"{path.relative_to(PACKAGE)} imports {layer}, a command"
            )
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


def packages(path):
    """The first names of what a module imports at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_core_imports_no_torch_or_tensorflow():
    for path in PACKAGE.rglob("*.py"):
        if "torch_peer" not in path.name:
            assert not {"torch", "tensorflow"} & set(packages(path)), path


def test_no_command_waits_for_what_only_its_end_needs():
    """scikit-learn takes two seconds to import, matplotlib one: only a report, itself read late, does so."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "report":
            assert not {"sklearn", "matplotlib"} & set(packages(path)), path
