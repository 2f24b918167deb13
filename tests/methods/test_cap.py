"""Camera-aware proxies: losses against a loop, places, what a round begins with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import config_of
from stage_cases import facts

from reid_jax.errors import ConfigError, DataError
from reid_jax.fields import namespace
from reid_jax.losses import identity
from reid_jax.methods import State, cap

FIELDS = namespace(cap.FIELDS | {"hard": 2})


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(cameras=3, rows=8, seed=0):
    """(memory of random proxies with some places unused, unit features f[B,D], places of the rows)."""
    rng = np.random.default_rng(seed)
    labels, camid = rng.integers(-1, 4, 30), rng.integers(0, cameras, 30)
    memory = cap.proxies_of(np.float32(rng.normal(size=(30, 6))), labels, camid, 20)
    chosen = rng.permutation(np.flatnonzero(labels >= 0))[:rows]
    return memory, np.float32(unit(rng.normal(size=(rows, 6)))), memory["place"][chosen]


def naive(memory, f, place, fields):
    """The two losses, camera by camera and row by row."""
    used = np.flatnonzero(memory["cluster"] >= 0)
    cluster, camera, sums = memory["cluster"], memory["camera"], np.zeros(2)
    for c in set(camera[place].tolist()):
        rows = np.flatnonzero(camera[place] == c)
        for i in rows:
            s = f[i] @ memory["proxies"].T / fields.temperature
            total = np.log(sum(np.exp(s[j]) for j in used if camera[j] == c))
            own = [j for j in used if cluster[j] == cluster[place[i]]]
            others = sorted((j for j in used if j not in own), key=lambda j: -s[j])[: fields.hard]
            both = np.log(np.exp(s[own + others]).sum())
            sums += np.array([total - s[place[i]], both - s[own].mean()]) / len(rows)
    return sums


def test_losses_are_the_loop_on_one_device_and_on_two():
    memory, f, place = problem()
    found = cap.losses(f, memory, place, FIELDS)
    np.testing.assert_allclose(found[:2], naive(memory, f, place, FIELDS), rtol=1e-5)
    parts = f.reshape(2, 4, -1), place.reshape(2, 4)
    arrays = jax.tree.map(jnp.asarray, memory)
    step = jax.pmap(lambda f, place: cap.losses(f, arrays, place, FIELDS, "device"), "device")
    np.testing.assert_allclose([x.mean() for x in step(*parts)], found, rtol=1e-5)


def test_with_one_camera_the_loss_within_it_is_plain_contrast():
    memory, f, place = problem(cameras=1)
    scores = np.where(memory["cluster"] >= 0, f @ memory["proxies"].T / FIELDS.temperature, -np.inf)
    intra = cap.losses(f, memory, place, FIELDS)[0]
    np.testing.assert_allclose(intra, identity.cross_entropy(scores, place), rtol=1e-6)


def test_places_and_proxies():
    labels, camid = np.array([1, 0, 1, -1, 1, 0]), np.array([2, 0, 0, 1, 2, 1])
    cluster, camera, place = cap.places_of(labels, camid)
    assert cluster.tolist() == [0, 1, 0, 1] and camera.tolist() == [0, 0, 1, 2]
    assert place.tolist() == [3, 0, 1, -1, 3, 2]
    features = np.random.default_rng(0).normal(size=(6, 4))
    memory = cap.proxies_of(features, labels, camid, 5)
    np.testing.assert_allclose(memory["proxies"][3], unit(unit(features[0]) + unit(features[4])), atol=1e-6)
    assert memory["cluster"].tolist() == [0, 1, 0, 1, -1] and not memory["proxies"][4].any()
    assert [len(x) for x in cap.places_of(np.full(6, -1), camid)] == [0, 0, 6]


def test_the_largest_clusters_are_kept_where_places_are_few(caplog):
    labels, camid = np.array([0, 1, 1, 1, 2, 2, -1]), np.arange(7) % 3
    assert cap.fitting(labels, camid, 6) is labels and not caplog.text
    assert cap.fitting(labels, camid, 5).tolist() == [-1, 0, 0, 0, 1, 1, -1]
    assert cap.fitting(labels, camid, 2).tolist() == [-1] * 7 and "max_proxies" in caplog.text


@pytest.fixture(scope="module")
def market():
    """The method with Market's schedule and batches on a narrow net, of 96 made-up rows by 2 cameras."""
    config = config_of("cap.py:smoke")
    config.optim, config.data.ids, config.data.instances = config_of("cap.py:market").optim, 8, 4
    config.cap.rounds, config.cap.k1 = 50, 6
    return cap.Cap(config, facts(config, pids=12, cams=2, axis_name=None))


def test_the_rate_goes_by_rounds_of_any_length(market):
    size = jax.eval_shape(market.init, jax.random.key(0)).memory["proxies"].shape[1]
    people = np.random.default_rng(0).normal(size=(12, size))
    opt = {"net": (optax.ScaleByScheduleState(np.int32(7)), np.float32(5))}
    new = market.begin(State(np.int32(7), {}, opt), people[np.arange(96) // 8], 12)
    assert new.opt["net"][0].count == 12 * 3 and new.opt["net"][1] == 5
    assert (new.memory["round"], new.memory["begun"], new.memory["labels"].max()) == (12, 7, 11)
    assert market.part(0).steps(new) == 3
    rates = [float(market.rate(e * 3)) for e in (0, 4, 10, 20, 40)]
    factors = np.array([0.01, 0.01 * 0.6 + 0.4, 1, 0.1, 0.01])
    np.testing.assert_allclose(rates, 3.5e-4 * factors, rtol=1e-5)


def test_batches_are_of_proxies(market):
    labels, camid = np.arange(96) // 8, market.info.unlabelled.camid
    stream = market.streams(State(0, {}, {}, {"labels": labels}), 0)["train"]
    chosen = stream.sampler.batch(0)
    assert len(set(zip(labels[chosen], camid[chosen], strict=True))) == 8 and len(set(chosen)) == 32
    for useless in (np.full(96, -1), np.zeros(96, int)):
        with pytest.raises(DataError, match="clusters: change config.cap.eps"):
            market.streams(State(0, {}, {}, {"labels": useless}), 0)


def test_the_published_settings():
    t = config_of("cap.py:market")
    assert (t.data.ids, t.data.instances, t.data.erase_area, t.model.pool) == (8, 4, (0.02, 0.2), "avg")
    assert (t.optim.lr, t.optim.weight_decay, t.optim.milestones, t.cap.rounds) == (
        3.5e-4,
        5e-4,
        (20, 40),
        50,
    )
    assert (t.cap.k1, t.cap.k2, t.cap.eps, t.cap.min_samples) == (20, 6, 0.5, 4)
    assert (t.cap.momentum, t.cap.temperature, t.cap.hard, t.cap.inter_from) == (0.2, 0.07, 50, 5)
    assert not t.model.stem_relu


def test_settings_that_cannot_be():
    for fields, text in (
        (dict(temperature=0.0), "temperature"),
        (dict(eps=1.0), "cap.eps"),
        (dict(inter_from=-2), "inter_from"),
        (dict(intra=False), "set config.cap.inter_from=0"),
    ):
        with pytest.raises(ConfigError, match=text):
            cap.check(namespace(cap.FIELDS | fields))
