"""PPLR: agreement and losses against loops, what a round begins with, its head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import drawn

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import pplr

RNG = np.random.default_rng(0)


def config(**fields):
    tree = methods.defaults("pplr")
    tree["data"].update(height=32, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), head="necks", stripes_parts=2, pool="avg")
    tree["pplr"].update(max_clusters=7, k1=6, k2=2, min_samples=2, neighbours=3, cameras=True)
    tree["pplr"].update(fields)
    return namespace(tree)


CAMID = np.arange(24, dtype=np.int32) % 3
NOBODY = np.full(24, -1, np.int32)
INFO = methods.Info(0, 3, num_images=24, unlabelled=Rows(0, NOBODY, CAMID, 0 * CAMID, {}))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_agreement_is_the_overlap_of_neighbours():
    f, parts = RNG.normal(size=(12, 4)), RNG.normal(size=(2, 12, 4))
    parts[1, 5] = parts[1, 3]  # copies

    def near(x, i):
        similar = unit(x) @ unit(x)[i]
        return set([j for j in np.argsort(-similar, kind="stable") if j != i][:3])

    got = pplr.agreement(f, parts, 3)
    for i in range(12):
        for p in range(2):
            a, b = near(f, i), near(parts[p], i)
            assert abs(got[i, p] - len(a & b) / len(a | b)) < 1e-6
    assert got.shape == (12, 2) and np.allclose(pplr.agreement(f, [f], 3), 1)


@pytest.mark.slow  # beside the recorded case
def test_losses_are_the_loops():
    x, parts, trust = RNG.normal(size=(4, 6)), RNG.normal(size=(2, 4, 6)), RNG.random((4, 2))
    label = np.array([0, 3, 1, 1])
    p = np.exp(parts[..., :4]) / np.exp(parts[..., :4]).sum(2, keepdims=True)  # four classes in use
    q = np.exp(x[:, :4]) / np.exp(x[:, :4]).sum(1, keepdims=True)
    ce, smooth = [], []
    for i in range(4):
        share = np.exp(trust[i]) / np.exp(trust[i]).sum()
        target = 0.7 * np.eye(4)[label[i]] + 0.3 * (share[0] * p[0, i] + share[1] * p[1, i])
        ce.append(-(target * np.log(q[i])).sum())
        for j in range(2):
            away = (0.25 * np.log(0.25 / p[j, i])).sum()
            smooth.append(-trust[i, j] * np.log(p[j, i, label[i]]) + (1 - trust[i, j]) * away)
    args = [jnp.float32(v) for v in (x, parts, trust)]
    np.testing.assert_allclose(pplr.refined(*args, jnp.asarray(label), 4, 0.7), np.mean(ce), rtol=1e-5)
    np.testing.assert_allclose(pplr.smoothed(*args[1:], jnp.asarray(label), 4), np.mean(smooth), rtol=1e-5)
    grads = jax.grad(lambda z: pplr.refined(args[0], z, args[2], jnp.asarray(label), 4, 0.7))(args[1])
    assert not np.asarray(grads).any()  # the parts only tell


@pytest.mark.slow  # beside the recorded case
def test_cameras_alone_are_the_positives():
    proxies, f = unit(RNG.normal(size=(5, 4))), unit(RNG.normal(size=(2, 4)))
    memory = dict(proxies=proxies, proxy_cluster=np.array([0, 0, 1, -1, 1]))
    memory |= dict(proxy_camera=np.array([0, 1, 0, -1, 0]))
    fields = config(hard=1, camera_temperature=0.5).pplr
    got = pplr.cameras(jnp.float32(f), memory, np.array([0, 1]), np.array([0, 0]), fields)
    s = f[0] @ proxies.T / 0.5
    want = np.log(np.exp([s[1], max(s[2], s[4])]).sum()) - s[1]  # the second row has no other camera
    np.testing.assert_allclose(got, want / 2, rtol=1e-4)


def test_a_round_begins_with_the_means_of_every_head():
    method = pplr.Pplr(config(), INFO)
    state = jax.tree.map(np.asarray, drawn(method))
    people, size = np.arange(24) // 6, state.memory["proxies"].shape[2]
    one = np.float32(3 * RNG.normal(size=(4, 3 * size))[people] + 0.02 * RNG.normal(size=(24, 3 * size)))
    new = method.begin(state, {"all": one}, 1)
    labels = new.memory["labels"]
    assert int(new.memory["used"]) == 4 and int(new.memory["round"]) == 1
    for i in range(3):
        own = unit(one[:, i * size : (i + 1) * size])
        kernel = new.nets["net"]["params"][f"classifier{i}"]["kernel"]
        for k in range(4):
            np.testing.assert_allclose(kernel[:, k], unit(own[labels == k].mean(0)), atol=1e-5)
        place = np.flatnonzero((new.memory["proxy_cluster"] == 2) & (new.memory["proxy_camera"] == 1))
        mean = unit(own[(labels == 2) & (CAMID == 1)].mean(0))
        np.testing.assert_allclose(new.memory["proxies"][i, place[0]], mean, atol=1e-5)
    image = RNG.integers(0, 256, (2, 32, 8, 3), np.uint8)
    every, test = (np.asarray(method.embed(state, image, net)) for net in ("all", "net"))
    assert every.shape == (2, 3 * size)
    np.testing.assert_allclose(unit(every[:, :size]), test, atol=1e-5)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="pplr.beta is 2"):
        pplr.Pplr(config(beta=2), INFO)
    wrong = config()
    wrong.model.pool = "auto"
    with pytest.raises(ConfigError, match="config.model.pool=avg"):
        pplr.Pplr(wrong, INFO)
    wrong.model.head = "global"
    with pytest.raises(ConfigError, match="model.head is 'global'"):
        pplr.Pplr(wrong, INFO)
