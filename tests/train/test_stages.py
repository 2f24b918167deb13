"""Stages of a run: their settings, which are trained, what later ones read of earlier ones."""

import types

import jax
import numpy as np
import pytest

from reid_jax import methods
from reid_jax.config import defaults, namespace
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.methods import State
from reid_jax.train import checkpoint, evaluate, stages
from reid_jax.train.devices import Devices


@pytest.fixture
def config(monkeypatch):
    """Config of a method with stages one, two and three."""
    module = types.SimpleNamespace(STAGES=("one", "two", "three"))
    monkeypatch.setattr(methods, "find", lambda name: module)
    return namespace(defaults())


def test_settings_of_a_stage(config):
    config.stages = namespace({"two": {"train": {"steps": 7}, "data": {"erase_area": (0.1, 0.2)}}})
    assert stages.settings(config, "one") is config
    two = stages.settings(config, "two")
    assert (two.train.steps, tuple(two.data.erase_area)) == (7, (0.1, 0.2))
    assert (two.data.height, config.train.steps) == (256, 0)


def test_settings_with_a_typing_error(config):
    config.stages = namespace({"two": {"train": {"step": 7}}})
    with pytest.raises(ConfigError, match=r"config\.stages\.two\.train\.step is no field"):
        stages.settings(config, "two")
    config.stages = namespace({"too": {"train": {"steps": 7}}})
    with pytest.raises(ConfigError, match="config.stages has too; .* has one, two, three"):
        stages.settings(config, "one")


@pytest.mark.parametrize("field", ["data.root", "data.synthetic.train_ids", "init.run", "method"])
def test_settings_that_hold_for_the_whole_run(config, field):
    """The data are read once; a stage's own value would have no effect in silence."""
    section, *path = field.split(".")
    value = "x"
    for key in reversed(path):
        value = {key: value}
    config.stages = namespace({"two": {section: value}})
    with pytest.raises(ConfigError, match=rf"config\.stages\.two\.{field} has no effect"):
        stages.settings(config, "two")


def test_stages_to_train(config):
    assert stages.to_train(config) == ["one", "two", "three"]
    config.init.stages = "one=runs/a,two=runs/b"
    assert stages.to_train(config) == ["three"]
    config.train.only = "two"
    assert stages.to_train(config) == ["two"]
    config.train.only = "four"
    with pytest.raises(ConfigError, match="train.only is 'four'"):
        stages.to_train(config)
    config.init.stages = "runs/a"
    with pytest.raises(ConfigError, match="STAGE=WORKDIR"):
        stages.elsewhere(config)


def test_stages_left_out(config):
    """By config.train.skip; with those of other runs none may be left over."""
    config.train.skip = ("one",)
    assert stages.of_config(config) == stages.to_train(config) == ["two", "three"]
    config.init.stages = "two=runs/b,three=runs/c"
    with pytest.raises(ConfigError, match="there is nothing to train"):
        stages.to_train(config)
    for wrong in (("four",), ("one", "two", "three")):
        config.train.skip = wrong
        with pytest.raises(ConfigError, match="config.train.skip is"):
            stages.of_config(config)


def keep(workdir, stage, value):
    checkpoints = checkpoint.Checkpoints(str(workdir), stage)
    state = State(np.int32(1), {"e": {"params": {"w": np.full(3, value, np.float32)}}}, {})
    checkpoints.save(1, state, {"step": 1}, wait=True)
    checkpoints.close()


def test_networks_of_earlier_stages(config, tmp_path):
    """From this run, or from the one that config.init.stages names."""
    keep(tmp_path / "here", "one", 1)
    keep(tmp_path / "there", "one", 2)
    load = stages.loader(config, str(tmp_path / "here"))
    assert load("one", "e")["params"]["w"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match="no network 'f'"):
        load("one", "f")
    with pytest.raises(CheckpointError, match=r"no checkpoint of stage 'two'.*--config.init.stages=two="):
        load("two", "e")
    config.init.stages = f"one={tmp_path / 'there'}"
    assert stages.loader(config, str(tmp_path / "here"))("one", "e")["params"]["w"].tolist() == [2, 2, 2]


def test_the_last_stage_begun(config, tmp_path):
    """Order is the method's, not the alphabet's."""
    for name in ("one", "two"):
        keep(tmp_path, name, 0)
    checkpoint.write_json(str(tmp_path / "config.json"), {"method": "any"})
    name, checkpoints = stages.last_begun(str(tmp_path))
    checkpoints.close()
    assert name == "two"


@pytest.mark.parametrize("rows", [1, 4, 11])
def test_functions_of_any_number_of_rows(rows):
    """Padding rows do not come back, however many devices there are."""
    devices = Devices()
    over = evaluate.InBatches(lambda state, a, b: {"sum": a + b * state, "row": a[:, 0]}, 3, devices)
    a, b = np.random.default_rng(0).standard_normal((2, rows, 3)).astype(np.float32)
    found = over(devices.local_state(devices.replicate(np.float32(2))), a, b)
    np.testing.assert_allclose(found["sum"], a + 2 * b, rtol=1e-6)
    assert np.array_equal(found["row"], a[:, 0])


def test_parameters_are_those_of_the_networks():
    """Neither statistics nor the optimiser's moments count."""

    def init(key):
        net = {
            "params": {"kernel": jax.numpy.zeros((3, 4)), "bias": jax.numpy.zeros(4)},
            "batch_stats": {"m": jax.numpy.ones(9)},
        }
        return State(jax.numpy.int32(0), {"a": net, "b": net}, {"a": {"params": net["params"]}})

    assert stages.parameters(types.SimpleNamespace(init=init)) == 2 * 16


def test_intervals_are_epochs_or_rounds():
    """Parts of a step or round are rounded up; 0 is never."""
    config = namespace(defaults())
    config.train.eval_every, config.train.checkpoint_every, config.train.log_every = 1.5, 0.1, 0
    info = methods.Info(4, 2, steps_per_epoch=3)
    epochs, rounds = (types.SimpleNamespace(rounds=n, info=info) for n in (0, 7))
    assert stages.intervals(config, epochs) == (1, 5, 1) and stages.intervals(config, rounds) == (1, 2, 1)
    config.train.checkpoint_every = 0
    assert stages.intervals(config, epochs) == (1, 5, 0) and stages.intervals(config, rounds) == (1, 2, 0)
    config.train.eval_every, config.train.checkpoint_every, config.train.log_every = 0, 2, 20
    assert stages.intervals(config, epochs) == (20, 0, 6) and stages.intervals(config, rounds) == (20, 0, 2)


def test_accumulation_where_there_is_none():
    tree = methods.defaults("dsanet")
    tree["train"]["accumulate"] = 2
    with pytest.raises(ConfigError, match="accumulate is 2, and dsanet does not accumulate gradients"):
        stages.build(namespace(tree), "train", methods.Info(4, 2))


def test_config_of_an_older_run_gets_newer_fields(tmp_path):
    """At any depth, of the method's own section too; what the run had stays."""
    old = methods.defaults("direid")
    for section, field in (("train", "accumulate"), ("direid", "discriminator_std")):
        del old[section][field]
    del old["data"]["synthetic"]["seed"]
    old["stages"] = {"gan": {"train": {"steps": 7}}}
    old["direid"]["w_cycle"] = 3.0
    checkpoint.write_json(tmp_path / "config.json", old)
    found = stages.of_run(str(tmp_path))
    assert found["train"]["accumulate"] == 1 and found["direid"]["discriminator_std"] == 0.02
    assert found["data"]["synthetic"]["seed"] == 0 and found["direid"]["w_cycle"] == 3.0
    assert found["stages"] == {"gan": {"train": {"steps": 7}}}
