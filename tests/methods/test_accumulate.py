"""Gradient accumulation: parts that come in turn are as many devices; one part in memory at a time."""

import jax
import numpy as np
import pytest
from small import Stepping, difference, drawn, info, random_batch, small

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import baseline, efl
from reid_jax.models import heads
from reid_jax.train import stages
from reid_jax.train.devices import Devices

STAGES = {"efl": efl.Efl, "baseline": baseline.Baseline}


def after_a_step(name, config, count):
    """State and metrics of one step on some devices."""
    method = STAGES[name](config, info())
    return Stepping(method.step, count)(drawn(method), {"train": random_batch()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "efl"])
def test_parts_equal_devices(name):
    """The same parameters and losses: hardest pairs and MI of the whole batch, batch norm of each part."""
    options = dict(optim__eps=1e-3)
    accumulated, metrics = after_a_step(name, small(train__accumulate=2, **options), 1)
    several, want = after_a_step(name, small(**options), 2)

    def params(state):
        return {n: v["params"] for n, v in state.nets.items()}

    assert difference(params(accumulated), params(several)) < 1e-6
    for metric, value in metrics.items():
        np.testing.assert_allclose(value, want[metric], rtol=1e-4, atol=1e-5, err_msg=metric)
    if name == "baseline":
        whole, _ = after_a_step(name, small(**options), 1)
        assert difference(params(accumulated), params(whole)) > 1e-5  # norms of the whole batch differ
        check_running_statistics(accumulated)


def check_running_statistics(state):
    """They moved part by part."""
    config = small(train__accumulate=2)
    method = baseline.Baseline(config, info())
    net = drawn(method).nets["net"]
    encoder = heads.encoder(heads.build(config.model, 6))
    forward = jax.jit(lambda net, image: encoder.apply(net, image, True)[1])
    image = method.view(random_batch())
    for turn in (image[:8], image[8:]):
        net = {**net, "batch_stats": forward(net, turn)}
    assert difference(net["batch_stats"], state.nets["net"]["batch_stats"]) < 1e-5


@pytest.mark.slow
def test_a_part_is_in_memory_at_a_time():
    def temporaries(turns):
        config = small(train__accumulate=turns, model__backbone="slim", data__height=64, data__width=32)
        method = baseline.Baseline(config, info(None))
        batch = random_batch(size=32) | {"image": np.zeros((32, 64, 32, 3), np.uint8)}
        state = jax.eval_shape(method.init, jax.random.key(0))
        compiled = jax.jit(method.step).lower(state, {"train": batch}).compile()
        return compiled.memory_analysis().temp_size_in_bytes

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
        stages.check_batch(small(**fields), Devices(jax.devices()[:1]))


def test_a_method_that_does_not_accumulate():
    tree = methods.defaults("dsanet")
    tree["train"]["accumulate"] = 2
    with pytest.raises(ConfigError, match="dsanet does not accumulate gradients"):
        stages.build(namespace(tree), "train", info())
