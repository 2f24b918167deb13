"""Networks that config.loss sets beside an encoder: centers, and the one that verifies pairs.

Each learns in the encoder's own step: `Beside` gives their variables, optimisers and losses.
"""

import jax
import jax.numpy as jnp

from reid_jax.errors import ConfigError
from reid_jax.losses import centers, verification
from reid_jax.methods import _optim, _steps
from reid_jax.models.pairs import Pairs

METRICS = {"center": "Distance to the centers, squared", "verification": "Cross entropy of pairs"}


class Beside:
    """Of config.loss: `centers` where loss.center > 0, `pairs` where loss.verification > 0."""

    def __init__(self, config, info):
        self.loss, self.info, self.axis = config.loss, info, info.axis_name
        self.verify = Pairs(self.loss.pair, self.loss.pair_dropout, self.axis)
        if not 0 <= self.loss.pair_dropout < 1:
            raise ConfigError(
                f"config.loss.pair_dropout is {self.loss.pair_dropout}; it must be at least 0 and below 1"
            )
        self.tx = {}
        if self.loss.center:
            self.tx["centers"] = _optim.sgd(self.loss.center_lr, momentum=0.0)
        if self.loss.verification:
            self.tx["pairs"] = _optim.optimiser(config.optim, info)

    def init(self, key, branches):
        """{network: variables}; branches: the encoder's, or their shapes."""
        sizes = [f.shape[-1] for f in _steps.select_features(self.loss, branches)]
        nets = {}
        for name in self.tx:
            keys = jax.random.split(jax.random.fold_in(key, len(name)), len(sizes))
            new = self._centers if name == "centers" else self._pairs
            branch = {str(i): new(k, size) for i, (k, size) in enumerate(zip(keys, sizes, strict=True))}
            nets[name] = {"params": branch}
        return nets

    def _centers(self, key, size):
        return jax.random.normal(key, (self.info.num_pids, size))

    def _pairs(self, key, size):
        x = jnp.zeros((1, size))
        return self.verify.init(key, x, x, False)["params"]

    def terms(self, nets, branches, labels, key):
        """({metric: weighted loss f[]}, what the centers' loss adds for them alone).

        nets: {name: variables} with these networks. The centers get the gradient without the weight.
        """
        features, terms, alone = _steps.select_features(self.loss, branches), {}, jnp.zeros(())
        if self.loss.center:
            params = nets["centers"]["params"]
            still, moving = jax.lax.stop_gradient(params), jax.lax.stop_gradient(features)
            terms["center"] = self.loss.center * self._center(features, still, labels)
            alone = self._center(moving, params, labels, sum)
        if self.loss.verification:
            terms["verification"] = self.loss.verification * self._verification(nets, features, labels, key)
        return terms, alone - jax.lax.stop_gradient(alone)

    def _center(self, features, params, labels, joined=None):
        losses = [
            centers.loss(f, params[str(i)], labels, axis_name=self.axis) for i, f in enumerate(features)
        ]
        return _steps.joined(self.loss, losses) if joined is None else joined(losses)

    def _verification(self, nets, features, labels, key):
        losses = []
        for i, f in enumerate(features):
            f = _steps.unit(f) if self.loss.pair == "product" else f
            draw, drop = jax.random.split(jax.random.fold_in(key, i))

            def verify(f, g, turn, i=i, drop=drop):
                params, rngs = nets["pairs"]["params"][str(i)], {"dropout": jax.random.fold_in(drop, turn)}
                return self.verify.apply({"params": params}, f, g, True, rngs=rngs)

            losses.append(verification.loss(verify, f, labels, draw, axis_name=self.axis))
        return _steps.joined(self.loss, losses)
