"""ISE's supports and their loss, and cross entropy among the classes in use, against loops."""

import jax.numpy as jnp
import numpy as np

from reid_jax.losses import identity, support


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


RNG = np.random.default_rng(0)
F, CENTROIDS = unit(RNG.normal(size=(6, 5))), unit(RNG.normal(size=(4, 5)))
LABEL = np.array([0, 0, 2, 2, 1, 1])


def test_supports_go_towards_the_nearest_other_centroid():
    got = support.supports(jnp.float32(F), LABEL, jnp.float32(CENTROIDS), 0.8, used=3)
    for i in range(6):
        others = [k for k in range(3) if k != LABEL[i]]  # place 3 is not in use
        near = others[np.argmax([F[i] @ CENTROIDS[k] for k in others])]
        want = unit(F[i] + 0.4 * (CENTROIDS[near] - CENTROIDS[LABEL[i]]))
        np.testing.assert_allclose(got[i], want, atol=1e-6)
    alone = support.supports(jnp.float32(F), np.zeros(6, int), jnp.float32(CENTROIDS), 0.8, used=1)
    np.testing.assert_allclose(alone, F, atol=1e-6)  # no other cluster
    assert support.progress(0.0) == 0 and abs(support.progress(1.0, 2.0) - 1) < 1e-6


def test_supports_keep_their_label_by_the_hardest_of_every_run():
    s = unit(F + 0.1)
    values = []
    for i in range(6):
        e = np.exp(F[i] @ s.T / 0.6)
        least = min(e[LABEL == LABEL[i]])
        others = sum(max(e[j : j + 2]) for j in (0, 2, 4) if LABEL[j] != LABEL[i])
        values.append(-np.log(least / (least + others + 1e-6) + 1e-6))
    got = support.preserving(jnp.float32(F), jnp.float32(s), jnp.asarray(LABEL), 2, 0.6)
    np.testing.assert_allclose(got, np.mean(values), rtol=1e-5)


def test_classes_not_in_use_have_no_share():
    x = RNG.normal(size=(6, 5))
    got = identity.cross_entropy_used(jnp.float32(x), LABEL, 3, label_smooth=0.1)
    want = identity.cross_entropy(jnp.float32(x[:, :3]), jnp.asarray(LABEL), label_smooth=0.1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    x[:, 3:] += 100
    np.testing.assert_allclose(
        identity.cross_entropy_used(jnp.float32(x), LABEL, 3, label_smooth=0.1), want, rtol=1e-6
    )
