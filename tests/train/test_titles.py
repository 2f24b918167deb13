"""titles.json: what every method says of itself, and readers of damaged or absent ones."""

import json

import pytest

from reid_jax import cli, methods
from reid_jax.config import flatten
from reid_jax.train import titles


@pytest.mark.parametrize("name", methods.names())
def test_what_a_method_says(name, tmp_path):
    """Of every method: a title, texts of its metrics, defaults of all its fields, as JSON."""
    config = cli.load_config(f"configs/{name}.py:smoke")
    titles.write(str(tmp_path), config, {"first": ("b", "a")})
    titles.write(str(tmp_path), config, {"second": ("c",)})  # when the next stage is built
    tree = json.loads((tmp_path / "titles.json").read_text())
    assert tree["method"] and tree["metrics"] and all(isinstance(t, str) for t in tree["metrics"].values())
    assert tree["nets"] == {"first": ["b", "a"], "second": ["c"]}
    fields = {f for f in flatten(config.to_dict()) if not f.startswith("stages.")}
    assert fields <= {*flatten(tree["defaults"])}
    assert titles.read(str(tmp_path)) == tree


def test_titles_of_ablations():
    def title(variant, **fields):
        config = cli.load_config(f"configs/{variant}:smoke")
        with config.unlocked():
            config[config.method].update(fields)
        return methods.find(config.method).title(config)

    assert title("efl.py") == "EFL" and title("efl.py", mode="mmt") == "EFL, mode mmt"
    assert title("adl.py", frifm_stages=(), adversarial_stages=()) == "IICS"
    assert title("adl.py", frifm_stages=(1,), adversarial_stages=()) == "IICS with FRIFM"
    assert title("adl.py", frifm_stages=(1,), adversarial_stages=("inter",), mode="threshold") == (
        "ADL, mode threshold"
    )


def test_networks_of_a_run(tmp_path):
    """What titles.json says; of older runs the network of final.json, a stage's own before the last one's."""
    workdir = str(tmp_path)
    assert titles.networks(workdir, "gan") == () and titles.read(workdir) == {}
    (tmp_path / "eval" / "gan").mkdir(parents=True)
    (tmp_path / "eval" / "final.json").write_text('{"net": "last"}')
    assert titles.networks(workdir, "gan") == ("last",)
    (tmp_path / "eval" / "gan" / "final.json").write_text('{"net": "own"}')
    assert titles.networks(workdir, "gan") == ("own",)
    for damaged in ("[1]", "{ x", '{"nets": {"gan": []}}'):
        (tmp_path / "titles.json").write_text(damaged)
        assert titles.networks(workdir, "gan") == ("own",)
    (tmp_path / "titles.json").write_text('{"nets": {"gan": ["b", "a"]}}')
    assert titles.networks(workdir, "gan") == ("b", "a") and titles.networks(workdir, "x") == ("last",)
