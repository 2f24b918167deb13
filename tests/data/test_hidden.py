"""Hidden identities: nothing that a method sees depends on them, and what is not hidden stays as it was."""

import dataclasses

import numpy as np
import pytest
from batches import data_config
from trees import cuhk01, cuhk02, folder, market, picture, viper

from reid_jax import methods
from reid_jax.data import datasets, streams
from reid_jax.data.records import Dataset, Record
from reid_jax.data.rows import hide, rows_of
from reid_jax.errors import ConfigError, DataError
from reid_jax.fields import namespace
from reid_jax.train import stages
from reid_jax.train.run import info_of


def dataset(hidden_pids, first=20):
    """20 labelled rows of 5 identities, then rows of other identities from cameras 3 and up."""
    train = [Record(f"/a/{n}.png", n // 4, n % 3) for n in range(first)]
    train += [
        Record(f"/b/{n}.png", int(pid), 3 + n % 4, domain=1, labels={"mark": n})
        for n, pid in enumerate(hidden_pids)
    ]
    cameras = tuple(f"c{c}" for c in range(7))
    table = np.arange(2 * (1 + max(hidden_pids, default=4))).reshape(-1, 2)
    return Dataset("a+b", "/", tuple(train), (), (), cameras, domain_names=("a", "b"), attributes=table)


def what_a_method_sees(data):
    """Rows, and batches of every stream that unlabelled rows allow."""
    seen = [*rows_of(data)[1][:4], data.attributes, data.num_train_pids, data.num_cams, data.fingerprint()]
    seen += [r.path for r in data.train], [r.pid for r in data.train]
    config = data_config(ids=2, instances=2)
    _, rows = rows_of(data)
    labels = rows.extras["mark"] % 5 - 1  # pseudo labels that depend on the pictures alone
    for build, given in (
        (streams.shuffled, (None,)),
        *((b, (labels,)) for b in (streams.pk, streams.uniform, streams.gallery, streams.cameras)),
    ):
        stream = build(rows, config, 3, *given)
        seen += [stream.sampler.epoch(e) for e in range(3)] + [stream.columns[n] for n in ("pid", "camid")]
    return seen


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_permuted_identities_change_nothing(seed):
    rng, pids = np.random.default_rng(seed), np.repeat(np.arange(5, 15), 4)
    plain = hide(dataset(pids), 20, seed)
    permuted = hide(dataset(rng.permutation(pids)), 20, seed)
    other = hide(dataset(rng.integers(5, 99, 40)), 20, seed)
    assert equal(what_a_method_sees(plain), what_a_method_sees(permuted))
    assert equal(what_a_method_sees(plain), what_a_method_sees(other))
    assert not np.array_equal(plain.truth.pid, permuted.truth.pid)
    assert not equal(what_a_method_sees(plain), what_a_method_sees(hide(dataset(pids), 20, seed + 1)))


def test_hidden_cameras_change_nothing():
    """Pictures by any cameras are the same training set, and all of the first of their set's."""
    whole, rng = dataset(np.repeat(np.arange(5, 15), 4)), np.random.default_rng(0)
    moved = [dataclasses.replace(r, camid=3 + int(rng.integers(4))) for r in whole.train[20:]]
    moved = dataclasses.replace(whole, train=(*whole.train[:20], *moved))
    told, hidden, other = hide(whole, 20, 1), hide(whole, 20, 1, False), hide(moved, 20, 1, False)
    assert hidden == other and {r.camid for r in hidden.train[20:]} == {3}
    assert hidden.train[:20] == whole.train[:20] and rows_of(hidden)[1].num_cams == 1
    assert rows_of(told)[1].num_cams == 4 and told.truth.pid.tolist() == hidden.truth.pid.tolist()
    assert info_of(hidden).num_cams == 3  # of the rows with identities


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("cap", None), ("adl", None), ("softsim", {"softsim.lambda_c": 0}),
        ("cluster_contrast", {"cluster_contrast.sampler": "pk"}),
        *((n, {"data.cross_camera": False}) for n in ("cluster_contrast", "spcl", "mmt")),
        ("ice", {"data.cross_camera": False, "ice.camera_weight": 0.0}),
        ("pplr", {"data.cross_camera": False}), ("baseline", {}),
    ],
)  # fmt: skip
def test_which_methods_read_cameras(name, off):
    tree = methods.defaults(name)
    assert stages.reads_cameras(namespace(tree)) == (name != "baseline")
    for field, value in (off or {}).items():
        section, key = field.split(".")
        tree[section][key] = value
    assert stages.reads_cameras(namespace(tree)) == (off is None)
    if name in ("spcl", "mmt"):  # one of its stages does
        stage = methods.stage_names(namespace(tree))[-1]
        tree["stages"][stage] = {"data": {"cross_camera": True}}
        assert stages.reads_cameras(namespace(tree))


def test_what_hide_leaves():
    pids = np.repeat(np.arange(5, 15), 4)
    whole = dataset(pids)
    hidden = hide(whole, 20, seed=1)
    assert hidden.train[:20] == whole.train[:20] and hidden.num_train_pids == 5
    assert hidden.attributes.shape == (5, 2)
    by_path = {r.path: r for r in whole.train}
    for record, pid in zip(hidden.train[20:], hidden.truth.pid, strict=True):
        assert record.pid == -1 and dataclasses.replace(record, pid=int(pid)) == by_path[record.path]
    everything = hide(whole, 0, seed=1)
    assert everything.num_train_pids == 0 and everything.attributes is None
    assert rows_of(everything)[0] is None and rows_of(everything)[1].num_cams == 7
    assert rows_of(whole)[1] is None


def test_the_order_of_rows_tells_no_identity():
    """Of files sorted by identity, neighbours share it as often as any two rows do."""
    pids = np.repeat(np.arange(100), 10)
    truth = hide(dataset(pids, first=0), 0, seed=5).truth.pid
    assert np.mean(truth[1:] == truth[:-1]) < 0.03  # by chance 9 of 999; sorted 0.9
    assert abs(np.corrcoef(np.arange(1000), truth)[0, 1]) < 0.1


def test_mixed_rows_are_refused():
    train = (Record("/a", -1, 0), Record("/b", 0, 0))
    with pytest.raises(DataError, match="rows without identity must follow"):
        rows_of(Dataset("x", "/", train, (), (), ("c1",)))


def test_permuted_labels_of_the_files(tmp_path):
    """The same pictures with other people written beside them load as the same training set."""
    rng, loaded = np.random.default_rng(0), []
    pictures = [picture(tmp_path, f"{n}.png", value=n) for n in range(16)]
    pids = np.repeat(["ann", "bob", "cid", "dan"], 3)
    for order in (np.arange(12), rng.permutation(12)):
        lines = [f"{n}.png,{pids[order[n]]},c{n % 2},train" for n in range(12)]
        lines += [f"{n}.png,eve,c{n % 2},{'query' if n < 14 else 'gallery'}" for n in range(12, 16)]
        (tmp_path / "labels.csv").write_text("path,pid,camid,split\n" + "\n".join(lines))
        loaded.append(load(tmp_path, "none", name="folder"))
    assert loaded[0] == loaded[1] and loaded[0].fingerprint() == loaded[1].fingerprint()
    assert {r.path for r in loaded[0].train} == set(pictures[:12])
    assert loaded[0].truth.pid.tolist() != loaded[1].truth.pid.tolist()


def test_who_is_unknown_cannot_be_rated():
    """Truth holds who is known; -1 is of nobody, and none is kept when nobody is known."""
    pids = np.repeat([7, -1, 8], 4)
    d = hide(dataset(pids), 20, 0)
    assert sorted(d.truth.pid.tolist()) == sorted(pids.tolist()) and {r.pid for r in d.train[20:]} == {-1}
    d = hide(dataset(np.full(12, -1)), 20, 0)
    assert d.truth is None and d.num_train_pids == 5 and rows_of(d)[1].num_pids == 0


# ---- by config ------------------------------------------------------------------------------------------
@pytest.fixture
def roots(tmp_path):
    market(tmp_path / "market1501")
    viper(tmp_path / "VIPeR")
    folder(tmp_path / "own")
    return tmp_path


def load(root, labels="all", **fields):
    rules = dict(labels=labels, cameras=fields.pop("cameras", True))
    return datasets.load(data_config(root=str(root), **fields), None, **rules)


@pytest.mark.parametrize("name", ["viper+market1501", "market1501+viper"])
def test_target_among_joined_sets(roots, name):
    alone = load(roots, name="viper")
    d = load(roots, "source", name=name, target="market1501")
    labelled, unlabelled = rows_of(d)
    assert [r.path for r in d.train[: len(labelled.pid)]] == [r.path for r in alone.train]
    assert (labelled.num_pids, labelled.num_cams, d.num_train_pids) == (3, 2, 3)
    assert (len(unlabelled.pid), unlabelled.num_cams, unlabelled.start) == (4, 2, len(alone.train))
    assert sorted(d.truth.pid.tolist()) == [3, 3, 4, 4] and d.name == name
    assert d.domain_names == ("viper", "market1501") and {r.domain for r in d.train[6:]} == {1}
    assert [t.name for t in d.tests] == ["market1501"] and len(d.query) == 4
    names = [d.camera_names[r.camid] for r in d.query]
    assert set(names) == {"market1501:c1", "market1501:c3"}
    assert load(roots, "source", name=name, target="market1501", test="viper").tests[0].name == "viper"
    assert load(roots, "all", name=name, target="market1501").train == d.train


def test_single_sets(roots):
    for fields in ({"labels": "none"}, {"labels": "source"}, {"labels": "source", "target": "market1501"}):
        d = load(roots, name="market1501", **fields)
        assert d.num_train_pids == 0 and {r.pid for r in d.train} == {-1}
        assert sorted(d.truth.pid.tolist()) == [0, 0, 1, 1]
    assert load(roots, "none", name="market1501+viper").num_train_pids == 0
    assert load(roots, "all", name="market1501").truth is None
    assert rows_of(load(roots, "none", name="market1501", cameras=False))[1].num_cams == 1


def test_a_target_that_nobody_has_labelled(roots, tmp_path):
    """Joined to a labelled source, which is tested; people keep their numbers."""
    for n in range(5):
        picture(tmp_path, "boxes", f"frame{n}.png")
    both = dict(name="market1501+folder", root=f"{roots},{tmp_path / 'boxes'}", target="folder")
    d = datasets.load(data_config(**both, test="market1501"), None, labels="source")
    labelled, unlabelled = rows_of(d)
    assert (labelled.num_pids, labelled.num_cams) == (2, 2) and d.truth is None
    assert unlabelled.pid.tolist() == [-1] * 5 and unlabelled.num_cams == 1 and len(d.query) == 4
    assert d.train[:4] == load(roots, name="market1501").train
    d = datasets.load(data_config(**both), None, labels="source")
    assert d.query == d.gallery == () and len(rows_of(d)[1].pid) == 5
    with pytest.raises(DataError, match="5 training pictures of unknown people.* the 6 clusters of a batch"):
        datasets.load(data_config(name="folder", root=str(tmp_path / "boxes"), ids=6), None, labels="none")


def test_refusals(roots):
    cuhk01(roots / "cuhk01")
    cuhk02(roots / "cuhk02")
    for labels, fields, message in (
        (
            "source",
            {"name": "market1501+viper", "target": "grid"},
            "data.target is 'grid'.*'market1501', 'viper'",
        ),
        ("source", {"name": "market1501", "target": "viper"}, "data.target is 'viper'.*'market1501'"),
        ("source", {"name": "market1501+viper"}, "Set config.data.target to it"),
        (
            "none",
            {"name": "market1501+viper", "target": "viper"},
            "without any identities: name that set alone",
        ),
        ("all", {"name": "market1501", "target": "market1501"}, "join a set that it may learn from"),
        ("none", {"name": "market1501", "val_ids": 1}, "data.val_ids is 1, but it picks identities"),
        (
            "source",
            {"name": "cuhk01+cuhk02+viper", "target": "cuhk02", "test": "viper"},
            "data.target: cuhk01 and cuhk02 show the same persons",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load(roots, labels, **fields)


def test_validation_takes_identities_of_the_source_alone(roots):
    fields = dict(name="viper+market1501", target="market1501", val_ids=1)
    d, whole = load(roots, "source", **fields), load(roots, "source", **fields | {"val_ids": 0})
    assert d.num_train_pids == 2 and len(d.val_query) == 2
    assert d.train[4:] == whole.train[6:] and d.truth.pid.tolist() == whole.truth.pid.tolist()
    assert all("VIPeR" in r.path for r in d.val_query)


def test_domains(roots):
    name = "folder+market1501"
    both = {"name": name, "root": f"{roots / 'own'},{roots}"}
    d = datasets.load(data_config(**both), None)
    assert d.domain_names == ("folder", "market1501") and rows_of(d)[0].ids_of_domains == (3, 2)
    d = datasets.load(data_config(**both, domains="camera"), None)
    assert d.domain_names == d.camera_names and all(r.domain == r.camid for r in d.train + d.query)
    assert rows_of(d)[0].ids_of_domains == (3, 3, 2, 2)
    assert load(roots, name="market1501").domain_names == ("market1501",)
    with pytest.raises(ConfigError, match="data.domains is 'town'"):
        load(roots, name="market1501", domains="town")
