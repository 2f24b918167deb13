"""What a run is told before its first step, and what its data may not do later."""

import dataclasses
import json
import logging
import os

import jax
import numpy as np
import pytest
from runs import config_of, load, newest, tiny
from trees import damage, folder, picture, viper

from reid_jax import methods
from reid_jax.errors import CheckpointError, ConfigError, DataError
from reid_jax.fields import plain
from reid_jax.methods.direid import dfen, gan
from reid_jax.train import checkpoint, preflight, run, stages
from reid_jax.train.devices import Devices

ONE = Devices(jax.devices()[:1])


def own(root, **changes):
    """(config, data set) of 3 people of one's own who train and 3 who are tested, by 2 cameras."""
    config = tiny("baseline", data__name="folder", train__eval_every=0, data__ids=2, **changes)
    return config, load(config, root if os.path.exists(root) else folder(root))


def check(config, dataset, workdir="nowhere", devices=ONE):
    return preflight.check(config, dataset, str(workdir), devices, run.info_of(dataset, devices.axis_name))


# ---- fields
WRONG = {
    "eval.distance": "manhattan",
    "eval.protocol": "market1501",
    "eval.split": "validation",
    "eval.net": "nets",
    "eval.batch_size": 0,
    "eval.trials": -1,
    "eval.false_match_rates": (1.5,),
    "data.test_clip": "some",
    "data.chunk": 0,
    "data.on_broken": "pass",
    "data.decoder": "jpeg",
    "data.prefetch": 0,
    "data.threads": 0,
    "data.device_prefetch": -1,
    "data.workers": -1,
    "data.degrade.kind": "fog",
    "report.queries": -2,
    "train.eval_every": -1,
    "train.checkpoint_every": float("nan"),
    "train.log_every": -5,
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return own(tmp_path_factory.mktemp("own") / "x")


@pytest.mark.parametrize("field", WRONG)
def test_fields_that_are_read_late(ready, field):
    config, dataset = plain(ready[0]), ready[1]
    *path, last = field.split(".")
    node = config
    for key in path:
        node = node[key]
    node[last] = WRONG[field]
    with pytest.raises(ConfigError, match=rf"config\.{field} "):
        check(methods.common.namespace(config), dataset)


WITH_DATA = ("eval.protocol", "eval.split", "eval.net")  # those are looked at beside the data set


@pytest.mark.parametrize("field", [f for f in WRONG if f not in WITH_DATA and not f.startswith("report.")])
def test_fields_of_later_stages(field):
    """They are read of each stage's own settings."""
    config = config_of("direid.py:smoke")
    *path, last = field.split(".")
    changes = {last: WRONG[field]}
    for key in reversed(path):
        changes = {key: changes}
    config.unlock()
    config.stages = {"dfen": changes}
    later = stages.settings(config, "dfen")
    with pytest.raises(ConfigError, match=rf"config\.{field} "):
        preflight.check_fields(later)
    preflight.check_fields(stages.settings(config, "teacher"))


def test_whole_clips_alone(ready):
    """A further set of tracklets, and a method that cannot embed frames."""
    config, dataset = ready
    clip = dataclasses.replace(dataset.query[0], frames=(dataset.query[0].path,))
    (test,) = dataset.tests
    also = test._replace(name="clips", query=(clip,))
    method = stages.build(config, "train", run.info_of(dataset))[1]
    preflight.check_stage(config, method, dataclasses.replace(dataset, also=(also,)), ONE)
    method.embeds_frames = False
    preflight.check_stage(config, method, dataset, ONE)
    with pytest.raises(ConfigError, match="embeds whole clips only"):
        preflight.check_stage(config, method, dataclasses.replace(dataset, also=(also,)), ONE)


# ---- people
def seen_by_one_camera(root):
    for pid in range(1, 7):
        for i in range(3):
            split = "train" if pid < 4 else "gallery" if i else "query"
            picture(root, split, f"{pid:04d}_c1_{i}.jpg", value=9 * pid + i)
    return str(root)


def test_one_camera(tmp_path):
    config, dataset = own(seen_by_one_camera(tmp_path / "x"))
    with pytest.raises(DataError, match=r"x cannot be tested on: .*one camera.*--config\.eval\.protocol=all"):
        check(config, dataset)
    config.eval.protocol = "all-pairs"
    assert check(config, dataset) is dataset


def test_each_test_set_is_looked_at(tmp_path):
    """The validation split instead of the test split, and further sets."""
    root, other = folder(tmp_path / "x"), seen_by_one_camera(tmp_path / "y")
    config, dataset = own(root, eval__also=f"mine=folder:{other}")
    said = "config.eval.also: in mine none of the 3 queries.*leave that set out"
    with pytest.raises(DataError, match=said) as error:
        check(config, dataset)
    assert "all-pairs" not in str(error.value)  # it is for the run's own test alone
    config.eval.also = ""
    config.data.val_ids, config.data.ids = 1, 2
    dataset = load(config, root)
    alone = tuple(dataclasses.replace(r, camid=0) for r in dataset.val_gallery)
    dataset = dataclasses.replace(dataset, val_gallery=alone, val_query=dataset.val_query[:1])
    assert check(config, dataset) is dataset
    config.eval.split = "val"
    with pytest.raises(DataError, match="cannot be tested on: none of the 1 queries"):
        check(config, dataset)


def test_some_queries_without_a_match(tmp_path, caplog):
    root = folder(tmp_path / "x")
    picture(root, "query", "0009_c1_0.jpg")
    config, dataset = own(root)
    with caplog.at_level(logging.INFO):
        check(config, dataset)
    assert "1 of 7 queries have no match and do not count" in caplog.text


# ---- pictures
def test_broken_test_pictures(tmp_path, caplog):
    """All are read before the first step; what is left out is told, and who is left must do for a test."""
    root, other = folder(tmp_path / "x"), viper(tmp_path / "VIPeR")
    config, dataset = own(root, eval__also=f"viper:{other}")
    victims = [dataset.query[0].path, dataset.gallery[-1].path, dataset.also[0].gallery[0].path]
    for path, kind in zip(victims, ("truncated", "empty", "text"), strict=True):
        damage(path, kind)
    with pytest.raises(DataError) as error:
        check(config, dataset)
    said = str(error.value)
    assert "3 of " in said and all(p in said for p in victims) and "--config.data.on_broken=skip" in said
    config.data.on_broken = "skip"
    with caplog.at_level(logging.WARNING):
        left = check(config, dataset)
    assert all(p in caplog.text for p in victims) and "on_broken" not in caplog.text
    assert (left.query, left.gallery) == (dataset.query[1:], dataset.gallery[:-1])
    assert left.train is dataset.train and left.also[0].gallery == dataset.also[0].gallery[1:]
    assert set(left.left_out) == {os.path.relpath(p, root) for p in victims[:2]}
    assert left.also[0].left_out == (os.path.relpath(victims[2], other),)
    for record in dataset.query[1:]:
        damage(record.path, "empty")
    with pytest.raises(DataError, match="there is no picture in query"):
        check(config, dataset)


@pytest.mark.slow
def test_what_is_left_out_stands_in_the_files(tmp_path):
    """A run to its end: the figures are those of a set without the picture, and final.json names it."""
    root, workdir = folder(tmp_path / "x"), tmp_path / "run"
    config, dataset = own(root, data__on_broken="skip", train__steps=2)
    damage(dataset.query[0].path, "truncated")
    checkpoint.claim_workdir(str(workdir), plain(config))
    run.train(config, dataset, str(workdir), ONE)
    final = json.loads((workdir / "eval" / "final.json").read_text())
    assert final["left_out"] == [os.path.relpath(dataset.query[0].path, root)]
    assert next(iter(final["nets"].values()))["num_query"] == len(dataset.query) - 1


# ---- the data that a run began with
def test_other_training_data_are_refused(tmp_path):
    """Before what a checkpoint holds is compared; older checkpoints cannot tell."""
    config, dataset = own(folder(tmp_path / "x"))
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", "train")
    checkpoints.save(3, {"w": np.zeros(2)}, {"step": 3}, wait=True)
    check(config, dataset, tmp_path / "run")
    kept = {"step": 4, "data": preflight.marks.of(dataset)}
    checkpoints.save(4, {"w": np.zeros(2)}, kept, wait=True)
    checkpoints.close()
    check(config, dataset, tmp_path / "run")
    swap = {0: 1, 1: 0, 2: 2}
    other = tuple(dataclasses.replace(r, pid=swap[r.pid]) for r in dataset.train)
    tested = dataclasses.replace(dataset, query=dataset.query[1:])
    check(config, tested, tmp_path / "run")
    exchanged, gone = "identities: 3 there, 3 now .2 differ, on 8 pictures", "identities: 3 there, 2 now"
    for train, said in ((other, exchanged), (dataset.train[:8], gone)):
        with pytest.raises(CheckpointError, match=f"(?s)trained on other data.*{said}.*another --workdir"):
            check(config, dataclasses.replace(dataset, train=train), tmp_path / "run")


def test_every_checkpoint_says_what_it_was_trained_on(tmp_path):
    config, dataset = own(folder(tmp_path / "x"), train__steps=2)
    checkpoint.claim_workdir(str(tmp_path / "run"), plain(config))
    run.train(config, dataset, str(tmp_path / "run"), ONE)
    assert newest(tmp_path / "run")[1]["data"] == preflight.marks.of(dataset)
    fewer = dataclasses.replace(dataset, train=dataset.train[:8])
    with pytest.raises(CheckpointError, match="4 gone"):
        run.train(config, fewer, str(tmp_path / "run"), ONE)


# ---- later stages and parts
@pytest.fixture(scope="module")
def three_stages(tmp_path_factory):
    """(config, data set) of a smoke run with stages teacher, gan and dfen."""
    config = config_of("direid.py:smoke")
    return config, load(config, tmp_path_factory.mktemp("lowres"))


def changed(config, changes):
    """A copy of a config with dotted fields changed."""
    tree = plain(config)
    for field, value in changes.items():
        node, (*path, last) = tree, field.split(".")
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return methods.common.namespace(tree)


@pytest.fixture
def traced(monkeypatch):
    """Names of the stages whose steps are traced, of gan and dfen, which do nothing."""
    names = []

    def step(self, state, batch):
        names.append(type(self).__name__)
        return state, {"rows": jax.numpy.float32(len(batch["train"]["pid"]))}

    for kind in (gan.Ddgan, dfen.Dfen):
        monkeypatch.setattr(kind, "step", step)
    return names


@pytest.mark.slow
def test_later_stages_are_gone_through(three_stages, tmp_path, traced, monkeypatch):
    """On the devices' parts of their batches; nothing is left behind. Of stages that were begun no more."""
    config, dataset = three_stages
    assert check(changed(config, {}), dataset, tmp_path, Devices(jax.devices()[:2])) is dataset
    assert traced == ["Ddgan", "Dfen"] and not os.listdir(tmp_path)
    monkeypatch.setattr(preflight, "newest_meta", lambda workdir, name: {"step": 1} if name == "gan" else {})
    check(changed(config, {}), dataset, tmp_path)
    assert traced == ["Ddgan", "Dfen", "Dfen"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stages.dfen.model.narrow_widths": (8, 8, 8, 8)}, "the stages must have the same config.model"),
        ({"stages.gan.optim.kind": "lion"}, r"config\.optim\.kind is 'lion'"),
        ({"init.stages": "teacher"}, "holds no checkpoint of stage 'teacher'"),
    ],
)
def test_later_stages_that_cannot_be(three_stages, tmp_path, traced, changes, message):
    config, dataset = three_stages
    if "init.stages" in changes:
        changes = {"init.stages": f"teacher={tmp_path}"}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        check(changed(config, changes), dataset, tmp_path)


@pytest.mark.slow
def test_steps_of_later_stages_are_traced(three_stages, tmp_path, monkeypatch):
    """What only the step of the last stage looks at."""
    config, dataset = three_stages
    monkeypatch.setattr(gan.Ddgan, "step", lambda self, state, batch: (state, {}))
    changes = {"direid.replay": "bank", "direid.replay_loss": "l2"}
    with pytest.raises(ConfigError, match=r"config\.direid\.replay_loss is 'l2'"):
        check(changed(config, changes), dataset, tmp_path)


def test_triples_need_cameras(three_stages, tmp_path):
    """The stage that needs them comes second."""
    config, dataset = three_stages
    alone = dataclasses.replace(
        dataset, train=tuple(dataclasses.replace(r, camid=0) for r in dataset.train), camera_names=("c1",)
    )
    with pytest.raises(DataError, match="triples need"):
        check(changed(config, {}), alone, tmp_path)


def test_later_parts(tmp_path):
    """The second phase of a round; the first is compiled at once."""
    config = config_of("adl.py:smoke-baseline")
    dataset = load(config, tmp_path)
    assert check(changed(config, {}), dataset, tmp_path / "run") is dataset
    with pytest.raises(ConfigError, match=r"config\.loss\.triplet is 'manhattan'"):
        check(changed(config, {"loss.triplet": "manhattan"}), dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"config\.adl\.inter\.quantile is 2"):
        check(changed(config, {"adl.inter.quantile": 2}), dataset, tmp_path / "run")


def test_listed_pictures_that_are_missing(tmp_path):
    """Refused while the list is read, or passed over as what cannot be read."""
    root = tmp_path / "x"
    folder(root)
    lines = ["path,pid,camid,split"]
    for path in sorted(root.rglob("*.jpg")):
        lines.append(f"{path.relative_to(root)},{int(path.name[:4])},{path.name[6]},{path.parent.name}")
    (root / "labels.csv").write_text("\n".join(lines))
    config, dataset = own(root)
    for record in (dataset.query[0], dataset.train[0]):
        os.remove(record.path)
    with pytest.raises(DataError, match="2 of 24 listed images are missing.*on_broken=skip"):
        load(config, root)
    config.data.on_broken = "skip"
    left = check(config, load(config, root))
    assert left.query == dataset.query[1:] and left.train == dataset.train
