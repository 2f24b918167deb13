"""The CLUB net: names, widths, initial values (its outputs: tests/losses/test_mutual_info.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import ConfigError
from reid_jax.models.club import Club


def test_parameters_and_widths():
    net = Club(hidden_size=16)
    x, y = jnp.zeros((1, 12)), jnp.zeros((1, 10))
    params = net.init(jax.random.key(0), x, y)["params"]
    shapes = jax.tree.map(jnp.shape, params)
    for branch in ("p_mu", "p_logvar"):
        assert shapes[f"{branch}_0"] == {"kernel": (12, 8), "bias": (8,)}
        assert shapes[f"{branch}_2"] == {"kernel": (8, 10), "bias": (10,)}
    assert len(params) == 4
    mu, logvar = net.apply({"params": params}, jnp.ones((5, 12)))
    assert mu.shape == logvar.shape == (5, 10)


def test_log_variance_is_bounded():
    net = Club(hidden_size=8)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros((1, 2)))
    _, logvar = net.apply(variables, 1e3 * jax.random.normal(jax.random.key(1), (50, 3)))
    assert np.abs(logvar).max() <= 1


@pytest.mark.parametrize(("layer", "fan_in"), [("p_mu_0", 100), ("p_logvar_2", 200)])
def test_initial_values_are_uniform(layer, fan_in):
    """Weight and bias: within +-1 / sqrt(fan_in) and of a uniform distribution's variance, limit^2 / 3."""
    net = Club(hidden_size=400)
    params = net.init(jax.random.key(0), jnp.zeros((1, 100)), jnp.zeros((1, 300)))["params"][layer]
    for leaf, tolerance in ((params["kernel"], 0.03), (params["bias"], 0.3)):
        limit = fan_in**-0.5
        assert 0.9 * limit < np.abs(leaf).max() <= limit
        np.testing.assert_allclose(np.var(leaf), limit**2 / 3, rtol=tolerance)


def test_bad_use():
    with pytest.raises(ValueError, match="needs y"):
        Club(hidden_size=8).init(jax.random.key(0), jnp.zeros((1, 3)))
    with pytest.raises(ConfigError, match="hidden size"):
        Club(hidden_size=1).init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros((1, 3)))
