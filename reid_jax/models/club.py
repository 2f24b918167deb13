"""The variational net of CLUB: a diagonal Gaussian of one feature given another."""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.models.layers import uniform


class Club(nn.Module):
    """q(y | x): x [B,X] -> (mu [B,Y], logvar [B,Y] in (-1, 1)), as in CLUB's code.

    mu and logvar are each Linear(X, h) - ReLU - Linear(h, Y) with h = hidden_size // 2, logvar with a
    tanh behind.
    Parameters p_mu_0, p_mu_2, p_logvar_0, p_logvar_2 (PyTorch: p_mu.0 and so on), kernels [in,out].
    init needs y [B,Y] for its width; apply takes it from the parameters.
    """

    hidden_size: int

    @nn.compact
    def __call__(self, x, y=None):
        if self.hidden_size < 2:
            raise ConfigError(f"the estimator's hidden size is {self.hidden_size}; it must be at least 2")
        if y is None:
            if not self.has_variable("params", "p_mu_2"):
                raise ValueError("Club.init(key, x, y) needs y for its width")
            y_dim = self.get_variable("params", "p_mu_2")["bias"].shape[0]
        else:
            y_dim = y.shape[-1]
        mu = self._branch("p_mu", x, y_dim)
        return mu, jnp.tanh(self._branch("p_logvar", x, y_dim))

    def _branch(self, name, x, y_dim):
        hidden = nn.relu(self._linear(f"{name}_0", x, self.hidden_size // 2))
        return self._linear(f"{name}_2", hidden, y_dim)

    def _linear(self, name, x, features):
        init = uniform(x.shape[-1])
        return nn.Dense(features, kernel_init=init, bias_init=init, name=name)(x)
