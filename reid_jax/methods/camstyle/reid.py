"""Stage "reid": the baseline on real images, and on style images in a pass of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reid_jax.data import streams
from reid_jax.errors import ConfigError
from reid_jax.losses import identity
from reid_jax.methods import _steps
from reid_jax.methods.baseline import Baseline
from reid_jax.methods.camstyle.cycles import GENERATORS, networks, normalised, pairs, styled, unnormalised


class Reid(Baseline):
    """Stage "reid"; the generators of the stage before stay beside the network, unless images are files."""

    accumulates = False
    heeds = ()

    def __init__(self, config, info):
        super().__init__(config, info)
        if self.files != ("styles" in config.train.skip) and config.camstyle.styles:
            raise ConfigError(
                "style images come from the stage styles or from config.data.styles: with data.styles set "
                "config.train.skip=('styles',), without it leave that out (or set config.camstyle.styles=0)"
            )
        self.generator = networks(config, info.axis_name)[0]
        self.generates = bool(config.camstyle.styles) and not self.files

    @property
    def files(self):
        """Whether style images are read."""
        return bool(self.config.data.styles)

    def streams(self, state):
        """Shuffled real images; style images from files, or images of every camera to be styled."""
        del state
        rows, config, count = self.info.labelled, self.config, self.config.camstyle.styles
        style = np.asarray(rows.extras.get("style", np.zeros(len(rows.pid))))
        by_name = {"train": streams.shuffled(rows, config.data, config.seed, groups=np.where(style, -1, 0))}
        if not count:
            return by_name
        seed = _steps.part_seed(config.seed, 1)
        if self.files:
            groups = np.where(style, 0, -1)
            styles = streams.shuffled(rows, config.data, seed, groups=groups, ids=count, instances=1)
        else:
            styles = streams.cameras(rows, config.data, seed, instances=count)
        return by_name | {"styles": styles}

    def init(self, key):
        state = super().init(key)
        if not self.generates:
            return state
        count, image = len(pairs(self.info.num_cams)), self.blank()

        def fresh(key):
            return dict(self.generator.init(key, image, False))

        generators = {n: jax.vmap(fresh)(jax.random.split(key, count)) for n in GENERATORS}
        return state._replace(nets={**state.nets, **generators})

    def inherit(self, state, load, extract):
        del extract
        if not self.generates:
            return state
        generators = {n: jax.tree.map(jnp.asarray, load("styles", n)) for n in GENERATORS}
        return state._replace(nets={**state.nets, **generators})

    def step(self, state, batch):
        d, image, pid = self.config.camstyle, self.view(batch["train"]), batch["train"]["pid"]
        keys = jax.random.split(self.key(state), 4)
        second = self.styled(state.nets, batch["styles"], keys[0]) if d.styles else None

        def loss(nets):
            out, stats = self.encoder.apply(nets["net"], image, True, keys[1])
            ce = identity.cross_entropy(out.logits[0], pid)
            metrics = {"ce": ce, "accuracy": _steps.accuracy(out, pid), "styled": jnp.zeros(())}
            if second is not None:
                variables = {**nets["net"], "batch_stats": stats}
                other, stats = self.encoder.apply(variables, second, True, keys[2])
                labels = batch["styles"]["pid"]
                metrics["styled"] = identity.cross_entropy(other.logits[0], labels, label_smooth=d.smooth)
            total = ce + d.weight * metrics["styled"]
            return total, {"net": stats}, metrics | {"loss": total}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def styled(self, nets, batch, key):
        """Normalised style images f[B,H,W,3], read or of every camera in the style of a random one."""
        if self.files:
            return self.view(batch)
        plain, cameras = {**batch, "erase": jnp.zeros_like(batch["erase"])}, self.info.num_cams
        x = unnormalised(self.config, self.view(plain))
        x = x.reshape(-1, cameras, *x.shape[1:]).swapaxes(0, 1)
        camera = jnp.arange(cameras)
        first, noise = jax.random.split(key)
        other = (camera + jax.random.randint(first, (cameras,), 1, cameras)) % cameras
        keys = jax.random.split(noise, cameras)

        def restyled(x, a, b, key):
            key = key if self.config.camstyle.noise else None
            return styled(self.generator, nets, x, a, b, cameras, key)

        output = lax.stop_gradient(jax.vmap(restyled)(x, camera, other, keys))
        return normalised(self.config, output.swapaxes(0, 1).reshape(-1, *output.shape[2:]))
