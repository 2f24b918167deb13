"""DG-Net: sizes, weights step by step, pooling and the teacher's targets by loops, what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of, tiny
from small import drawn
from stage_cases import facts

from reid_jax.config import namespace
from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.methods import Info, dgnet
from reid_jax.methods.dgnet import nets, swap, terms
from reid_jax.train import stages


def parameters(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.slow
def test_full_size_networks_have_as_many_parameters_as_the_published_ones():
    config, info = config_of("dgnet.py:market"), Info(num_pids=751, num_cams=6)
    _, method = stages.build(config, "dgnet", info)
    sizes = {n: parameters(v) for n, v in stages.state_shapes(method).nets.items()}
    expected = {"E_s": 380_544, "G": 1_455_555 + 11_544_576, "D": 1_025_571, "E_a": 26_378_782}
    assert {n: sizes[n] for n in expected} == expected


def test_weights_rise_as_in_the_published_loop():
    """The loop adds in every iteration beyond warm_from; what it computes depends on the weight before."""
    w, low, high, by, begin = 0.0, 0.0, 1.0, 0.3, 2
    for step in range(9):
        before, found = w, [float(terms.raised(step, begin, by, low, high, after)) for after in (False, True)]
        if step > begin:
            w = min(w + by, high)
        np.testing.assert_allclose(found, [before, w], atol=1e-6)


def test_rates_fall_one_iteration_early():
    """The published loop steps its schedule before the iteration."""
    d = namespace(dict(milestones=(4, 6)))
    rate = swap.rate(d, 1.0, 0.1)
    np.testing.assert_allclose([rate(i) for i in (2, 3, 4, 5, 6)], [1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_stripes_of_a_code_are_channel_by_channel():
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 5)).astype(np.float32)
    code = nets.stripes(jnp.asarray(x), 4, "max").reshape(2, -1)
    rows = ((0, 2), (1, 3), (3, 5), (4, 6))  # adaptive pooling of 6 rows to 4
    expected = [[x[b, a:e, :, c].max() for c in range(5) for a, e in rows] for b in range(2)]
    np.testing.assert_array_equal(code, np.array(expected, np.float32))


def test_small_images_are_doubled():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    y = nets.enlarged(x)
    assert y.shape == (1, 4, 6, 1) and nets.enlarged(x, False) is x
    np.testing.assert_array_equal(y[0, :, :, 0], np.kron(np.asarray(x[0, :, :, 0]), np.ones((2, 2))))
    large = jnp.zeros((1, 129, 2, 1))
    assert nets.enlarged(large) is large


@pytest.fixture(scope="module")
def built():
    config = tiny("dgnet", data__ids=4, data__instances=1)
    return stages.build(config, "dgnet", facts(config, pids=6, cams=2, axis_name=None))


@pytest.mark.parametrize("style", terms.STYLES)
def test_targets_of_the_teacher(built, style, monkeypatch):
    config, method = built
    p = np.random.default_rng(1).uniform(0.1, 1, (2, 3, 6)).astype(np.float32)
    pid = np.array([[0, 1, 2], [3, 1, 5]], np.int32)
    monkeypatch.setattr(method.config.dgnet, "teacher_style", style)
    monkeypatch.setattr(method, "opinion", lambda nets, images: jnp.asarray(p))
    found = method.target({}, jnp.zeros((2, 3, 4, 4, 3)), jnp.asarray(pid))
    for side in range(2):
        for i in range(3):
            looks, stands = pid[side, i], pid[1 - side, i]
            expected = {
                "soft": p[side, i],
                "hard": np.eye(6)[p[side, i].argmax()],
                "appearance": np.eye(6)[looks],
                "uniform": np.ones(6),
                "both": p[side, i] * np.isin(np.arange(6), (looks, stands)),
            }[style]
            np.testing.assert_allclose(found[side, i], expected / expected.sum(), rtol=1e-5)


@pytest.mark.slow
def test_test_features(built):
    """Unit halves, the same for a picture and its mirror image, the second weighed."""
    _, method = built
    state = drawn(method)
    size = method.config.data.height, method.config.data.width
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    embed = jax.jit(lambda state, x: [method.embed(state, x, n) for n in ("both", "prim", "fine")])
    both, prim, fine = map(np.asarray, embed(state, image))
    np.testing.assert_allclose(both, np.concatenate([prim, fine], -1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(prim, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(both, embed(state, image[:, :, ::-1])[0], atol=1e-5)


def test_the_teacher_and_its_trunk_are_taken(built):
    _, method = built
    state, teacher = drawn(method, 1), drawn(method, 2).nets["T"]
    method.config.dgnet.from_teacher = True
    new = method.inherit(state, lambda stage, net: teacher, None)
    assert {n for n in new.nets if new.nets[n] is not state.nets[n]} == {"T", "E_a"}
    for part in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, new.nets["T"][part], teacher[part])
        jax.tree.map(np.testing.assert_array_equal, new.nets["E_a"][part]["base"], teacher[part]["base"])
    other = {**teacher, "params": {**teacher["params"], "base": {}}}
    with pytest.raises(CheckpointError, match="another one than this stage's"):
        method.inherit(state, lambda stage, net: other, None)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(dgnet__blocks=3), r"config\.dgnet\.blocks is 3"),
        (dict(data__height=30), r"config\.data\.height and width are 30"),
        (dict(dgnet__teacher_style="nobody"), r"config\.dgnet\.teacher_style"),
        (dict(data__frames=4), r"config\.data\.frames is 4"),
        (dict(model__pool="gem"), r"config\.model\.pool"),
        (dict(train__skip=("teacher",)), r"config\.dgnet\.warm_teacher needs"),
    ],
)
def test_fields_that_cannot_work(fields, words):
    config = tiny("dgnet", **fields)
    with pytest.raises(ConfigError, match=words):
        stages.build(config, "dgnet", facts(config, pids=6, cams=2))


def test_without_a_teacher_there_is_none():
    config = tiny("dgnet", train__skip=("teacher",), dgnet__warm_teacher=(0.0, 0.0))
    _, method = stages.build(config, "dgnet", facts(config, pids=6, cams=2))
    assert set(method.modules) == {"E_s", "G", "E_a", "D"} and next(iter(dgnet.STAGES)) == "teacher"
