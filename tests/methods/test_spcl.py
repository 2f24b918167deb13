"""SpCL: its filter against the N x N definition, its loss against loops, the memory, hidden identities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import StopAt, assert_same_run, config_of, lines, load, newest, train
from small import difference, drawn, random_batch

from reid_jax import methods
from reid_jax.data.records import Dataset, Record
from reid_jax.data.rows import hide
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import cluster
from reid_jax.fields import namespace
from reid_jax.methods import spcl
from reid_jax.methods.spcl import labels as filters
from reid_jax.train.run import info_of


def settings(**fields):
    tree = methods.defaults("spcl")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), head="contrast", pool="avg")
    tree["optim"].update(lr=1e-2, milestones=(), eps=1e-3)
    tree["spcl"].update(rounds=2, steps=3, k1=6, k2=2, min_samples=2, eps=0.5, gap=0.1)
    tree["spcl"].update(fields)
    return namespace(tree)


def dataset(order, seed=0, first=20):
    """Five identities of a source (none with first=0), then those of a target, named in this order."""
    train = [Record(f"/a/{n}.png", n // 4, n % 3) for n in range(first)]
    train += [Record(f"/b/{n}.png", 5 + int(p), 3 + n % 4, domain=1) for n, p in enumerate(order)]
    names = tuple(f"c{c}" for c in range(7))
    return hide(Dataset("a+b", "/", tuple(train), (), (), names, domain_names=("a", "b")), first, seed)


ORDER = np.arange(24) // 4
INFO = info_of(dataset(ORDER))
ALONE = info_of(dataset(ORDER, first=0))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- labels


def naive(tight, labels, loose, threshold, share):
    """The filter as it is defined, by sets of every image."""

    def sets(labels):
        return [{j for j in range(len(labels)) if j == i or labels[i] == labels[j] >= 0} for i in rows]

    rows = range(len(labels))
    a, t, l = sets(labels), sets(tight), sets(loose)  # noqa: E741
    comp, indep = (
        [np.float32(1 - np.float32(len(x & y) / len(x | y))) for x, y in zip(a, b, strict=True)]
        for b in (t, l)
    )
    of = [[min(score[j] for j in a[i]) for i in rows] for score in (comp, indep)]
    if threshold < 0:
        clusters = sorted(of[1][min(x)] for x in {frozenset(x) for x in a} if len(x) > 1)
        threshold = clusters[min(len(clusters) - 1, round(share * len(clusters)))]
    kept = [of[1][i] <= threshold and comp[i] <= of[0][i] for i in rows]
    together = [[kept[i] and kept[j] and j in a[i] or i == j for j in rows] for i in rows]
    return np.array(together), threshold


@pytest.mark.parametrize("seed", range(6))
def test_the_filter_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 6, 40)
    tight = np.where(rng.random(40) < 0.2, 7 + labels, labels)
    loose = np.where(rng.random(40) < 0.7, labels // 2, labels)
    want, threshold = naive(tight, labels, loose, -1.0, 0.5)
    got, set_to, *_ = filters.refined(tight, labels, loose, -1.0, 0.5)
    assert set_to == threshold and 0 < want.sum(1).max() > 1
    assert np.array_equal(got[:, None] == got, want)
    want, _ = naive(tight, labels, loose, 0.3, 0.5)  # of an earlier round
    got, kept, *_ = filters.refined(tight, labels, loose, 0.3, 0.5)
    assert kept == 0.3 and np.array_equal(got[:, None] == got, want)


def test_what_reliability_and_outliers_do():
    labels = np.array([0, 0, 0, 1, 1, -1])
    tight, loose = np.array([0, 0, 1, 2, 2, -1]), np.array([0, 0, 0, 0, 0, -1])
    none = filters.refined(tight, labels, loose, 0.1, reliability="none")[0]
    assert none.tolist() == [0, 0, 0, 1, 1, 2]
    compact = filters.refined(tight, labels, loose, 0.1, reliability="compactness")[0]
    assert compact.tolist() == [0, 0, 3, 1, 1, 2]  # the third is not in the tight cluster
    apart = filters.refined(tight, labels, loose, 0.1, reliability="independence")[0]
    assert len(set(apart.tolist())) == 6  # both clusters join in the loose one
    assert cluster.without_singles(compact).tolist() == [0, 0, -1, 1, 1, -1]
    only = np.full(4, -1)
    labels, threshold, *_ = filters.refined(only, only, only, -1.0)
    assert len(set(labels.tolist())) == 4 and threshold < 0  # left to a later round


def test_labels_of_features():
    """People apart get a class each; what is dropped has none; labels have no gaps."""
    rng, people = np.random.default_rng(0), np.arange(30) % 5
    features = unit(3 * rng.normal(size=(5, 16))[people] + 0.1 * rng.normal(size=(30, 16)))
    features[0] = unit(rng.normal(size=16))
    labels, threshold = filters.find_labels(features, settings().spcl, -1.0)
    assert threshold >= 0 and sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    assert np.count_nonzero(labels == labels[0]) == 1
    dropped, _ = filters.find_labels(features, settings(outliers="drop").spcl, -1.0)
    assert dropped[0] == -1 and set(dropped.tolist()) == set(range(-1, dropped.max() + 1))


# ---- loss and memory


def test_the_loss_is_the_loop():
    rng = np.random.default_rng(0)
    memory, f = unit(rng.normal(size=(12, 5))), unit(rng.normal(size=(4, 5)))
    label, place = np.array([0, 1, 2, 4, 4, 4, 1, 2, 7, 7, -1, -1]), np.array([3, 0, 8, 7])
    hybrid = jax.jit(spcl.hybrid, static_argnums=4)
    losses, right = hybrid(np.float32(f), np.float32(memory), label, place, 0.05)
    used = [k for k in range(12) if (label == k).any()]
    for i in range(4):
        e = {k: np.exp(np.mean(memory[label == k] @ f[i]) / 0.05) for k in used}
        p = e[label[place[i]]] / (sum(e.values()) + 1e-6)
        np.testing.assert_allclose(losses[i], -np.log(p + 1e-6), rtol=1e-4)
        assert right[i] == (max(e, key=e.get) == label[place[i]])
    assert losses.max() < 13.9
    longer = np.concatenate([memory, memory[:3]]), np.append(label, [-1, -1, -1])
    more, _ = hybrid(np.float32(f), np.float32(longer[0]), longer[1], place, 0.05)
    np.testing.assert_allclose(more, losses, rtol=1e-5)  # places without a class change nothing


@pytest.fixture(scope="module")
def adapting():
    """(Method, a state in a round, a batch of both, the state after a step, metrics)."""
    method = spcl.Spcl(settings(), INFO)
    state = drawn(method)
    labels = jnp.asarray(np.arange(24) // 3, jnp.int32)
    state = state._replace(memory={**state.memory, "labels": labels})
    batch = {"source": random_batch(size=8) | {"pid": np.repeat(np.arange(2, dtype=np.int32), 4)}}
    batch["target"] = random_batch(1, size=8) | {"index": np.int32([0, 1, 2, 2, 9, 10, 11, 9])}
    return method, state, batch, *jax.jit(method.step)(state, batch)


def test_a_step_moves_the_places_of_its_rows(adapting):
    method, state, batch, new, metrics = adapting
    image, _, count = method.rows(batch)
    f = jax.jit(lambda v: method.encoder.apply(v, image, True)[0].test)(state.nets["net"])
    want = np.array(state.memory["features"])
    for row, place in enumerate([0] * 4 + [1] * 4 + [5 + i for i in (0, 1, 2, 2, 9, 10, 11, 9)]):
        want[place] = unit(0.2 * want[place] + 0.8 * np.asarray(f[row]))
    np.testing.assert_allclose(new.memory["features"], want, atol=1e-4)
    assert count == 8 and metrics["singles"] == 0 and new.memory["threshold"] == state.memory["threshold"]
    label = spcl.classes(state.memory["labels"], 5)
    assert label.tolist() == list(range(5)) + [5 + i // 3 for i in range(24)]
    np.testing.assert_allclose(metrics["loss"], metrics["source"] + metrics["target"], rtol=1e-5)


def test_source_and_target_have_norms_of_their_own(adapting):
    method, state, batch, new, _ = adapting
    var = new.nets["net"]["batch_stats"]["neck"]["var"]
    assert var.shape == (2, 8) and difference(var[0], var[1]) > 1e-4 and method.nets == ("net", "source")
    image = batch["target"]["image"]
    ours, theirs = (method.embed(new, image, net) for net in method.nets)
    assert difference(ours, theirs) > 1e-4
    plain = spcl.Spcl(settings(dsbn=False), INFO)
    assert plain.nets == ("net",)
    shapes = jax.eval_shape(plain.init, jax.random.key(0))
    assert shapes.nets["net"]["params"]["neck"]["scale"].shape == (8,)
    assert spcl.Spcl(settings(dsbn_neck_bias=True), INFO).network.frozen == ()
    assert method.network.frozen == ("^neck/bias$",)


def test_the_first_memory(adapting):
    """Unit means of every source identity's features, unit features of the target, by the first weights."""
    method, state = adapting[:2]
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(20, 8)), rng.normal(size=(24, 8))
    seen = []

    def extract(function, variables, labelled=False):
        seen.append((labelled, function.keywords["net"]))
        return source if labelled else target

    memory = method.inherit(state, None, extract).memory["features"]
    assert seen == [(False, "net"), (True, "source")] and memory.dtype == np.float32
    for pid in range(5):
        np.testing.assert_allclose(memory[pid], unit(source[4 * pid : 4 * pid + 4].mean(0)), rtol=1e-4)
    np.testing.assert_allclose(memory[5:], unit(target), rtol=1e-5)


def test_rounds_label_from_the_memory(adapting):
    method, state = adapting[:2]
    part = method.part(1)
    assert part.features is None and not part.singles and part.round == 2 and method.part(2) is None
    rng = np.random.default_rng(0)
    people = unit(rng.normal(size=(6, 8)))[ORDER] + 0.05 * rng.normal(size=(24, 8))
    memory = {**jax.tree.map(np.asarray, state.memory)}
    memory["features"] = np.concatenate([memory["features"][:5], np.float32(unit(people))])
    new = part.begin(state._replace(memory=memory), None)
    assert cluster.quality(new.memory["labels"], ORDER)["ari"] == 100 and new.memory["threshold"] >= 0
    other = part.begin(new._replace(memory={**new.memory, "threshold": np.float32(0.4)}), None)
    assert other.memory["threshold"] == np.float32(0.4)
    assert np.array_equal(new.memory["features"], memory["features"])


@pytest.mark.parametrize("outliers", ["single", "drop"])
def test_places_of_classes(adapting, outliers):
    """Rounds label what the network sees; a class has one place, the mean of its images at first."""
    method, state = spcl.Spcl(settings(memory="cluster", outliers=outliers), INFO), adapting[1]
    part, rng = method.part(0), np.random.default_rng(0)
    assert part.features == () and not part.singles
    people = unit(rng.normal(size=(6, 8)))[ORDER] + 0.05 * rng.normal(size=(24, 8))
    people[-1] = unit(rng.normal(size=8))  # alone
    new = part.begin(jax.tree.map(np.asarray, state), np.float32(people)).memory
    labels, alone = new["labels"], new["labels"][-1]
    assert (alone == -1) == (outliers == "drop") == (np.count_nonzero(labels == alone) > 1)
    assert np.array_equal(new["features"][:5], state.memory["features"][:5])
    for k in range(24):
        mean = unit(people)[labels == k].sum(0)
        np.testing.assert_allclose(new["features"][5 + k], unit(mean) if mean.any() else 0, atol=1e-5)
    used = spcl.classes(spcl.in_use(jnp.asarray(labels)), 5)
    assert used.tolist() == [n if n < 6 + labels.max() else -1 for n in range(29)]
    streams = method.streams(methods.State(0, {}, {}, {"labels": labels}), 0)
    rows = streams["target"].sampler.batch(0)
    target = random_batch(size=8) | {"pid": streams["target"].columns["pid"][rows], "index": rows}
    _, place, count = method.rows({"source": random_batch(size=8), "target": target})
    assert count == 8 and np.array_equal(place[8:], 5 + labels[rows])


def what_is_seen(data):
    """All that the method reads of a data set: Info, and batches for some labels."""
    info = info_of(data)
    memory = {"labels": np.arange(24, dtype=np.int32) % 5}
    made = spcl.Spcl(settings(), info).part(1).streams(methods.State(0, {}, {}, memory))
    seen = [*info.unlabelled[:4], info.num_pids, info.num_cams, info.num_images]
    for stream in made.values():
        seen += [stream.sampler.epoch(e) for e in range(2)] + list(stream.columns.values())
    return seen, set(made)


@pytest.mark.parametrize("first", [0, 20])
def test_identities_of_the_target_are_never_read(first):
    plain, other = (dataset(o, first=first) for o in (ORDER, np.random.default_rng(0).permutation(ORDER)))
    assert plain.truth.pid.tolist() != other.truth.pid.tolist()
    (seen, made), (again, _) = what_is_seen(plain), what_is_seen(other)
    assert all(np.array_equal(a, b) for a, b in zip(seen, again, strict=True))
    assert made == ({"source", "target"} if first else {"target"})


@pytest.mark.parametrize("cross", [False, True])
def test_cameras_are_read_where_asked(cross):
    config, drawn_by = settings(), []
    config.data.cross_camera = cross
    for camid in (INFO.unlabelled.camid, np.roll(INFO.unlabelled.camid, 1)):
        info = INFO._replace(unlabelled=INFO.unlabelled._replace(camid=camid))
        state = methods.State(0, {}, {}, {"labels": np.arange(24) % 3})
        sampler = spcl.Spcl(config, info).streams(state, 0)["target"].sampler
        drawn_by.append(np.concatenate([sampler.epoch(e).ravel() for e in range(8)]))
    assert np.array_equal(*drawn_by) != cross


def test_what_cannot_be():
    for fields, message in (
        (dict(reliability="some"), "spcl.reliability"), (dict(outliers="keep"), "spcl.outliers"),
        (dict(gap=0.5), "spcl.gap is 0.5"), (dict(temperature=0), "spcl.temperature"),
        (dict(share=2), "share"), (dict(memory="class"), "spcl.memory"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            spcl.Spcl(settings(**fields), INFO)
    config = settings()
    config.data.source_ids = 3
    with pytest.raises(ConfigError, match="source_ids x source_instances are 12 images, ids x instances 8"):
        spcl.Spcl(config, INFO)
    spcl.Spcl(config, ALONE)
    config = settings()
    config.model.head = "global"
    with pytest.raises(ConfigError, match="model.head"):
        spcl.Spcl(config, INFO)
    with pytest.raises(DataError, match="lower config.data.ids"):
        spcl.Spcl(settings(), ALONE).part(0).streams(methods.State(0, {}, {}, {"labels": np.full(24, -1)}))


# ---- runs


@pytest.mark.slow
def test_a_run_between_two_sets(tmp_path):
    """Resumed in the middle of a round and with other hidden identities: the same bits."""
    config = config_of("spcl.py:smoke", train__log_every=1, report__enabled=False)
    data = load(config, tmp_path / "data")
    last = train(config, data, tmp_path / "unbroken")
    made = lines(tmp_path / "unbroken", "labels")
    assert [x["round"] for x in made] == [1, 2] and all(0 <= x["labelled"] <= 100 for x in made)
    assert {x["net"] for x in lines(tmp_path / "unbroken", "eval")} == {"net", "source"} and last.done()
    train(config, data, tmp_path / "run", StopAt(4))
    assert newest(tmp_path / "run")[1]["taken"] == 1
    train(config, data, tmp_path / "run")
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")
    truth = data.truth._replace(pid=np.random.default_rng(0).permutation(data.truth.pid))
    train(config, dataclasses.replace(data, truth=truth), tmp_path / "other")
    (arrays, _), (others, _) = newest(tmp_path / "unbroken"), newest(tmp_path / "other")
    assert all(np.array_equal(value, others[name]) for name, value in arrays.items())
    assert lines(tmp_path / "unbroken", "train") == lines(tmp_path / "other", "train")
