"""ICE: its losses against loops, what a round begins with, who moves, blur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_batch

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.fields import namespace
from reid_jax.methods import _rounds, ice
from reid_jax.models.heads import Branches


def config(**fields):
    tree = methods.defaults("ice")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), head="contrast")
    tree["model"].update(narrow_dim=8, narrow_stripes=1)
    tree["ice"].update(max_clusters=7, k1=6, k2=2, min_samples=2, eps=0.5, blur_sigma=(0.1, 0.4))
    tree["ice"].update(fields)
    return namespace(tree)


CAMID = np.arange(24, dtype=np.int32) % 3
NOBODY = np.full(24, -1, np.int32)
INFO = methods.Info(0, 3, num_images=24, unlabelled=Rows(0, NOBODY, CAMID, 0 * CAMID, {}))
RNG = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.slow  # beside the recorded case
def test_losses_on_instances_are_the_loops():
    fields, pid = config().ice, np.repeat(np.arange(3), 2)
    q, k, w = (unit(RNG.normal(size=(6, 5))) for _ in range(3))
    hard, alike = [], []
    for i in range(6):
        s = q[i] @ k.T
        least = min(s[pid == pid[i]]) / 0.1
        every = [least, *(s[pid != pid[i]] / 0.1)]
        hard.append(np.log(np.exp(every).sum()) - least)
        p, r = (np.exp(x / 0.4) / np.exp(x / 0.4).sum() for x in (w[i] @ w.T, s))
        alike.append((p * np.log(p / r)).sum())
    got = ice.instances(*(jnp.float32(x) for x in (q, k, w)), jnp.asarray(pid), fields)
    np.testing.assert_allclose(got, [np.mean(hard), np.mean(alike)], rtol=1e-4)


@pytest.mark.slow
def test_blur_is_a_gaussian_and_keeps_constant_pictures():
    image = np.float32(RNG.random((2, 9, 9, 1)))
    got = ice.gaussian(jnp.asarray(image), jnp.float32([0.05, 0.8]), 3)
    np.testing.assert_allclose(got[0], image[0], atol=1e-5)  # next to no width
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.8**2))
    weights /= weights.sum()
    want = np.einsum("i,j,ij->", weights, weights, image[1, 1:8, 1:8, 0])
    np.testing.assert_allclose(got[1, 4, 4, 0], want, rtol=1e-5)
    np.testing.assert_allclose(ice.gaussian(jnp.ones((1, 5, 5, 3)), jnp.ones(1), 3), 1, rtol=1e-6)


def test_a_round_begins_with_means_and_proxies_by_camera():
    method = ice.Ice(config(), INFO)
    people = np.arange(24) // 6
    features = np.float32(unit(RNG.normal(size=(4, 8)))[people] * 3 + 0.02 * RNG.normal(size=(24, 8)))
    memory = method.begin(methods.State(0, {}, {}, {}), features).memory
    labels, used = memory["labels"], int(memory["used"])
    assert used == 4 and len({*zip(labels.tolist(), people.tolist(), strict=True)}) == 4
    for k in range(4):
        f = unit(features[labels == k])
        np.testing.assert_allclose(memory["centres"][k], f.mean(0), atol=1e-5)
        for camera in range(3):
            own = (memory["proxy_cluster"] == k) & (memory["proxy_camera"] == camera)
            assert own.sum() == 1
            mean = unit(unit(features[(labels == k) & (CAMID == camera)]).mean(0))
            np.testing.assert_allclose(memory["proxies"][own][0], mean, atol=1e-5)
    assert (memory["proxy_cluster"] >= 0).sum() == 12 and not memory["centres"][4:].any()


def test_proxies_of_the_largest_clusters_find_a_place(caplog):
    labels, camid = np.array([0, 1, 1, 1, -1, 2, 2, 1]), np.array([0, 0, 1, 2, 0, 1, 1, 0])
    found = _rounds.proxies(np.float32(RNG.normal(size=(8, 3))), labels, camid, 4, "ice")
    assert found["proxy_cluster"].tolist() == [1, 1, 1, 2]  # not that of cluster 0, of one image
    assert found["proxy_camera"].tolist() == [0, 1, 2, 1]
    assert "5 proxies, of which 4 are kept (config.ice.max_proxies)" in caplog.text
    nothing = _rounds.proxies(np.ones((2, 3)), np.array([-1, -1]), np.zeros(2, int), 2, "ice")
    assert (nothing["proxy_cluster"] == -1).all() and not nothing["proxies"].any()


def test_proxies_of_the_cluster_attract_those_of_others_repel():
    fields = config(hard=2).ice
    proxies, q = unit(RNG.normal(size=(7, 5))), unit(RNG.normal(size=(3, 5)))
    cluster, camid, pid = np.array([0, 0, 1, 1, 2, 2, -1]), np.array([0, 0, 1]), np.array([0, 1, 2])
    want = 0
    for i in range(3):
        s = q[i] @ proxies.T / 0.07
        own = np.flatnonzero(cluster == pid[i])
        away = np.sort([s[j] for j in range(6) if cluster[j] != pid[i]])[-2:]
        total = np.log(np.exp([*s[own], *away]).sum())
        want += (total - s[own]).mean() / (camid == camid[i]).sum()
    memory = {"proxies": jnp.float32(proxies), "proxy_cluster": jnp.asarray(cluster)}
    got = ice.cameras(jnp.float32(q), {"pid": jnp.asarray(pid), "camid": jnp.asarray(camid)}, memory, fields)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.slow
def test_mean_network_sees_its_view_and_the_picture_without_gradient():
    method = ice.Ice(config(), INFO)
    batch = random_batch(size=4)
    seen = []

    def encoder(variables, image, train, key):
        seen.append((variables["params"], variables["batch_stats"], image))
        f = image[:, :, 0].mean(1) @ variables["params"]
        return Branches((), (f,), (f,), f), variables["batch_stats"] + 1

    method.encoder = method.encoder._replace(apply=encoder)
    mean = {"params": jnp.ones((3, 2)), "batch_stats": jnp.float32(0)}
    (other, weak), stats = method.taught(mean, batch, jax.random.key(0))
    assert stats == 2 and [int(s) for _, s, _ in seen] == [0, 1]
    want = method.plain(batch["image"])[:, :, 0].mean(1) @ jnp.ones((3, 2))
    np.testing.assert_allclose(weak, want, rtol=1e-5)
    assert not np.allclose(other, weak)


@pytest.mark.parametrize("sampler", ["every_camera", "gallery"])
def test_groups_of_a_batch(sampler):
    """Eight images of a cluster by 3 cameras, four at a time: all cameras, or others than the first's."""
    method = ice.Ice(config(sampler=sampler), INFO)
    state = methods.State(0, {}, {}, {"labels": np.arange(24) // 8})
    rows = method.streams(state, 0)["train"].sampler
    groups = CAMID[np.concatenate([rows.epoch(e) for e in range(9)]).reshape(-1, 4)]
    assert (len(groups) > 8) and all(len(set(g)) == 3 for g in groups.tolist()) == (sampler == "every_camera")
    assert (groups[:, 1:] != groups[:, :1]).all() == (sampler == "gallery")


def test_what_cannot_be():
    for fields, message in (
        (dict(sampler="pk"), "ice.sampler"),
        (dict(hard_temperature=0), "ice.hard_temperature"),
        (dict(blur=2), "ice.blur is 2"),
        (dict(eps=1.5), "ice.eps is 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            ice.Ice(config(**fields), INFO)
