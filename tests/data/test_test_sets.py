"""Further sets to test on: config.eval.also."""

import pytest
from batches import data_config
from trees import cuhk01, cuhk02, cuhk03, market, viper

from reid_jax.data import datasets, test_sets
from reid_jax.data.loaders.common import Options
from reid_jax.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    market(tmp_path / "market1501")
    viper(tmp_path / "VIPeR")
    return tmp_path


def load(root, also, **fields):
    return datasets.load(data_config(**{"name": "market1501", "root": str(root), **fields}), None, also=also)


def test_sets_and_splits(root):
    cuhk03(root / "cuhk03", images=("detected", "labeled"))
    d = load(root, f"viper:{root}:0-1+4, small=cuhk03/labeled:{root / 'cuhk03'}", split_seed=3)
    names = ["market1501", "viper-0", "viper-1", "viper-4", "small"]
    assert [t.name for t in d.tests] == names
    assert [t.label for t in d.tests] == ["market1501", *["viper"] * 3, "small"]
    assert (d.tests[0].query, d.tests[0].gallery, d.tests[0].root) == (d.query, d.gallery, d.root)
    for test, split in zip(d.tests[1:4], (0, 1, 4), strict=True):
        alone = datasets.load_folder("viper", root, Options(split=split, seed=3))
        assert (test.query, test.gallery) == (alone.query, alone.gallery)
        assert (test.protocol, test.root) == ("single-gallery", str(root / "VIPeR"))
    assert all("labeled" in r.path for r in d.tests[4].query)
    assert d.train == load(root, "").train and load(root, "").tests == d.tests[:1]
    assert d.fingerprint() != load(root, "").fingerprint()


def test_the_tested_one_of_joined_sets_comes_first(root):
    d = load(root, f"market1501:{root}", name="market1501+viper", test="viper")
    assert [t.name for t in d.tests] == ["viper", "market1501"]


@pytest.mark.parametrize(
    "also, message",
    [
        ("viper", r"eval.also has 'viper': use \[LABEL=\]NAME\[/VARIANT\]:ROOT"),
        ("nowhere:ROOT", "eval.also has 'nowhere:.*one of market1501"),
        ("viper:ROOT/none", "eval.also has.*: root: .*none does not exist"),
        ("viper:ROOT:99", "eval.also has.*: split is 99; VIPeR has splits 0 to 19"),
        ("viper:ROOT:3-1", "the splits are '3-1'"),
        ("viper/x:ROOT", "variant is 'x'; VIPeR has no variants"),
        ("viper:ROOT,viper:ROOT:1", "two sets to test on are called viper;"),
        ("market1501:ROOT", "two sets to test on are called market1501;"),
        ("viper-1=market1501:ROOT,viper:ROOT:0-1", "two sets to test on are called viper-1;"),
        ("..=viper:ROOT", "'..' cannot be a label"),
    ],
)
def test_mistakes_are_named(root, also, message):
    with pytest.raises((ConfigError, DataError), match=message):
        load(root, also.replace("ROOT", str(root)))


def test_what_training_shows_is_not_tested(root):
    cuhk01(root / "cuhk01")
    cuhk02(root / "cuhk02")
    with pytest.raises(ConfigError, match="cuhk01, which trains, and cuhk02 show the same persons"):
        load(root, f"cuhk02:{root}", name="market1501+cuhk01")
    with pytest.raises(ConfigError, match=r"viper trains with split 2 \(config.data.split\)"):
        load(root, f"again=viper:{root}:2+3", name="viper", split=2)
    assert len(load(root, f"again=viper:{root}:2", name="viper", split=2).tests) == 2


def test_numbers_of_splits():
    assert test_sets.split_numbers("0-2+5+1") == [0, 1, 2, 5]
