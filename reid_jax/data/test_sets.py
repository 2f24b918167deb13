"""Further sets that a run is tested on: config.eval.also."""

import dataclasses
import os
import re

from reid_jax.config import split_label
from reid_jax.data import folders, tfds_sets, union
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import Options
from reid_jax.data.records import TestSet
from reid_jax.errors import ConfigError, DataError


def load(text, data, drawn=None):
    """tuple[TestSet] of config.eval.also, "[LABEL=]NAME[/VARIANT]:ROOT[:SPLITS],...".

    drawn: name -> Dataset of a synthetic set, written "[LABEL=]syntheticN" beside other synthetic ones.

    SPLITS: numbers and ranges joined by "+", as in 0-4+7; without it split 0. A set of several splits gives a
    TestSet LABEL-SPLIT of each. data: the config's section, for data.split_seed and for what trains. Errors:
    ConfigError and DataError naming config.eval.also.
    """
    tests, labels = [], union.tested(data.name.split("+"), data)
    for item in filter(None, (t.strip() for t in text.split(","))):
        try:
            label, sets = another_drawn(item, data, drawn) or read(item, data)
        except (ConfigError, DataError) as e:
            raise type(e)(f"config.eval.also has {item!r}: {e}") from e
        labels.append(label)
        tests += sets
    names = [*labels, *(t.name for t in tests if t.name != t.label)]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(
            f"config.eval.also: two sets to test on are called {', '.join(twice)}; give another label, as "
            "in LABEL=NAME:ROOT"
        )
    return tuple(tests)


def another_drawn(item, data, drawn):
    """(label, [TestSet]) of "[LABEL=]syntheticN", None for another item; ConfigError where it trains."""
    label, name = split_label(item)
    if not re.fullmatch("synthetic[2-9]?", name) or drawn is None:
        return None
    training = data.name.split("+")
    if name in training or not training[0].startswith("synthetic"):
        raise ConfigError(f"{name} goes with other synthetic sets that train, and it is none of {data.name}")
    dataset = drawn(name)
    label = label or name
    return label, [TestSet(label, dataset.query, dataset.gallery, dataset.protocol, dataset.root, label)]


_SET = re.compile(r"(?P<name>\w+)(/(?P<variant>[^:]+))?:(?P<root>.+?)(:(?P<splits>\d[\d+-]*))?")


def read(item, data=None):
    """(label, [TestSet]) of one set, written as in config.eval.also; data: None when nothing trains."""
    label, address = split_label(item)
    match = _SET.fullmatch(address)
    if not match or match["name"] not in (*LAYOUTS, "tfds"):
        raise ConfigError(
            "use [LABEL=]NAME[/VARIANT]:ROOT[:SPLITS], for example viper:/data/VIPeR:0-9, with NAME tfds or "
            f"one of {', '.join(LAYOUTS)}"
        )
    label = label or match["name"]
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", label):
        raise ConfigError(f"{label!r} cannot be a label: it names files; use letters, digits, '.', '-', '_'")
    variant, numbers = match["variant"] or "", split_numbers(match["splits"] or "0")
    sets = []
    for number in numbers:
        options = Options(variant, number)
        if data:
            options = dataclasses.replace(options, seed=data.split_seed, on_broken=data.on_broken)
        dataset = read_split(match["name"], match["root"], options)
        if data:
            check_unseen(dataset, variant, number, data)
        name = label if len(numbers) == 1 else f"{label}-{number}"
        sets.append(TestSet(name, dataset.query, dataset.gallery, dataset.protocol, dataset.root, label))
    return label, sets


def read_split(name, root, options):
    """Dataset of one split; the errors of its loader name no fields of config.data."""
    try:
        if name == "tfds":
            return tfds_sets.load(root)
        return folders.load_folder(name, root, options, check_counts=False, needed=folders.TESTS)
    except (ConfigError, DataError) as e:
        raise type(e)(str(e).replace("config.data.", "")) from e


def split_numbers(text):
    """'0-2+5' -> [0, 1, 2, 5]."""
    numbers = []
    for item in text.split("+"):
        match = re.fullmatch(r"(\d{1,4})(-(\d{1,4}))?", item)
        if not match or int(match[3] or match[1]) < int(match[1]):
            raise ConfigError(f"the splits are {text!r}; use numbers and ranges, as in 0-2+5")
        numbers += range(int(match[1]), int(match[3] or match[1]) + 1)
    return list(dict.fromkeys(numbers))


def folders_of(data):
    """Folders that train, of sets of one's own pictures."""
    return [os.path.abspath(os.path.expanduser(root.strip())) for root in data.root.split(",")]


def check_unseen(dataset, variant, number, data):
    """ConfigError when training shows persons of a split of a set that is to be tested."""
    training, name = data.name.split("+"), dataset.name
    same = name in training and (name != "folder" or dataset.root in folders_of(data))
    if data.train_on == "all" and same:
        raise ConfigError(
            f"all people of {name} train (config.data.train_on=all), which spoils the test: leave it out"
        )
    union.check_overlap_with_test(training, name)
    several = name in training and name in LAYOUTS and LAYOUTS[name].form(variant).num_splits > 1
    if several and number != data.split:
        raise ConfigError(
            f"{name} trains with split {data.split} (config.data.split), which shows persons that the other "
            "splits test on: leave them out"
        )
