"""Gradient accumulation: parts that come in turn are as many devices; one part in memory at a time."""

import jax
import numpy as np
import pytest
from small import difference, info, random_batch, small

from reid_jax import config as c
from reid_jax.errors import ConfigError
from reid_jax.methods import baseline, efl, parts
from reid_jax.models import heads
from reid_jax.train import parallel, stages


def after_a_step(method, config, devices):
    """State and metrics of one step on some devices."""
    runner = parallel.Runner("pmap", devices)
    stage = method.stages(config, info(runner.axis_name))["train"]
    state = runner.replicate(jax.jit(stage.init)(jax.random.key(0), random_batch()))
    state, metrics = runner.compile(stage.step)(state, runner.shard(random_batch()))
    return runner.fetch(state), runner.fetch(metrics)


@pytest.mark.parametrize("method", [efl, baseline])
def test_parts_equal_devices(method):
    """The same parameters and losses: hardest pairs and MI of the whole batch, batch norm of each part."""
    options = dict(optim__eps=1e-3)
    accumulated, metrics = after_a_step(method, small(train__accumulate=4, **options), jax.devices()[:1])
    several, want = after_a_step(method, small(**options), jax.devices()[:4])
    whole, _ = after_a_step(method, small(**options), jax.devices()[:1])

    def params(state):
        return {n: v["params"] for n, v in state.nets.items()}

    assert difference(params(accumulated), params(several)) < 1e-6
    assert difference(params(accumulated), params(whole)) > 1e-5  # batch norm of the whole batch differs
    for name, value in metrics.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_running_statistics_move_part_by_part():
    config = small(train__accumulate=2)
    state, _ = after_a_step(baseline, config, jax.devices()[:1])
    stage = baseline.stages(config, info())["train"]
    net = jax.jit(stage.init)(jax.random.key(0), random_batch()).nets["net"]
    encoder = heads.encoder(heads.build(config.model, 6))
    image = parts.view(config, random_batch(), 0)
    for part in (image[:8], image[8:]):
        net = {**net, "batch_stats": encoder.apply(net, part, True)[1]}
    assert difference(net["batch_stats"], state.nets["net"]["batch_stats"]) < 1e-5


def test_a_part_is_in_memory_at_a_time():
    def temporaries(parts):
        fields = dict(model__backbone="slim", data__height=64, data__width=32)
        config = small(train__accumulate=parts, **fields)
        stage = baseline.stages(config, info())["train"]
        batch = stages.example_batch(config, 32)
        state = jax.eval_shape(stage.init, jax.random.key(0), batch)
        return jax.jit(stage.step).lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.4 * temporaries(1)


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(train__accumulate=3), "must be 1 or more and divide"),
        (dict(train__accumulate=0), "must be 1 or more and divide"),
        (dict(train__accumulate=2, model__bn_group="global"), "cannot be joined with config.model.bn_group"),
        (dict(train__accumulate=16), "come one by one"),
    ],
)
def test_settings_that_cannot_be_meant(fields, message):
    with pytest.raises(ConfigError, match=message):
        stages.check_batch(small(**fields), parallel.Runner("jit"))


def test_a_method_that_does_not_accumulate():
    tree = c.defaults() | {"dsanet": c.dsanet_defaults(), "method": "dsanet"}
    tree["train"]["accumulate"] = 2
    config = c.namespace(tree)

    class Dataset:
        num_train_pids, num_cams, train = 4, 2, ()

    with pytest.raises(ConfigError, match="dsanet does not accumulate gradients"):
        stages.build(config, Dataset, "train", None)
