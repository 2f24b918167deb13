"""The net of the verification loss: do two features belong to one person (layumi's two forms)?"""

import flax.linen as nn
import jax.numpy as jnp

from reid_jax.config import choice
from reid_jax.models.layers import Dropout, normal, wide

FORMS = ("square", "product")


class Pairs(nn.Module):
    """Features f, g [B,D] -> logits [B,2], class 0: the same person.

    form: "square", (f - g)^2 (2016_person_re-ID); "product", f g, there of unit features
    (Person-reID-verification). Dropout, then a linear layer. ConfigError for another form.
    """

    form: str = "square"
    dropout: float = 0.0
    axis_name: str | None = None  # over which dropout draws as one

    @nn.compact
    def __call__(self, f, g, train):
        f, g = wide(f), wide(g)
        choice("loss.pair", self.form, FORMS)
        x = jnp.square(f - g) if self.form == "square" else f * g
        x = Dropout(self.dropout, self.axis_name)(x, train)
        return nn.Dense(2, kernel_init=normal(0.0, 0.001), name="verify")(x)
