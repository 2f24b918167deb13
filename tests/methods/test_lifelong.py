"""Lifelong learning: what a step knows, what is carried over and replayed; runs without the other sets."""

import dataclasses

import jax
import numpy as np
import pytest
from runs import StopAt, assert_same_run, lines, load, newest, tiny, train
from small import Stepping, difference, drawn
from stage_cases import IMAGES, batches, facts

from reid_jax import methods
from reid_jax.data.rows import Rows
from reid_jax.errors import ConfigError
from reid_jax.methods.lifelong import krkc, step
from reid_jax.train import stages


def of_mode(mode, **changes):
    fixed = dict(lifelong__mode=mode, data__ids=2, data__instances=2, lifelong__replay_batch=2)
    fixed |= dict(lifelong__replay_ids=20)
    return tiny("lifelong", **(fixed | changes))


def built(config, stage, pids=6):
    return stages.build(config, stage, facts(config, pids=pids, cams=2))[1]


def test_stages_are_the_sets_in_the_configs_order():
    config = tiny("lifelong", data__name="synthetic3+synthetic")
    assert stages.of_config(config) == ["synthetic3", "synthetic"]
    assert methods.sets(config) == {"synthetic3": ("synthetic3",), "synthetic": ("synthetic",)}
    config.lifelong.mode = "joint"
    assert methods.sets(config) == {"joint": ("synthetic3", "synthetic")}
    assert methods.sets(tiny("baseline")) == {}


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("lifelong__mode", "none", "lifelong.mode is 'none'"),
        ("train__skip", ("synthetic",), "name fewer sets in config.data.name"),
        ("data__domains", "camera", "the steps are sets"),
        ("data__batches", "domains", "a step has one set"),
        ("lifelong__temperature", 0, "temperature is 0"),
    ],
)
def test_fields_that_cannot_be(field, value, text):
    with pytest.raises(ConfigError, match=text):
        built(of_mode("lwf", **{field: value}), "synthetic2")


def test_what_a_step_knows():
    """Its own rows, classes behind those of earlier sets, and of the sets the first identities alone."""
    pid = np.repeat(np.arange(6), 2).astype(np.int32)
    rows = Rows(10, pid, np.arange(12, dtype=np.int32), np.repeat([0, 1, 2], 4).astype(np.int32))
    counts = step.class_counts(methods.Info(6, 12, domains=(2, 2, 2)), 3, ids=1)
    second = step.of_sets(rows, counts, range(1, 2))
    assert counts == [1, 1, 1] and second.start == 14
    assert second.pid.tolist() == [1, 1, -1, -1] and second.domain.tolist() == [0] * 4
    assert second.camid.tolist() == [4, 5, 6, 7]
    assert step.of_sets(rows, [2, 2, 2], range(3)).pid.tolist() == pid.tolist()
    with pytest.raises(ConfigError, match="the steps are 3 sets"):
        step.class_counts(methods.Info(6, 12, domains=(3, 3)), 3, 0)


def test_what_is_kept_is_least_like_the_mean():
    """As a naive loop; classes that were not drawn keep nothing."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4)), np.array([5, 7, 9, 5] * 5, np.int32)
    found = np.flatnonzero(jax.jit(lambda f: krkc.least_alike(f, labels, np.array([5, 9]), 2))(features))
    unit, expected = features / np.linalg.norm(features, axis=1, keepdims=True), []
    for label in (5, 9):
        mine = np.flatnonzero(labels == label)
        cosine = unit[mine] @ unit[mine].mean(0)
        expected += mine[np.argsort(cosine)[:2]].tolist()
    assert found.tolist() == sorted(expected)


def carried(config, number=1, pids=6):
    """(method of a later step, the state it begins with, the earlier states) on random networks."""
    names = stages.of_config(config)
    made = [built(config, name, pids) for name in names[: number + 1]]
    states = [jax.tree.map(np.asarray, drawn(m, seed)) for seed, m in enumerate(made)]
    rng = np.random.default_rng(0)

    def load(stage, net):
        earlier = states[names.index(stage)]
        return earlier.nets[net] if net else earlier.memory

    def extract(function, variables, labelled=False, rows=None):
        block, image = made[-1].info.labelled if labelled else rows, np.zeros((1, 32, 16, 3), np.uint8)
        size = jax.eval_shape(function, variables, image).shape[1]
        return np.float32(rng.normal(size=(len(block.pid), size)))

    state = jax.jit(lambda state: made[-1].inherit(state, load, extract))(states[-1])
    return made[-1], state, states


def test_a_step_begins_with_the_last_network():
    """Old columns of the classifier are kept, new ones are fresh, the old network stands beside it."""
    method, state, states = carried(of_mode("lwf"))
    old, new, fresh = (s.nets["net"]["params"]["classifier"]["kernel"] for s in (states[0], state, states[1]))
    assert new.shape[1] == 2 * old.shape[1] == method.classes
    assert np.array_equal(new[:, : method.first], old)
    assert np.array_equal(new[:, method.first :], fresh[:, method.first :])
    assert difference(state.nets["old"], states[0].nets["net"]) == 0
    finetune = built(of_mode("finetune"), "synthetic2")
    assert set(stages.state_shapes(finetune).nets) == {"net"}


@pytest.mark.slow
def test_krkc_takes_the_mean_and_replays_what_is_kept():
    config = of_mode("krkc", data__name="synthetic+synthetic2+synthetic3")
    method, state, states = carried(config, 2)
    mean = jax.tree.leaves(state.nets["net"]["params"]["base"])[0]
    both = [jax.tree.leaves(states[1].nets[n]["params"]["base"])[0] for n in ("net", "memory")]
    np.testing.assert_allclose(mean, (both[0] + both[1]) / 2, rtol=1e-6)
    assert difference(state.nets["net"], state.nets["memory"]) == 0
    kernel = state.nets["net"]["params"]["classifier"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(kernel[:, method.first :], axis=0), 1, rtol=1e-5)
    labels = np.asarray(state.memory["labels"])
    assert labels.shape == (4 * IMAGES,) and set(labels[: 2 * IMAGES]) == {-1}  # kept by the state before
    own = labels[2 * IMAGES :]
    assert sorted(own[own >= 0]) == [2, 2, 3, 3]  # two pictures of each of its two people
    made = method.streams(state)["replay"]
    assert set(made.sampler.batch(0)) <= set(np.flatnonzero(labels >= 0)) and made.start == 0


@pytest.mark.slow
def test_steps_learn_and_leave_the_old_network_alone():
    """Of LwF and KRKC, the second step: what moves, and that the memory network moves less."""
    config = of_mode("krkc")
    method, state, _ = carried(config)
    state = jax.tree.map(np.asarray, state)
    new, metrics = Stepping(method.step)(state, batches(method.part(0), state, config.data))
    moved = [difference(new.nets[n]["params"], state.nets[n]["params"]) for n in ("net", "memory")]
    assert 0 < moved[1] < 0.2 * moved[0]  # a tenth of the rate
    assert {"agree", "replay", "memory_ce"} <= metrics.keys() and metrics["agree"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["finetune", "lwf", "aka"])
def test_the_second_step_of_other_modes(mode):
    config = of_mode(mode)
    method, state, _ = carried(config)
    state = jax.tree.map(np.asarray, state)
    new, metrics = Stepping(method.step)(state, batches(method.part(0), state, config.data))
    assert difference(new.nets["net"]["params"], state.nets["net"]["params"]) > 0
    for name in set(new.nets) & {"old", "old_graph"}:
        assert difference(new.nets[name], state.nets[name]) == 0
    assert ("distill" in metrics) == (mode != "finetune") and ("stability" in metrics) == (mode == "aka")


@pytest.mark.slow
def test_several_devices_see_one_graph():
    config = of_mode("aka", data__ids=4, data__instances=2, lifelong__dropout=0.5)
    method, state, _ = carried(config, pids=12)
    state = jax.tree.map(np.asarray, state)
    batch = batches(method.part(0), state, config.data)
    one, several = (Stepping(method.step, count)(state, batch)[0] for count in (1, 4))
    assert difference(one.nets, several.nets) < 2e-3


@pytest.mark.slow
def test_later_sets_are_not_read(tmp_path):
    """Their training pictures may be gone and their people others: the first step is bit for bit the same."""
    config = tiny("lifelong", train__only="synthetic")
    dataset = load(config, tmp_path / "data")
    rng = np.random.default_rng(0)
    later = [r for r in dataset.train if r.domain]
    pids = rng.permutation([r.pid for r in later])
    gone = [
        dataclasses.replace(r, path=f"/nowhere/{i}.jpg", pid=int(p))
        for i, (r, p) in enumerate(zip(later, pids, strict=True))
    ]
    first = [r for r in dataset.train if not r.domain]
    train(config, dataset, tmp_path / "one")
    train(config, dataclasses.replace(dataset, train=(*first, *gone)), tmp_path / "two")
    (one, _), (two, _) = (newest(tmp_path / folder, "synthetic") for folder in ("one", "two"))
    assert one.keys() == two.keys() and all(np.array_equal(v, two[k]) for k, v in one.items())


@pytest.mark.slow
def test_old_sets_are_not_read(tmp_path):
    """Finetuning's second step without the first set's training pictures; what is written of both."""
    config = tiny("lifelong", lifelong__mode="finetune", train__only="synthetic")
    dataset = load(config, tmp_path / "data")
    train(config, dataset, tmp_path / "run")
    gone = [r if r.domain else dataclasses.replace(r, path="/nowhere.jpg") for r in dataset.train]
    config.train.only = ""
    train(config, dataclasses.replace(dataset, train=tuple(gone)), tmp_path / "run")
    kept = lines(tmp_path / "run", "kept")
    assert [x["stage"] for x in kept] == ["synthetic", "synthetic2"]
    assert {"seen/mAP", "forgetting/mAP"} <= kept[1].keys() and "unseen/mAP" not in kept[1]


@pytest.mark.slow
def test_a_killed_run_with_replay_goes_on(tmp_path):
    """Stopped in the first step and in the second: bit for bit the unbroken run."""
    config = tiny("lifelong", lifelong__mode="krkc", data__name="synthetic+synthetic2+synthetic3")
    dataset = load(config, tmp_path / "data")
    train(config, dataset, tmp_path / "unbroken")
    for call in (1, 2):
        train(config, dataset, tmp_path / "run", StopAt(3, call))
    train(config, dataset, tmp_path / "run")
    assert_same_run(tmp_path / "unbroken", tmp_path / "run", "synthetic3")
