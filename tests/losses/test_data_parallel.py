"""Every loss on eight devices equals one device with the whole batch: value and parameter gradients.

Devices hold unequal numbers of padding rows and, for the triplets, of anchors with a negative. The
caller takes the mean over devices of both value and gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from reid_jax.losses import centers, circle, distill, identity, mutual_info, triplet, verification

DEVICES, LOCAL, DIM, CLASSES = 8, 4, 5, 6
AXIS = "device"


def batch(seed=0):
    """A global batch: features come from params, so that gradients cross devices."""
    rng = np.random.default_rng(seed)
    n = DEVICES * LOCAL
    mask = rng.random(n) < 0.6
    mask[:LOCAL] = False  # the first device has only padding
    mask[LOCAL : 2 * LOCAL] = True
    return {
        "x": rng.standard_normal((n, 3)).astype(np.float32),
        "teacher": rng.standard_normal((n, DIM)).astype(np.float32),
        "y": rng.standard_normal((n, DIM)).astype(np.float32),
        "label": rng.integers(0, 4, n),
        "mask": mask,
    }


def features(params, b):
    return jnp.tanh(b["x"] @ params["w"]) * params["b"]


def hard(params, b, axis_name, distance):
    f = features(params, b)
    return triplet.batch_hard(
        f, b["label"], distance=distance, margin=0.3, mask=b["mask"], axis_name=axis_name
    )[0]


def soft(params, b, axis_name):
    return triplet.softmax_soft(
        features(params, b), b["teacher"], b["label"], mask=b["mask"], axis_name=axis_name
    )


def ce(params, b, axis_name):
    return identity.cross_entropy(features(params, b), b["label"], mask=b["mask"], axis_name=axis_name)


def kl(params, b, axis_name):
    return distill.kl(b["teacher"], features(params, b), b["mask"], axis_name)


def mi(params, b, axis_name, name):
    """Both q's output and y depend on the parameters: gradients also cross through the batch moments."""
    mu, y = features(params, b), b["y"] * params["b"] + features(params, b) ** 2
    args, rest = (mu, jnp.tanh(b["y"] * 0.3), y), dict(mask=b["mask"], axis_name=axis_name)
    if name == "sampled":
        return mutual_info.club_sampled(*args, jax.random.key(3), **rest)
    return {"exact": mutual_info.club_exact, "nll": mutual_info.club_nll, "r2": r2}[name](*args, **rest)


def r2(mu, logvar, y, mask, axis_name):
    return mutual_info.r2(mu, y, mask, axis_name)


def all_pairs(params, b, axis_name, guard):
    options = dict(distance="euclidean", margin=0.3, guard=guard, mask=b["mask"], axis_name=axis_name)
    return triplet.weighted(features(params, b), b["label"], **options)[0]


def circles(params, b, axis_name, form):
    options = dict(form=form, margin=0.25, scale=8.0, mask=b["mask"], axis_name=axis_name)
    return circle.loss(features(params, b), b["label"], **options)


def others(params, b, axis_name):
    options = dict(label_smooth=-1, mask=b["mask"], axis_name=axis_name)
    return identity.cross_entropy_others(features(params, b), b["label"], **options)


def center(params, b, axis_name):
    middle = params["w"][jnp.array([0, 1, 2, 0])] * params["b"]
    return centers.loss(features(params, b), middle, b["label"], b["mask"], axis_name)


def verify(params, b, axis_name):
    def logits(f, g, turn):
        return jnp.square(f - g)[:, turn : turn + 2]

    given = features(params, b), b["label"], jax.random.key(1), b["mask"], axis_name
    return verification.loss(logits, *given)


LOSSES = {
    **{d: functools.partial(hard, distance=d) for d in triplet.DISTANCES},
    "weighted": functools.partial(all_pairs, guard=1e-6),
    "weighted_truly": functools.partial(all_pairs, guard=0),
    **{f: functools.partial(circles, form=f) for f in circle.FORMS},
    "others": others,
    "center": center,
    "verify": verify,
    "softmax_soft": soft,
    "ce": ce,
    "kl": kl,
    **{n: functools.partial(mi, name=n) for n in ("exact", "sampled", "nll", "r2")},
}


def params():
    rng = np.random.default_rng(9)
    return {
        "w": rng.standard_normal((3, DIM)).astype(np.float32),
        "b": rng.standard_normal(DIM).astype(np.float32),
    }


def gradients(losses, axis_name=None):
    """A function of (params, batch): {name: (value, gradients)} of some losses."""
    return lambda p, b: {n: jax.value_and_grad(loss)(p, b, axis_name) for n, loss in losses.items()}


def parallel(losses, backend):
    def step(p, b):
        return lax.pmean(gradients(losses, AXIS)(p, b), AXIS)

    if backend == "pmap":
        run = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0))
        fold = functools.partial(jax.tree.map, lambda x: x.reshape(DEVICES, LOCAL, *x.shape[1:]))
        return lambda p, b: jax.tree.map(lambda x: x[0], run(p, fold(b)))
    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False))


def check(losses, b, backend="pmap"):
    """{name: (value, gradients)} of losses, which are those of one device."""
    several = parallel(losses, backend)(params(), b)
    for name, (expected, expected_grad) in jax.jit(gradients(losses))(params(), b).items():
        value, grad = several[name]
        np.testing.assert_allclose(value, expected, rtol=2e-5, err_msg=name)
        for key, g in grad.items():
            scale = np.abs(expected_grad[key]).max() + 1e-6
            np.testing.assert_allclose(
                g / scale, expected_grad[key] / scale, atol=2e-5, err_msg=f"{name} {key}"
            )
    return several


# Parts of other methods, and what is compared in another form below.
RARE = {"center", "verify", "others", "weighted_truly", "nll", "r2", "cosine", "euclidean", "exact"}


@pytest.mark.parametrize("rare", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pmap_equals_one_device(rare):
    losses = {n: loss for n, loss in LOSSES.items() if (n in RARE) == rare}
    for name, (value, grad) in check(losses, batch()).items():
        assert value != 0 and np.abs(grad["w"]).max() > 0, name


def test_shard_map_equals_one_device():
    check({n: LOSSES[n] for n in ("cosine", "euclidean", "exact")}, batch(1), "shard_map")


def test_no_negative_anywhere():
    """One camera on all devices: 0 and no gradient."""
    b = batch()
    b["label"] = np.zeros_like(b["label"])
    for name, (value, grad) in check({n: LOSSES[n] for n in ("cosine", "softmax")}, b).items():
        assert value == 0 and not any(np.asarray(g).any() for g in grad.values()), name


def test_without_a_mask():
    b = batch(2)
    b["mask"] = np.ones_like(b["mask"])
    check({"unmasked": lambda p, b, axis: hard(p, {**b, "mask": None}, axis, "euclidean")}, b)
