"""CLUB's bounds against double loops, recorded values and the N x N x D array they must not build."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.losses import mutual_info

CASES = pathlib.Path(__file__).parents[1] / "cases"
LOSSES = {
    "exact": lambda mu, lv, y, mask=None: mutual_info.club_exact(mu, lv, y, mask=mask),
    "sampled": lambda mu, lv, y, mask=None: mutual_info.club_sampled(mu, lv, y, y[::-1], mask=mask),
    "nll": lambda mu, lv, y, mask=None: mutual_info.club_nll(mu, lv, y, mask),
}


def value_and_grad(fn, **options):
    """Compiled, which is faster here than one small kernel after the other."""
    return jax.jit(jax.value_and_grad(fn, **options))


def draw(seed=0, rows=6, dim=4):
    mu, logvar, y = np.random.default_rng(seed).standard_normal((3, rows, dim)).astype(np.float32)
    return mu, np.tanh(logvar), y + 1


def naive(name, mu, logvar, y, y_neg):
    """Double loop over rows and negatives; works on numpy and, for gradients, on jax arrays."""
    n, total = len(mu), 0.0
    for i in range(n):
        var = jnp.exp(logvar[i])
        if name == "nll":
            total += ((mu[i] - y[i]) ** 2 / var + logvar[i]).sum()
            continue
        positive = -((mu[i] - y[i]) ** 2) / 2 / var
        others = [y_neg[i]] if name == "sampled" else list(y)
        negative = sum(-((mu[i] - other) ** 2) / 2 / var for other in others) / len(others)
        total += (positive - negative).sum()
    return total / n


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_the_double_loop(name):
    args = draw()
    grads = dict(argnums=(0, 1, 2))
    value, got = value_and_grad(LOSSES[name], **grads)(*args)
    expected, want = value_and_grad(lambda m, v, y: naive(name, m, v, y, y[::-1]), **grads)(*args)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(name):
    mu, logvar, y = draw(rows=8)
    mask = np.arange(8) < 5
    y_neg = y[[1, 2, 3, 4, 0, 6, 7, 5]]

    def loss(mu, mask=None):
        keep = len(mu)
        if name == "sampled":
            return mutual_info.club_sampled(mu, logvar[:keep], y[:keep], y_neg[:keep], mask=mask)
        return LOSSES[name](mu, logvar[:keep], y[:keep], mask)

    value, grad = value_and_grad(loss)(mu, mask)
    expected, expected_grad = value_and_grad(loss)(mu[:5])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad[:5], expected_grad, rtol=1e-4, atol=1e-6)
    assert not np.asarray(grad[5:]).any()
    value, grad = value_and_grad(loss)(mu, np.zeros(8, bool))
    assert value == 0 and not np.asarray(grad).any()


def test_drawn_negatives_are_a_permutation_of_the_kept_rows():
    """Rows of y are unit vectors and mu = 0 tells nothing: look at the drawn rows themselves."""
    y, mask = jnp.arange(7.0)[:, None], jnp.array([1, 1, 0, 1, 1, 0, 1], bool)
    seen = set()
    for seed in range(20):
        drawn = np.asarray(mutual_info._negatives(y, jax.random.key(seed), mask, None))[:, 0]
        assert sorted(drawn[np.asarray(mask)]) == [0, 1, 3, 4, 6]
        seen.add(tuple(drawn))
    assert len(seen) > 10
    perm = jnp.array([3, 4, 5, 6, 0, 1, 2])
    args = draw(rows=7)
    by_index = mutual_info.club_sampled(*args, perm)
    np.testing.assert_allclose(by_index, mutual_info.club_sampled(*args, args[2][perm]), rtol=1e-6)


def test_r2():
    mu, _, y = draw()
    ratio = ((y - mu) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    np.testing.assert_allclose(mutual_info.r2(mu, y), 1 - ratio, rtol=1e-5)
    np.testing.assert_allclose(mutual_info.r2(y, y), 1)
    assert abs(float(mutual_info.r2(np.broadcast_to(y.mean(0), y.shape), y))) < 1e-6
    assert mutual_info.r2(mu, np.ones_like(y)) == 0
    mask = np.arange(6) < 4
    np.testing.assert_allclose(mutual_info.r2(mu, y, mask), mutual_info.r2(mu[:4], y[:4]), rtol=1e-5)


def test_the_exact_bound_builds_no_pairwise_array():
    """256 x 2048: value and gradient stay within a few [N,D] arrays (2 MiB each; N x N x D: 512 MiB)."""
    spec = [jax.ShapeDtypeStruct((256, 2048), jnp.float32)] * 3
    compiled = jax.jit(jax.value_and_grad(mutual_info.club_exact, argnums=(0, 1, 2))).lower(*spec).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 2**20
    jaxpr = jax.make_jaxpr(jax.grad(mutual_info.club_exact, argnums=(0, 1, 2)))(*spec)
    assert max(v.aval.size for e in jaxpr.jaxpr.eqns for v in e.outvars) <= 256 * 2048
