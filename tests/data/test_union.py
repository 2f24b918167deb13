"""Several sets as one training set: labels kept apart, one set tested, what must not be mixed."""

import os

import numpy as np
import pytest
from batches import data_config
from trees import cuhk01, cuhk02, folder, market, picture, viper

from reid_jax.data import datasets, union
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import ConfigError, DataError


def test_labels_are_kept_apart(tmp_path):
    roots = f"{folder(tmp_path / 'own')}, {market(tmp_path / 'm')}"
    d = datasets.load(data_config(name="folder+market1501", root=roots), str(tmp_path))
    alone = [
        datasets.load_folder("folder", tmp_path / "own"),
        datasets.load_folder("market1501", tmp_path / "m"),
    ]
    assert d.name == "folder+market1501" and d.root == str(tmp_path)
    assert d.num_train_pids == 3 + 2 and d.num_cams == 4
    assert d.camera_names == ("folder:c1", "folder:c2", "market1501:c1", "market1501:c3")
    assert [r.path for r in d.train] == [r.path for a in alone for r in a.train]
    assert [(r.pid, r.camid) for r in d.train[12:]] == [(3, 2), (3, 3), (4, 2), (4, 3)]
    assert [r.domain for r in d.train] == [0] * 12 + [1] * 4  # identities of a set lie side by side
    assert {(r.domain, r.pid) for r in d.train} == {(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)}
    assert d.domain_names == ("folder", "market1501")
    assert (d.query, d.gallery) == (alone[0].query, alone[0].gallery)
    other = datasets.load(data_config(name="folder+market1501", root=roots, test="market1501"), str(tmp_path))
    assert other.train == d.train and other.camera_names == (*d.camera_names, "market1501:c2")
    assert [(r.pid, r.camid) for r in other.query] == [(1, 2), (1, 3), (3, 2), (3, 3)]
    assert (other.gallery[0].pid, other.gallery[0].camid) == (0, 4)


def test_every_set_may_be_tested(tmp_path):
    """data.test=all: the first set's own and the others with their own identities and cameras."""
    roots = f"{folder(tmp_path / 'own')},{market(tmp_path / 'm')}"
    d = datasets.load(data_config(name="folder+market1501", root=roots, test="all"), str(tmp_path))
    first = datasets.load(data_config(name="folder+market1501", root=roots), str(tmp_path))
    alone = datasets.load_folder("market1501", tmp_path / "m")
    assert (d.train, d.query, d.gallery) == (first.train, first.query, first.gallery) and not first.also
    assert [(t.name, t.query, t.gallery) for t in d.also] == [("market1501", alone.query, alone.gallery)]
    with pytest.raises(ConfigError, match="two sets to test on are called market1501"):
        datasets.load(
            data_config(name="folder+market1501", root=roots, test="all"),
            None,
            also=f"market1501:{tmp_path / 'm'}",
        )


def test_drawn_sets_to_test_on(tmp_path):
    """eval.also names another drawn set beside drawn ones, and none that trains."""
    tiny = dict(train_ids=2, test_ids=2, cameras=2, images=2, height=32, width=16, distractors=0, junk=0)
    data = data_config(name="synthetic+synthetic2", test="all", root=str(tmp_path))
    for name, value in tiny.items():
        setattr(data.synthetic, name, value)
    d = datasets.load(data, None, also="synthetic3")
    assert [t.name for t in d.also] == ["synthetic2", "synthetic3"] and len(d.also[1].query) == 4
    assert "synthetic3" in d.also[1].root
    with pytest.raises(ConfigError, match="eval.also has 'synthetic2'.* is none of"):
        datasets.load(data, None, also="synthetic2")


def test_common_parent_splits_and_validation(tmp_path):
    market(tmp_path / "market1501")
    viper(tmp_path / "VIPeR")
    data = data_config(name="market1501+viper", root=str(tmp_path), split=3, val_ids=1)
    d = datasets.load(data, str(tmp_path / "run"))
    assert d.num_train_pids == 2 + 3 - 1 and d.protocol == "market" and d.val_query
    assert list(d.drawn) == ["viper"] and (tmp_path / "run" / "split.json").exists()
    data = data_config(name="viper+market1501", root=str(tmp_path), split=3)
    assert datasets.load(data, None).protocol == "single-gallery"


def test_variants_of_each(tmp_path):
    market(tmp_path / "market1501")
    for i in range(3):
        picture(tmp_path, "market1501", "images", f"{i}.jpg")
    viper(tmp_path / "VIPeR")
    data = data_config(name="market1501+viper", root=str(tmp_path), variant="500k+")
    assert len(datasets.load(data, None).gallery) == 5 + 3
    with pytest.raises(ConfigError, match="variant is '500k'; VIPeR has no variants"):
        datasets.load(data_config(name="market1501+viper", root=str(tmp_path), variant="500k"), None)
    with pytest.raises(ConfigError, match="data.variant is 'a.b.c', 3 values for 2 data sets"):
        datasets.load(data_config(name="market1501+viper", root=str(tmp_path), variant="a+b+c"), None)


def test_config_errors(tmp_path):
    for fields, message in (
        ({"name": "market1501+"}, "union names different data sets"),
        ({"name": "market1501+market1501"}, "union names different data sets"),
        ({"name": "market1501+nowhere"}, "'market1501.nowhere'|'nowhere'; it must be one of"),
        ({"name": "market1501+viper", "test": "grid"}, "data.test is 'grid'.*'market1501', 'viper'"),
        ({"name": "market1501+viper", "root": "a,b,c"}, "data.root is 'a,b,c', 3 values for 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            datasets.load(data_config(**{"root": str(tmp_path), **fields}), None)
    with pytest.raises(DataError, match="root is empty: set --config.data.root=ROOT1,ROOT2"):
        datasets.load(data_config(name="market1501+viper", root="x,"), None)


def test_sets_of_the_same_persons_are_refused(tmp_path, caplog):
    cuhk01(tmp_path / "cuhk01")
    cuhk02(tmp_path / "cuhk02")
    viper(tmp_path / "VIPeR")
    for test in ("", "cuhk02"):
        with pytest.raises(ConfigError, match="cuhk01 and cuhk02 show the same persons.*data.test"):
            datasets.load(data_config(name="cuhk01+cuhk02", root=str(tmp_path), test=test), None)
    data = data_config(name="cuhk01+cuhk02+viper", root=str(tmp_path), test="viper")
    assert datasets.load(data, None).num_train_pids == 3 + 12 + 3
    assert "cuhk01 and cuhk02 show the same persons, who count as different" in caplog.text


def test_images_and_tracklets_are_not_mixed():
    def dataset(name, kind):
        records = (Record(os.path.join(os.sep, name, "1"), 0, 0),)
        return Dataset(name, os.path.join(os.sep, name), records, records, records, ("c1",), kind=kind)

    with pytest.raises(ConfigError, match=r"a \(image\), b \(video\) cannot be mixed"):
        union.merge([dataset("a", "image"), dataset("b", "video")])


def test_overlaps_name_known_sets():
    assert set().union(*union.OVERLAPS) <= set(datasets.NAMES)


def test_attributes_of_identities():
    """Rows follow the identities; a set without any leaves none."""

    def dataset(name, table):
        records = tuple(Record(os.path.join(os.sep, name, str(p)), p, 0) for p in range(3))
        return Dataset(name, os.sep, records, records, records, ("c1",), attributes=table)

    tables = np.arange(6).reshape(3, 2), np.arange(6, 12).reshape(3, 2)
    d = union.merge([dataset(n, t) for n, t in zip("ab", tables, strict=True)])
    np.testing.assert_array_equal(d.attributes, np.arange(12).reshape(6, 2))
    held = datasets.hold_out(d, 2, seed=1)
    rest = [p for p in range(6) if p + 1 not in {r.pid for r in held.val_query}]
    np.testing.assert_array_equal(held.attributes, d.attributes[rest])
    assert union.merge([dataset("a", tables[0]), dataset("b", None)]).attributes is None
    assert union.merge([dataset("a", tables[0]), dataset("b", np.zeros((3, 5)))]).attributes is None


def test_two_synthetic_sets(tmp_path):
    """Other people before other cameras; one of them can be the target."""
    data = data_config(name="synthetic+synthetic2", target="synthetic2", root=str(tmp_path))
    for field, value in dict(train_ids=3, test_ids=2, cameras=2, height=32, width=16).items():
        setattr(data.synthetic, field, value)
    data.synthetic.distractors = data.synthetic.junk = 0
    d = datasets.load(data, None, labels="source")
    assert [r.domain for r in d.train] == [0] * 12 + [1] * 12 and d.num_train_pids == 3 and d.num_cams == 4
    assert d.domain_names == ("synthetic", "synthetic2") and d.tested == "synthetic2"
    assert sorted(set(d.truth.pid.tolist())) == [3, 4, 5] and len(d.query) == 4
    same = {r.path.rsplit(os.sep, 1)[1]: r.path for r in d.train[:12]}
    for record in d.train[12:]:
        with open(record.path, "rb") as f, open(same[record.path.rsplit(os.sep, 1)[1]], "rb") as g:
            assert f.read() != g.read()
    data.root, data.target, data.synthetic.style = str(tmp_path / "styled"), "", 2
    styled = datasets.load(data, None)
    assert [n.split()[-1] for n in styled.camera_names] == ["snow", "snow", "indoor", "indoor"]
    with pytest.raises(ConfigError, match="joined with each other only"):
        datasets.load(data_config(name="synthetic+market1501"), None)
