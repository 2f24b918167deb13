"""Properties that every stage of every method must have, whatever it is.

Found by name, one compile, a state that keeps its structure, eight devices as one, resumed runs equal to
unbroken ones bit for bit.
"""

import dataclasses

import jax
import numpy as np
import pytest
from runs import StopAt, assert_same_run, config_of, lines, load, newest, tiny, train
from small import Stepping, apart, difference, drawn
from stage_cases import batches, facts, parts

from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.train import stages

SLOW = {
    ("direid", "gan"),
    ("direid", "dfen"),
    ("direid", "teacher"),
    ("dgnet", "dgnet"),
    ("dgnet", "teacher"),
    ("camstyle", "styles"),
    ("camstyle", "reid"),
    ("m3l", "train"),
    ("aanet", "train"),
    ("adl", "train"),
    ("mmt", "source1"),
    ("pcb", "pcb"),
    ("pcb", "rpp"),
    ("dsanet", "train"),
    ("pgfa", "train"),
    ("pyramid", "train"),
    ("ice", "train"),
    ("scal", "train"),
    ("pplr", "train"),
    ("lifelong", "synthetic"),
    ("lifelong", "synthetic2"),
    ("metabin", "train"),
    ("mmt", "adapt"),
    ("mmt", "source2"),
    ("snr", "train"),
    ("cap", "train"),
    ("softsim", "train"),
    ("cluster_contrast", "train"),
}  # long to compile, or much like the baseline
UNUSED = {("mmt", "source3")}  # by its smoke config, of two networks
ON_DEVICES = {"baseline"}  # on several, by default; the others take long
# Every device drops other features; the scores of an untrained D_deg are nearly constant, so that the
# attention's three norms would magnify rounding.
ALIKE = {"direid": {"direid__dropout": 0.0, "direid__attention_input": "self"}}
# Its instance norms in a row make 6 % of rounding in two steps of Adam.
MAGNIFIED = {"dgnet": 0.2}


def stage_params(long=()):
    """(method, stage) of all, the long ones and those of the methods `long` marked slow."""
    for method in methods.names():
        for stage in methods.stage_names(tiny(method)):
            marks = [pytest.mark.slow] * ((method, stage) in SLOW or method in long)
            if (method, stage) not in UNUSED:
                yield pytest.param((method, stage), marks=marks, id=f"{method}-{stage}")


@pytest.fixture(scope="module", params=list(stage_params()))
def stage(request):
    """(its config, Method, first State) of a stage."""
    method, name = request.param
    config = tiny(method, data__ids=4, data__instances=4, **ALIKE.get(method, {}))
    stage_config, built = stages.build(config, name, facts(config, cams=2))
    return stage_config, built, jax.tree.map(np.asarray, drawn(built))


def begun(method, part, state):
    """The state that a part starts from, on random features."""
    if part.begin is None:
        return state
    rng, count = np.random.default_rng(0), method.info.num_images
    image = np.zeros((1, *method.blank().shape[1:]), np.uint8)

    def features(net):
        size = jax.eval_shape(lambda s: method.embed(s, image, net), state).shape[1]
        people = rng.normal(size=(8, size))[np.arange(count) % 8]
        return np.float32(people + 0.05 * rng.normal(size=(count, size)))

    if part.features is None:
        return part.begin(state, None)
    wanted = {net: features(net) for net in part.features or method.nets[:1]}
    given = wanted if part.features else next(iter(wanted.values()))
    return jax.tree.map(np.asarray, part.begin(state, given))


def shape_of(state):
    return jax.tree.map(lambda x: (np.shape(x), str(np.asarray(x).dtype)), state)


def most_devices(streams):
    """8, or as many as the batches can be split over."""
    for count in (8, 4, 2):
        try:
            for stream in streams.values():
                stream.share((0, count))
            return count
        except ConfigError:
            continue
    raise AssertionError("batches of every stage can be split")


@pytest.fixture(scope="module")
def steps(stage):
    """Of each part: (part, its batches, the State it starts from, two steps on, the last metrics)."""
    config, method, state = stage
    taken = []
    for part in parts(method):
        state = begun(method, part, state)
        step, made = Stepping(part.step), [batches(part, state, config.data, seed) for seed in (0, 1)]
        new, _ = step(state, made[0])
        traces = step.traces
        again, _ = step(state, made[0])
        assert difference(new, again) == 0, "equal bits for equal inputs"
        last, metrics = step(new, made[1])
        assert step.traces == traces, "one compile"
        taken.append((part, made, state, last, metrics))
        state = last
    return taken


def test_step(steps):
    """One compile, equal bits for equal inputs (both in `steps`), the same structure and types."""
    for _, _, state, last, metrics in steps:
        assert shape_of(last) == shape_of(state) and int(last.step) == int(state.step) + 2
        assert all(np.isfinite(v) and v.shape == () for v in metrics.values())
        assert {"loss", "lr"} <= metrics.keys()


@pytest.mark.parametrize("stage", list(stage_params(set(methods.names()) - ON_DEVICES)), indirect=True)
def test_all_devices_as_one(stage, steps):
    """In what two steps have moved: without the devices' mean it would be another move altogether."""
    limit = MAGNIFIED.get(stage[0].method, 0.02)
    for part, made, state, last, metrics in steps:
        count = most_devices(part.streams(state))
        several, shared = Stepping(part.step, count)(state, made.__getitem__, 2)
        assert apart(state.nets, several.nets, last.nets) < limit, f"{count} devices"
        assert difference(last.memory, several.memory) < 1e-3
        np.testing.assert_allclose(shared["loss"], metrics["loss"], rtol=5e-3, atol=1e-3)


def test_padding_rows_never_change_an_embedding(stage):
    """A picture's feature is the same whatever stands beside it in the batch."""
    config, method, state = stage
    image = np.random.default_rng(0).integers(0, 256, (3, *method.blank().shape[1:]), np.uint8)
    padded = np.concatenate([image, np.zeros_like(image)])
    for net in method.nets[:2]:
        embed = jax.jit(lambda s, x, net=net: method.embed(s, x, net))
        alone = np.concatenate([embed(state, np.stack([x, image[0]]))[:1] for x in image])
        np.testing.assert_allclose(embed(state, padded)[:3], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_a_resumed_run_equals_an_unbroken_one(name, tmp_path):
    """Stopped in the middle of a part and at a border of parts, then continued: state and metrics.

    By default test_main does so with the baseline and test_rounds with a method of rounds.
    """
    config = tiny(name)
    dataset = load(config, tmp_path / "data")
    train(config, dataset, tmp_path / "unbroken")
    last = stages.to_train(config)[-1]
    steps = [x["step"] for x in lines(tmp_path / "unbroken", "train") if x.get("stage", last) == last]
    for stop in {steps[len(steps) // 2 - 1], steps[0]}:
        train(config, dataset, tmp_path / "run", StopAt(stop))
    train(config, dataset, tmp_path / "run")
    assert_same_run(tmp_path / "unbroken", tmp_path / "run", last)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in methods.names() if methods.find(n).LABELS != "all"])
def test_hidden_identities_are_never_read(name, tmp_path):
    """Other identities, the same run bit for bit; only the rating of the labels differs."""
    config = tiny(name)
    dataset = load(config, tmp_path / "data")
    if dataset.truth is None:
        pytest.skip("its smoke config hides nobody")
    pid = np.random.default_rng(0).permutation(dataset.truth.pid)
    others = dataclasses.replace(dataset, truth=dataset.truth._replace(pid=pid))
    last = stages.to_train(config)[-1]
    for folder, data in (("one", dataset), ("two", others)):
        train(config, data, tmp_path / folder)
    (one, _), (two, _) = (newest(tmp_path / folder, last) for folder in ("one", "two"))
    for path, value in one.items():
        assert np.array_equal(value, two[path]), path
    for kind in ("train", "eval"):
        assert lines(tmp_path / "one", kind) == lines(tmp_path / "two", kind)
    assert lines(tmp_path / "one", "labels") != lines(tmp_path / "two", "labels")


def test_every_method_has_a_config_and_a_test():
    root = methods.__path__[0]
    assert root
    for name in methods.names():
        module = methods.find(name)
        assert module.TITLE and module.LABELS in methods.LABELS and isinstance(module.METRICS, dict)
        assert (module.LABELS == "all") != hasattr(module, "CAMERAS")
        assert config_of(f"{name}.py:smoke").method == name
