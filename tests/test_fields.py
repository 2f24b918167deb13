"""Every field of a config is read somewhere, and those without effect are refused."""

import ast
import inspect
from pathlib import Path

import pytest
from runs import config_of

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.fields import flatten, misfit
from reid_jax.train import stages

PACKAGE = Path(methods.__file__).parent.parent


def names_read():
    """Names that code asks objects for: attributes, fields of classes, strings that are handed to something.

    The declarations themselves are keywords of `dict(...)` and do not count.
    """
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Call | ast.Tuple | ast.List | ast.For):
                inside = [*getattr(node, "args", []), *getattr(node, "elts", []), getattr(node, "iter", None)]
                names |= {x.value for x in inside if isinstance(x, ast.Constant) and isinstance(x.value, str)}
    return names


def test_every_field_is_read():
    read = names_read()
    composed = ("source_ids", "source_instances", "meta_ids", "meta_instances")  # of streams.sizes
    synthetic = set(methods.defaults("baseline")["data"]["synthetic"])  # keywords of synthetic.generate
    fields = {f for name in methods.names() for f in flatten(methods.defaults(name))}
    leaves = {f: f.rpartition(".")[2] for f in fields if not f.startswith("data.synthetic.")}
    assert not sorted(f for f, leaf in leaves.items() if leaf not in read and leaf not in composed)
    from reid_jax.data import synthetic as generator

    assert synthetic <= {*inspect.signature(generator.generate).parameters, *generator.__dict__, *read}


def test_what_counts_as_read():
    read = names_read()
    assert "milestones" in read and "preset" not in read and "nonsense" not in read


@pytest.mark.parametrize("field, value", [("data.name", "market1501"), ("report.queries", 3), ("seed_", 1)])
def test_fields_without_effect_in_a_stage_are_refused(field, value):
    config = config_of("efl.py:smoke")
    tree = value
    for key in reversed(field.split(".")):
        tree = {key: tree}
    with config.unlocked():
        config.stages = {"train": tree}
    with pytest.raises(ConfigError, match=rf"config\.stages\.train\.{field} (has no effect|is no field)"):
        stages.settings(config, "train")


def test_a_field_for_a_name_or_numbers_may_hold_either():
    """In the stored config of a run; others keep the type of their default."""
    for data in ({"erase_fill": "normal"}, {"erase_fill": [0, 0, 0]}, {"erase_aspect": [0.3, 3.0]}):
        assert misfit({"data": data}, methods.defaults("baseline")) == ""
    assert "data.flip" in misfit({"data": {"flip": "often"}}, methods.defaults("baseline"))
