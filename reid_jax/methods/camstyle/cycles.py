"""Stage "styles": a CycleGAN for each pair of cameras, all pairs at a time.

G_A makes images of the pair's second camera of those of its first, G_B the other way; D_A judges what G_A
makes, D_B what G_B makes.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from reid_jax.data import streams
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.losses import batch as batches
from reid_jax.losses.generation import l1
from reid_jax.methods import Method, _steps
from reid_jax.methods._study import OUTLINE, one_each, outlines, pictures, silhouettes, table
from reid_jax.models import cyclegan

SMALLEST = 24  # pixels of a side, of which a discriminator makes one
GENERATORS, DISCRIMINATORS = ("G_A", "G_B"), ("D_A", "D_B")
STUDY = {
    "title": "Images in the styles of other cameras",
    "link": "Styles",
    "lead": "Test people, seen by one camera each, as other cameras would see them.",
    "figures": {
        "moved": ("Change by another camera's style, levels", "mean absolute difference of 255"),
        **OUTLINE,
    },
    "arrays": {
        "grid/cameras": {
            "title": "Image of the row in the style of the column's camera",
            "lead": "First column: test images, one of each camera. First row: what the column's camera saw.",
            "alt": "first column: images, first row: the cameras, between them the generated images",
            "alt_earlier": "the same images",
        }
    },
}


def networks(config, axis_name):
    """(generator, discriminator) of a config, alike for all pairs."""
    d, dtype = config.camstyle, _steps.dtype_of(config.model)
    if config.data.frames:
        raise ConfigError(
            f"config.data.frames is {config.data.frames}; camstyle takes single images, leave it at 0"
        )
    within("camstyle", d, width=(1, None), blocks=(0, None), pool=(0, None), styles=(0, None))
    dtype = None if dtype == jnp.float32 else dtype
    generator = cyclegan.Generator(d.width, d.blocks, d.dropout, dtype, axis_name)
    return generator, cyclegan.Discriminator(d.width, dtype)


def pairs(cameras):
    """i[P,2]: the two cameras of every pair."""
    return np.array(list(itertools.combinations(range(cameras), 2)), int).reshape(-1, 2)


# ---- losses of one pair of cameras; a, b f[B,H,W,3] in -1 to 1


def generator_losses(modules, nets, a, b, key, weights):
    """({"gan", "cycle", "same": f[2]}, fake_a, fake_b): parts of a and of b; weights: (cycle, same)."""
    generator, discriminator = modules
    keys = jax.random.split(key, 4)

    def make(name, i, *images):
        """Of each of `images`; noise goes by the rows of a batch, so that they do not make one."""

        def forward(x, key):
            return generator.apply(nets[name], x, True, rngs={"dropout": key})

        return jax.vmap(forward)(jnp.stack(images), jax.random.split(keys[i], len(images)))

    (fake_b, same_b), (fake_a, same_a) = make("G_A", 0, a, b), make("G_B", 1, b, a)
    (back_a,), (back_b,) = make("G_B", 2, fake_b), make("G_A", 3, fake_a)
    seen = discriminator.apply(nets["D_A"], fake_b), discriminator.apply(nets["D_B"], fake_a)
    values = {
        "gan": jnp.stack([jnp.square(o - 1).mean() for o in seen]),
        "cycle": weights[0] * jnp.stack([l1(back_a, a), l1(back_b, b)]),
        "same": weights[1] * jnp.stack([l1(same_b, b), l1(same_a, a)]),
    }
    return values, fake_a, fake_b


def discriminator_loss(discriminator, variables, real, fake):
    """Half the sum of both least-squares terms."""
    good, bad = (discriminator.apply(variables, x) for x in (real, fake))
    return (jnp.square(good - 1).mean() + jnp.square(bad).mean()) / 2


def pooled(pool, filled, fakes, key):
    """(images f[N,H,W,3] for the discriminator, pool f[S,H,W,3]): of generated ones, in turn.

    filled: images already in the pool. Until it is full all go in; then with probability 1/2 an old one is
    given and the new one takes its place.
    """
    size = len(pool)

    def turn(carry, item):
        pool, filled = carry
        image, key = item
        coin, place = jax.random.split(key)
        full = filled >= size
        slot = jnp.where(full, jax.random.randint(place, (), 0, size), filled)
        old = full & jax.random.bernoulli(coin)
        shown = jnp.where(old, pool[slot], image)
        pool = jnp.where(old | ~full, pool.at[slot].set(image), pool)
        return (pool, jnp.minimum(filled + 1, size)), shown

    (pool, _), shown = lax.scan(turn, (pool, filled), (fakes, jax.random.split(key, len(fakes))))
    return shown, pool


class Styles(Method):
    """Stage "styles"; every leaf of nets and pools has a leading axis of the pairs of cameras."""

    nets = ("pixels",)

    def __init__(self, config, info):
        super().__init__(config, info)
        d, optim = config.camstyle, config.optim
        self.modules = networks(config, info.axis_name)
        self.pairs = pairs(info.num_cams)
        if not len(self.pairs):
            raise ConfigError(
                "stage styles needs two cameras; leave it out: config.train.skip=('styles',) and "
                "config.camstyle.styles=0"
            )
        size = config.data.height, config.data.width
        if min(size) < SMALLEST:
            raise ConfigError(
                f"config.data.height and width are {size[0]} and {size[1]}; the discriminators of stage "
                f"styles need {SMALLEST} pixels at least"
            )
        constant = int(d.constant * self.info.total_steps)
        falling = optax.linear_schedule(optim.lr, 0.0, max(self.info.total_steps - constant, 1))
        self.rate = optax.join_schedules([optax.constant_schedule(optim.lr), falling], [constant])
        self.tx = {
            n: optax.chain(
                optax.scale_by_adam(optim.b1, optim.b2, optim.eps), optax.scale_by_learning_rate(self.rate)
            )
            for n in (*GENERATORS, *DISCRIMINATORS)
        }
        self.study = self.looked_at

    def streams(self, state):
        """data.instances images of every camera, each of which all pairs of the camera see."""
        del state
        return {"train": streams.cameras(self.info.labelled, self.config.data, self.config.seed)}

    def init(self, key):
        image, count = self.blank(), len(self.pairs)
        generator, discriminator = self.modules

        def fresh(key):
            keys = jax.random.split(key, 4)
            nets = {
                n: dict(generator.init(k, image, False)) for n, k in zip(GENERATORS, keys[:2], strict=True)
            }
            judges = zip(DISCRIMINATORS, keys[2:], strict=True)
            return nets | {n: dict(discriminator.init(k, image)) for n, k in judges}

        memory, size = {}, self.config.camstyle.pool
        if size:
            pool = jnp.zeros((count, size, *image.shape[1:]))
            memory = {"fake_a": pool, "fake_b": pool, "filled": jnp.int32(0)}
        return self.fresh(jax.vmap(fresh)(jax.random.split(key, count)), self.tx, memory)

    def warm_start(self, state, load):
        """Pretrained weights are the next stage's."""
        return state

    def step(self, state, batch):
        x = unnormalised(self.config, self.view(batch["train"]))
        x = x.reshape(-1, self.info.num_cams, *x.shape[1:]).swapaxes(0, 1)  # [C,K,H,W,3]
        a, b = (x[self.pairs[:, side]] for side in (0, 1))
        new, values = self.update(state, a, b, self.key(state))
        return new, {n: v.sum(-1).mean() for n, v in values.items()} | {"lr": self.rate(state.step)}

    def update(self, state, a, b, key):
        """(State, {name: f[P,...]}) of one iteration on images f[P,K,H,W,3] in -1 to 1."""
        d, count = self.config.camstyle, len(self.pairs)
        keys, pool_key = jax.random.split(jax.random.fold_in(key, 0), count), jax.random.fold_in(key, 1)
        weights = d.cycle, d.cycle * d.identity

        def generators(params):
            def of_pair(params, nets, a, b, key):
                variables = {**nets, **{n: {"params": p} for n, p in params.items()}}
                values, *fakes = generator_losses(self.modules, variables, a, b, key, weights)
                return sum(v.sum() for v in values.values()), (values, fakes)

            total, extra = jax.vmap(of_pair)(params, state.nets, a, b, keys)
            return total.sum(), extra

        params = {n: state.nets[n]["params"] for n in GENERATORS}
        grads, (values, fakes) = jax.grad(generators, has_aux=True)(params)
        (fake_a, fake_b), memory = self.shown(state.memory, fakes, pool_key)

        def discriminators(params):
            def of_pair(params, a, b, fake_a, fake_b):
                sides = (("D_A", b, fake_b), ("D_B", a, fake_a))
                return jnp.stack(
                    [discriminator_loss(self.modules[1], {"params": params[n]}, *x) for n, *x in sides]
                )

            values = jax.vmap(of_pair)(params, a, b, fake_a, fake_b)
            return values.sum(), values

        params = {n: state.nets[n]["params"] for n in DISCRIMINATORS}
        more, judged = jax.grad(discriminators, has_aux=True)(params)
        values |= {"dis": judged, "loss": sum(values.values())}
        grads, values = _steps.pmean((grads | more, values), self.axis)
        state = _steps.moved(state, self.tx, grads, {})
        return state._replace(step=state.step + 1, memory=memory), values

    def shown(self, memory, fakes, key):
        """(what the discriminators see for fakes [fake_a, fake_b], memory); the pools are of all devices."""
        if not memory:
            return fakes, memory
        seen, new, count = [], {}, len(self.pairs)
        for i, (name, fake) in enumerate(zip(("fake_a", "fake_b"), fakes, strict=True)):
            gathered = jax.vmap(lambda f: batches.gather(f, self.axis))(lax.stop_gradient(fake))
            keys = jax.random.split(jax.random.fold_in(key, i), count)
            shown, new[name] = jax.vmap(pooled, (0, None, 0, 0))(
                memory[name], memory["filled"], gathered, keys
            )
            first = batches.first_row(fake[0], self.axis)
            seen.append(lax.dynamic_slice_in_dim(shown, first, fake.shape[1], 1))
        filled = jnp.minimum(memory["filled"] + gathered.shape[1], self.config.camstyle.pool)
        return seen, {**new, "filled": filled}

    def embed(self, state, image, net):
        """There is no feature in this stage: the colours of the image in small."""
        return jax.image.resize(self.plain(image), (len(image), 8, 4, 3), "linear").reshape(len(image), -1)

    def looked_at(self, dataset, over):
        """Method.study: a grid of cameras."""
        cameras = self.info.num_cams
        first = {r.camid: r for r in reversed(one_each(dataset.gallery)) if r.camid < cameras}
        if len(first) < 2:
            return None
        records = [first[c] for c in sorted(first)]
        places = np.array(sorted(first))
        drawn = over(lambda state, image, a, b: translated(self, state.nets, image, a, b))

        def study(state):
            images, n = pictures(records, self.config.data), len(records)
            from_, to = np.repeat(places, n).astype(np.int32), np.tile(places, n).astype(np.int32)
            cells = np.asarray(drawn(state, np.repeat(images, n, 0), from_, to))
            cells = cells.reshape(n, n, *images.shape[1:])
            change = np.abs(cells.astype(int) - images[:, None]).mean((2, 3, 4))
            other = ~np.eye(n, dtype=bool)
            figures = {"moved": float(change[other].mean())}
            if (bodies := silhouettes(dataset, records, self.config.data)) is not None:
                shapes = np.repeat(bodies, n, 0)[other.ravel()]
                figures["outline"] = float(outlines(cells[other], shapes).mean())
                figures["outline_real"] = float(outlines(images, bodies).mean())
            return figures, {"grid/cameras": table(images, images, cells)}

        return study


def translated(method, nets, image, from_, to):
    """u8[B,H,W,3] of images in the style of camera `to` i32[B]; those of the same camera as they are."""
    x = unnormalised(method.config, method.plain(image))

    def restyled(x, a, b):
        return styled(method.modules[0], nets, x[None], a, b, method.info.num_cams, None)[0]

    output = lax.map(lambda args: restyled(*args), (x, from_, to))
    return jnp.rint(255 * jnp.clip((output + 1) / 2, 0, 1)).astype(jnp.uint8)


def styled(generator, nets, x, a, b, cameras, key):
    """Images f[B,H,W,3] (-1 to 1) of camera a i32[] in the style of camera b; key: of dropout, None: off."""
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    pair = low * cameras - low * (low + 1) // 2 + high - low - 1
    pair = jnp.clip(pair, 0, cameras * (cameras - 1) // 2 - 1)
    variables = jax.tree.map(lambda g, h: jnp.where(a < b, g[pair], h[pair]), nets["G_A"], nets["G_B"])
    rngs = None if key is None else {"dropout": key}
    return jnp.where(a == b, x, generator.apply(variables, x, key is not None, rngs=rngs))


def unnormalised(config, x):
    """Normalised images as -1 to 1."""
    mean, std = (jnp.asarray(v, x.dtype) for v in (config.data.mean, config.data.std))
    return 2 * (x * std + mean) - 1


def normalised(config, x):
    """The inverse of `unnormalised`."""
    mean, std = (jnp.asarray(v, x.dtype) for v in (config.data.mean, config.data.std))
    return ((x + 1) / 2 - mean) / std
