"""Nothing outside methods/ (parity/ and benchmarks/ excepted) knows a method by its name."""

import ast
import re
from pathlib import Path

import pytest

from reid_jax import methods, models
from reid_jax.data import loaders

PACKAGE = Path(__file__).parent.parent / "reid_jax"
MAY_NAME = ("methods", "parity", "benchmarks")
LAYOUTS = Path("models/weights")  # key layouts of weight files have names of their own; it imports no method
WORDS = {"baseline"}  # also plain English, so only what names the method counts
FLAGS = r"--(?:from|to)=\w+"  # a key layout in an example


def files():
    """The package's text files that may name no method, relative to it."""
    paths = (p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".j2", ".css"))
    relative = sorted(p.relative_to(PACKAGE) for p in paths)
    return [p for p in relative if p.parts[0] not in MAY_NAME and LAYOUTS not in p.parents]


def naming(name):
    """Pattern of text that names a method: the word; of English words the string, a field or a file."""
    word = re.escape(name)
    if name in WORDS:
        return re.compile(rf"""(["']){word}\1|config\.{word}\b|\b{word}\.(py|\w+\()|methods.*\b{word}\b""")
    return re.compile(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])")


def places(text, name):
    """Numbers of the lines of a text that name a method."""
    pattern, lines = naming(name), re.sub(FLAGS, "", text).splitlines()
    return [i for i, line in enumerate(lines, 1) if pattern.search(line)]


def is_shared(path, name):
    """Whether a text of models/ or of the loaders may use the name because something in there has it too."""
    named = {"models": (*models.offers("norms"), *models.offers("heads"), *models.keys())}
    named["data"] = [variant for layout in loaders.LAYOUTS.values() for variant in layout.variants]
    return path.parts[0] in named and name in named[path.parts[0]]


@pytest.mark.parametrize("name", methods.names())
def test_no_method_is_named(name):
    texts = {p: (PACKAGE / p).read_text() for p in files() if not is_shared(p, name)}
    named = [f"{p}:{i}" for p, text in texts.items() for i in places(text, name)]
    assert not named, f"{name} is named in {', '.join(named)}"


def test_what_counts_as_naming():
    for text in (
        "config.efl.mode",
        "configs/efl.py",
        '"efl"',
        "efl_defaults()",
        "runs/efl_market",
        "if efl:",
    ):
        assert places(text, "efl") == [1], text
    for text in ("reflect", "EFL (Liu et al.)", "hefl", "--to=efl x"):
        assert places(text, "efl") == [], text
    assert places('a\nx == "baseline"\nconfigs/baseline.py:smoke', "baseline") == [2, 3]
    for text in (
        "a strong baseline",
        "--baseline=runs/b",
        "config.report.baseline",
        "align-items: baseline;",
    ):
        assert places(text, "baseline") == [], text
    assert len(files()) > 80


def test_models_import_no_method():
    """Key layouts may share a method's name, and nothing else of it."""
    for path in (PACKAGE / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            assert "methods" not in module.split("."), path
