"""MMT: who moves whom, its loss against a loop, labels, hidden identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import difference, drawn, random_batch

from reid_jax import methods
from reid_jax.data.records import Dataset, Record
from reid_jax.data.rows import hide
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import cluster
from reid_jax.fields import namespace
from reid_jax.methods import mmt
from reid_jax.methods.mmt import labels as labelling
from reid_jax.methods.mmt import terms
from reid_jax.models.heads import Branches
from reid_jax.train.run import info_of


def settings(**fields):
    tree = methods.defaults("mmt")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), neck="bnneck")
    tree["model"].update(narrow_dim=8, narrow_stripes=1)
    tree["loss"].update(feature="before_bn", triplet="softmax", margin=0.0, label_smooth=0.1)
    tree["optim"].update(lr=1e-2, milestones=(), eps=1e-3)
    tree["mmt"].update(rounds=2, steps=3, clusters=5, restarts=2, k1=6, k2=2, min_samples=2)
    tree["mmt"].update(fields)
    return namespace(tree)


def dataset(order, seed=0):
    """Five identities of a source, then those of a target, named in this order."""
    train = [Record(f"/a/{n}.png", n // 4, n % 3) for n in range(20)]
    train += [Record(f"/b/{n}.png", 5 + int(p), 3 + n % 4, domain=1) for n, p in enumerate(order)]
    names = tuple(f"c{c}" for c in range(7))
    return hide(Dataset("a+b", "/", tuple(train), (), (), names, domain_names=("a", "b")), 20, seed)


ORDER = np.arange(24) // 4
INFO = info_of(dataset(ORDER))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def adapt():
    """(Method, its state in a round) of stage "adapt"; 4 of the 5 places are in use."""
    method = mmt.Adapt(settings(), INFO)
    state = drawn(method)
    others = drawn(method, seed=1).nets  # teachers that are no copies
    nets = state.nets | {teacher: others[student] for student, teacher in method.pairs}
    memory = state.memory | {"used": jnp.int32(4), "authority": jnp.ones(2)}
    return method, state._replace(nets=nets, step=jnp.int32(4), memory=memory)


def statistics(method):
    """Function of (variables, images): running statistics after a pass in training."""
    return jax.jit(lambda net, image: method.encoder.apply(net, image, True)[1])


@pytest.mark.slow
def test_students_by_gradient_teachers_by_their_average(adapt):
    method, state = adapt
    batch = {"target": random_batch(size=8) | {"pid": np.arange(8, dtype=np.int32) // 2}}
    new, metrics = jax.jit(method.step)(state, batch)
    assert new.opt.keys() == set(method.students) and int(new.step) == 5
    assert all(np.isfinite(v) for v in metrics.values())
    views, after_pass = [method.view(batch["target"], i) for i in range(2)], statistics(method)
    for (student, teacher), view in zip(method.pairs, views, strict=True):
        old, moved = state.nets[teacher], new.nets[teacher]
        mean = jax.tree.map(lambda t, s: 0.8 * t + 0.2 * s, old["params"], new.nets[student]["params"])
        assert difference(mean, moved["params"]) < 1e-6  # 1 - 1 / (4 + 1)
        assert difference(after_pass(old, view), moved["batch_stats"]) < 1e-5
        assert difference(state.nets[student]["params"], new.nets[student]["params"]) > 1e-3


def test_no_gradient_reaches_a_teacher(adapt):
    method, state = adapt
    pid, rng = jnp.arange(8) // 2, np.random.default_rng(0)
    views = [jnp.asarray(rng.normal(size=(8, 16, 8, 3)), jnp.float32) for _ in range(2)]

    def loss(params):
        nets = {n: {**v, "params": params[n]} for n, v in state.nets.items()}
        taught, _ = method.forward(nets, method.teachers, views, 4)
        return method.loss(nets, taught, views, pid, state.memory)[0]

    grads = jax.jit(jax.grad(loss))({n: v["params"] for n, v in state.nets.items()})
    for name, grad in grads.items():
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grad))
        assert (largest > 0) == (name in method.students), name
    unused = grads["student1"]["classifier"]["kernel"][:, 4:]
    assert unused.shape == (8, 1) and not unused.any()


def test_terms_are_the_loops(adapt):
    """Cross entropies over the places in use, triplets on the student's hardest pairs."""
    method, rng = adapt[0], np.random.default_rng(0)
    pid, f, g = np.repeat(np.arange(3), 2), rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    x[:, 3:] = y[:, 3:] = terms.NEVER

    def branches(logits, feature):
        return Branches((jnp.float32(logits),), (jnp.float32(feature),), (jnp.zeros((6, 4)),), None)

    out, teacher, pid_ = branches(x, f), branches(y, g), jnp.asarray(pid)
    loss = method.config.loss
    hard_ = jax.jit(lambda *a: terms.by_labels(*a, loss))(out, pid_)
    said = jax.jit(lambda *a: terms.by_teachers(*a, loss))([out, out], [teacher, teacher], pid_)
    assert not said[0, 0].any() and not said[1, 1].any() and np.array_equal(said[0, 1], said[1, 0])
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (x[:, :3], y[:, :3]))
    ce = np.mean([-0.9 * np.log(p[i, pid[i]]) - 0.1 * np.log(p[i]).mean() for i in range(6)])
    soft_ce, hard, soft = -(q * np.log(p)).sum(1).mean(), [], []
    for i in range(6):
        near, aims = (np.linalg.norm(z - z[i], axis=1) for z in (f, g))
        pair = [np.where(pid == pid[i], near, -1).argmax(), np.where(pid != pid[i], near, 99).argmin()]
        log_p = near[pair] - np.log(np.exp(near[pair]).sum())
        target = np.exp(aims[pair])
        hard.append(-log_p[1])
        soft.append(-(target / target.sum() * log_p).sum())
    np.testing.assert_allclose(hard_, [ce, np.mean(hard)], rtol=1e-4)
    np.testing.assert_allclose(said[0, 1], [soft_ce, np.mean(soft)], rtol=1e-4)


def test_the_loss_weighs_every_pair_by_its_teacher(monkeypatch):
    """Three networks: what a teacher says counts by its authority, halved; nothing to its own student."""
    method, rng = mmt.Adapt(settings(backbones=("",) * 3, authority="kmeans"), INFO), np.random.default_rng(0)
    assert method.nets == ("mean", *method.teachers, *method.students) and len(method.students) == 3
    assert method.part(0).features == method.teachers
    hard, soft = jnp.float32(rng.random((3, 2))), jnp.float32(rng.random((3, 3, 2)))
    outs = Branches((jnp.zeros((2, 5)),), (), (), None)
    method.forward = lambda *given: ({f"student{i}": outs for i in range(3)}, {})
    turn = iter(hard)
    monkeypatch.setattr(terms, "by_labels", lambda *given, **more: next(turn))
    monkeypatch.setattr(terms, "by_teachers", lambda *given, **more: soft)
    memory = {"used": 5, "authority": jnp.float32([0.5, 1, 1.5])}
    total, _, metrics, _ = method.loss({}, {}, None, jnp.zeros(2, int), memory)
    said = sum(w / 2 * soft[i].sum(0) for i, w in enumerate((0.5, 1, 1.5)))
    want = 0.5 * hard[:, 0].sum() + 0.2 * hard[:, 1].sum() + 0.5 * said[0] + 0.8 * said[1]
    np.testing.assert_allclose([total, metrics["soft_ce"]], [want, said[0]], rtol=1e-5)


def test_one_network_without_a_teacher():
    """The baseline: one student, its loss that of the labels alone, and it is what is tested."""
    method = mmt.Adapt(settings(backbones=("",), teachers=False), INFO)
    assert method.nets == ("mean", "student1") and method.shares == (0, 0) and not method.pairs
    assert len(method.streams(methods.State(0, {}, {}, {"labels": ORDER}), 0)["target"].views) == 1
    state = drawn(method)
    assert state.nets.keys() == {"student1"}
    soft = terms.by_teachers([Branches((jnp.zeros((2, 5)),), (), (), None)], [], None, None)
    assert soft.shape == (1, 1, 2) and not soft.any()
    assert not mmt.Adapt(settings(backbones=("",)), INFO).shares[0]  # a teacher of its own says nothing


@pytest.mark.slow
def test_the_student_is_tested_where_there_is_no_teacher():
    method = mmt.Adapt(settings(backbones=("",), teachers=False), INFO)
    state = drawn(method)
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 8, 3), np.uint8)
    mean, own = (method.embed(state, image, net) for net in method.nets)
    np.testing.assert_allclose(mean, unit(np.asarray(own)), rtol=1e-5)


def test_centres_of_networks_whose_features_have_other_lengths():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    assert np.array_equal(labelling.joined([a, b]), np.concatenate([a, b], 1))
    assert np.array_equal(labelling.joined([a, a]), 2 * a)
    own = labelling.apart_by([3, 2], np.concatenate([a, b], 1))
    for got, want in zip(own, (a, b), strict=True):
        np.testing.assert_allclose(got, unit(want), rtol=1e-5)
    assert labelling.apart_by([3, 3], a)[1] is a


def test_the_radius_is_kept_after_the_first_round():
    rng, people = np.random.default_rng(0), np.arange(40) // 4
    features = np.float32(3 * rng.normal(size=(10, 8))[people] + 0.3 * rng.normal(size=(40, 8)))
    fields = settings(cluster="dbscan", jaccard="torchreid", rho=0.05, clusters=12).mmt
    _, centres, eps = labelling.find_labels(features, fields, 0)
    dense = cluster.jaccard(features, k1=6, k2=2, form="torchreid").dense()
    upper = np.sort(dense[np.triu_indices(40, 1)])
    upper = upper[upper > 1e-6]
    assert centres.shape[1] == 8 and 0 < eps < 1
    np.testing.assert_allclose(eps, upper[: round(0.05 * len(upper))].mean(), rtol=1e-5)
    assert labelling.find_labels(features, fields, 0, eps=0.3)[2] == 0.3


@pytest.mark.parametrize("authority", ["", "kmeans"])
def test_distances_to_the_source_are_mixed_in(adapt, authority):
    """Clusters are those of the mixed matrix: people whom the source does not show fall apart."""
    fields = dict(cluster="dbscan", eps=0.5, lambda_value=0.4, clusters=12, authority=authority)
    method, rng = mmt.Adapt(settings(**fields), INFO), np.random.default_rng(0)
    part, people = method.part(0), np.arange(24) % 4
    of = unit(rng.normal(size=(4, 8)))
    features = np.float32(unit(of[people] + 0.1 * rng.normal(size=(24, 8))))
    source = np.float32(unit(of[np.arange(20) % 2] + 0.1 * rng.normal(size=(20, 8))))
    d = np.min(1 - np.exp(-np.square(features[:, None] - source).sum(2)), 1)
    mixed = 0.6 * cluster.jaccard(features, k1=6, k2=2).dense() + 0.4 * (d[:, None] + d) / d.max()
    near = mixed <= 0.5
    core, want = near.sum(1) >= 2, np.full(24, -1)
    for i in np.flatnonzero(core):  # the cores that hang together
        group, before = near[i] & core, None
        while before is None or (group != before).any():
            before, group = group, (near[group].any(0) & core) | group
        want[group] = group.argmax()
    assert part.of_source and 1 < len(set(want[want >= 0])) < 8 < np.count_nonzero(want < 0)
    given = [{t: x for t in method.teachers} if authority else x for x in (features, source)]
    new = part.begin(jax.tree.map(np.asarray, adapt[1]), tuple(given))
    labels = new.memory["labels"]
    assert np.array_equal(labels < 0, ~(near & core).any(1))
    both = core[:, None] & core
    assert np.array_equal((labels[:, None] == labels)[both], (want[:, None] == want)[both])
    assert not mmt.Adapt(settings(cluster="dbscan"), INFO).part(0).of_source


def test_what_the_source_cannot_be_mixed_into():
    for fields, info, message in (
        (dict(lambda_value=0.1), INFO, "lambda_value is 0.1 and cluster 'kmeans'"),
        (dict(lambda_value=0.5, cluster="dbscan"), INFO, "mmt.eps is 0.6: with lambda_value=0.5"),
        (dict(lambda_value=0.1, cluster="dbscan"), INFO._replace(labelled=None), "there is no source"),
        (dict(lambda_value=1.5, cluster="dbscan"), INFO, "lambda_value"),
    ):
        with pytest.raises(ConfigError, match=message):
            mmt.Adapt(settings(**fields), info)


def test_teachers_are_weighed_by_the_scatter_of_their_clusters():
    rng, people = np.random.default_rng(0), np.arange(40) // 8
    centres = rng.normal(size=(5, 6))
    near, far = (np.float32(centres[people] + s * rng.normal(size=(40, 6))) for s in (0.05, 0.2))
    got = labelling.weighed([near, far], settings(authority="kmeans").mmt, 0)
    assert got[0] > 1 > got[1] > 0 and abs(got.sum() - 2) < 1e-6
    labels, total, within = people - 1, 0, 0  # the first eight count for nothing
    means = [near[labels == k].mean(0) for k in range(4)]
    for k in range(4):
        total += 8 * ((means[k] - np.mean(means, 0)) ** 2).sum()
        within += ((near[labels == k] - means[k]) ** 2).sum()
    np.testing.assert_allclose(labelling.scatter(near, labels), total / within, rtol=1e-4)
    assert labelling.scatter(near, np.full(40, -1)) == 0


@pytest.mark.parametrize("cluster", ["kmeans", "dbscan"])
def test_a_round_begins_with_centres(adapt, cluster):
    method, state = mmt.Adapt(settings(cluster=cluster), INFO), adapt[1]
    rng, people = np.random.default_rng(0), np.arange(24) % 4  # for k-means a fifth person, of one image
    people[-1] = 4 if cluster == "kmeans" else 3
    features = np.float32(3 * rng.normal(size=(5, 8))[people] + 0.01 * rng.normal(size=(24, 8)))
    new = method.begin(jax.tree.map(np.asarray, state), features)
    labels, used = new.memory["labels"], int(new.memory["used"])
    pairs = set(zip(labels.tolist(), people.tolist(), strict=True))
    assert used == len(pairs) == (5 if cluster == "kmeans" else 4)
    for name, net in new.nets.items():
        kernel = net["params"]["classifier"]["kernel"]
        for label in range(used):
            f = features[labels == label]
            mean = f.mean(0) if cluster == "kmeans" else unit(f).mean(0)
            np.testing.assert_allclose(kernel[:, label], unit(mean), atol=1e-5)
        untouched = state.nets[name]["params"]["classifier"]["kernel"]
        assert np.array_equal(kernel[:, used:], untouched[:, used:])
        assert difference(net["params"]["base"], state.nets[name]["params"]["base"]) == 0
    assert int(new.step) == 4 and method.part(1).round == 2 and method.part(2) is None
    assert difference(new.opt, method.fresh(new.nets, method.tx).opt) == 0
    assert new.memory["labels"].dtype == np.int32


def test_networks_of_the_source_stages(adapt):
    method, state = adapt
    nets = {f"source{i}": jax.tree.map(np.asarray, state.nets[f"teacher{i}"]) for i in (1, 2)}
    new = method.inherit(state, lambda stage, net: nets[stage], None)
    for i, pair in enumerate(method.pairs, 1):
        for name in pair:
            got, want = new.nets[name], nets[f"source{i}"]
            for module in ("base", "neck"):
                assert difference(got["params"][module], want["params"][module]) == 0
            assert difference(got["batch_stats"], want["batch_stats"]) == 0
            fresh_ = state.nets[pair[0]]["params"]["classifier"]
            assert difference(got["params"]["classifier"], fresh_) == 0


def test_epochs_of_a_source_stage():
    """80 epochs of 100 steps: the first has number 1, the rate falls in those of numbers 40 and 70."""
    config = settings(source_epoch=100)
    config.train.epochs = 80
    fields = dict(lr=1.0, milestones=(40, 70), warmup_epochs=10, warmup_factor=0.01, first_epoch=1)
    vars(config.optim).update(fields)
    method = mmt.Source(config, INFO)
    assert (method.info.steps_per_epoch, method.part(0).steps) == (100, 8000)
    for epoch, want in ((0, 0.01 * 0.9 + 0.1), (8, 0.01 * 0.1 + 0.9), (9, 1), (38, 1), (39, 0.1), (69, 0.01)):
        for step in (0, 99):
            np.testing.assert_allclose(method.rate(100 * epoch + step), want, rtol=1e-5)
    assert mmt.Source(settings(), INFO).info.steps_per_epoch == 2  # 20 images in groups of 4, 8 a batch


@pytest.mark.slow
def test_the_target_moves_running_statistics_alone():
    batch = {"source": random_batch(size=8), "target": random_batch(1, size=8)}
    results = []
    for sees in (False, True):
        method = mmt.Source(settings(source_sees_target=sees), INFO)
        results.append((jax.jit(method.step)(drawn(method), batch)[0], method))
    (without, _), (seen, method) = results
    without, seen = without.nets["net"], seen.nets["net"]
    assert difference(without["params"], seen["params"]) < 1e-5
    before = drawn(method).nets["net"] | {"batch_stats": without["batch_stats"]}
    want = statistics(method)(before, method.view(batch["target"]))
    assert difference(want, seen["batch_stats"]) < 1e-5 < difference(without["batch_stats"], want)


def test_joint_rows_are_the_sources_and_then_the_targets():
    """Classes of the source come first; clusters of a round after them, with their centres."""
    method = mmt.Joint(settings(joint=True), INFO)
    assert method.sources == 5 and method.inherit is None
    source, target = random_batch(size=8), random_batch(1, size=8)
    views, pid = method.rows({"source": source, "target": target})
    assert pid.tolist() == [*source["pid"].tolist(), *(5 + target["pid"]).tolist()]
    for i, view in enumerate(views):
        assert np.array_equal(view[:8], method.view(source, i))
        assert np.array_equal(view[8:], method.view(target, i))
    state = jax.tree.map(np.asarray, drawn(method))
    features = np.float32(np.random.default_rng(0).normal(size=(24, 8)))
    new = method.begin(state, features)
    kernel, old = (x.nets["student1"]["params"]["classifier"]["kernel"] for x in (new, state))
    assert kernel.shape == (8, 10) and np.array_equal(kernel[:, :5], old[:, :5])
    for k in range(5):
        mean = features[new.memory["labels"] == k].mean(0)
        np.testing.assert_allclose(kernel[:, 5 + k], unit(mean), atol=1e-5)
    scale = new.nets["teacher1"]["params"]["neck"]["scale"]
    assert scale.shape == (2, 8)  # norms by domain
    streams = method.streams(methods.State(0, {}, {}, {"labels": new.memory["labels"]}), 0)
    assert streams.keys() == {"source", "target"}
    assert mmt.Joint(settings(joint=True), INFO._replace(num_pids=0)).streams(new, 0).keys() == {"target"}
    with pytest.raises(ConfigError, match=r"config.train.skip=\('source1', 'source2', 'source3'\)"):
        mmt.Source(settings(joint=True), INFO)


def what_is_seen(data):
    """All that the stages read of a data set: Info, batches, and those of some labels."""
    info = info_of(data)
    source, target = mmt.Source(settings(), info), mmt.Adapt(settings(), info)
    memory = {"labels": np.arange(24, dtype=np.int32) % 5 - 1}
    streams = [*source.streams(None).items()]
    streams += target.part(1).streams(methods.State(0, {}, {}, memory)).items()
    seen = [*info.labelled[:4], *info.unlabelled[:4], info.num_pids, info.num_cams, info.num_images]
    for _, stream in streams:
        seen += [stream.sampler.epoch(e) for e in range(2)] + list(stream.columns.values())
        seen += [stream.start, stream.seed, len(stream.views)]
    return seen + [r.path for r in data.train]


def test_identities_of_the_target_are_never_read():
    plain, permuted = dataset(ORDER), dataset(np.random.default_rng(0).permutation(ORDER))
    assert plain.truth.pid.tolist() != permuted.truth.pid.tolist()
    for a, b in zip(what_is_seen(plain), what_is_seen(permuted), strict=True):
        assert np.array_equal(a, b)
    streams = mmt.Source(settings(), INFO).streams(None)
    assert set(streams["target"].columns["pid"].tolist()) == {-1}
    assert streams["source"].columns["pid"].max() == 4 and streams["target"].start == 20


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="config.data.target=TARGET"):
        mmt.Source(settings(), INFO._replace(labelled=None))
    with pytest.raises(ConfigError, match=r"train.skip=\('source3',\)"):
        mmt.Source3(settings(), INFO)
    for fields, message in (
        (dict(cluster="spectral"), "mmt.cluster is 'spectral'"),
        (dict(backbones=("",) * 4), "mmt.backbones has 4 names"),
        (dict(teachers=False, authority="kmeans"), "set authority=''"),
        (dict(jaccard="cosine"), "mmt.jaccard is 'cosine'"),
    ):
        with pytest.raises(ConfigError, match=message):
            mmt.Adapt(settings(**fields), INFO)
    with pytest.raises(ConfigError, match="mmt.clusters is 5; the target has 3 images"):
        labelling.find_labels(np.eye(3), settings().mmt, 0)
    method = mmt.Adapt(settings(cluster="dbscan", min_samples=25), INFO)
    labels, centres, _ = labelling.find_labels(np.eye(24), method.config.mmt, 0)  # outliers only
    assert set(labels.tolist()) == {-1} and centres.shape == (0, 24)
    with pytest.raises(DataError):
        method.part(0).streams(methods.State(0, {}, {}, {"labels": labels}))
