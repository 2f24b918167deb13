"""CamStyle: sizes, the pool of generated images by a loop, which generator makes what, streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of, tiny
from small import random_state
from stage_cases import facts

from reid_jax.errors import ConfigError
from reid_jax.methods import Info
from reid_jax.methods.camstyle import cycles
from reid_jax.models import cyclegan
from reid_jax.train import stages


@pytest.mark.slow
def test_full_size_networks_have_as_many_parameters_as_the_published_ones():
    config = config_of("camstyle.py:market")
    _, method = stages.build(config, "styles", Info(num_pids=751, num_cams=6))
    nets = stages.state_shapes(method).nets
    sizes = {n: sum(x.size for x in jax.tree.leaves(v)) for n, v in nets.items()}
    assert len(method.pairs) == 15
    assert sizes["G_A"] == sizes["G_B"] == 15 * 11_378_179
    assert sizes["D_A"] == sizes["D_B"] == 15 * 2_764_737


def test_pool():
    """Until it is full images go in and through; then an old one may come out for a new one."""
    images = np.arange(1, 31, dtype=np.float32).reshape(-1, 1, 1, 1)
    given, pool = jax.jit(cycles.pooled)(jnp.zeros((4, 1, 1, 1)), jnp.int32(0), images, jax.random.key(0))
    given, pool = np.ravel(given), np.ravel(pool)
    known = []
    for image, shown in zip(images.ravel(), given, strict=True):
        if len(known) < 4:
            assert shown == image
            known.append(image)
        elif shown != image:
            known[known.index(shown)] = image
    assert sorted(known) == sorted(pool)
    later = (given != images.ravel())[4:]
    assert 6 < later.sum() < 20


def test_transposed_convolution_is_the_gradient_of_a_strided_one():
    rng = np.random.default_rng(0)
    x, kernel, y = (
        rng.standard_normal(s).astype(np.float32) for s in ((1, 3, 4, 5), (3, 3, 2, 5), (1, 6, 8, 2))
    )
    up = cyclegan.Upward(2).apply({"params": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}, x)

    def down(y):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(y, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers)
        return (y * x).sum()

    np.testing.assert_allclose(up, jax.grad(down)(jnp.asarray(y)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cameras", [2, 3, 5])
def test_every_camera_finds_its_generator(cameras):
    """A generator that only adds: G_A of pair p adds p + 1, G_B takes it away."""

    class Adds:
        def apply(self, variables, x, noise, rngs=None):
            return x + variables["by"]

    pairs = cycles.pairs(cameras)
    by = jnp.arange(1.0, len(pairs) + 1)
    nets, x = {"G_A": {"by": by}, "G_B": {"by": -by}}, jnp.zeros((1, 2, 2, 3))
    for a in range(cameras):
        for b in range(cameras):
            made = float(cycles.styled(Adds(), nets, x, a, b, cameras, None).mean())
            if a == b:
                assert made == 0
            else:
                place = [tuple(p) for p in pairs.tolist()].index((min(a, b), max(a, b)))
                assert made == (place + 1 if a < b else -place - 1)


def build(stage, style=None, **fields):
    config = tiny("camstyle", **fields)
    info = facts(config, pids=6, cams=3)
    if style is not None:
        rows = info.labelled
        info = info._replace(labelled=rows._replace(extras={"style": style(np.arange(len(rows.pid)))}))
    return stages.build(config, stage, info)[1]


def test_streams_of_files_and_of_generated_images():
    files = dict(data__styles="/styles", train__skip=("styles",))
    method = build("reid", lambda i: (i % 3 == 0).astype(np.int32), **files)
    real, styles = (method.streams(None)[n] for n in ("train", "styles"))
    for stream, label, size in ((real, 0, 8), (styles, 1, 2)):
        rows = stream.sampler.epoch(0)
        assert rows.shape[1] == size and (stream.columns["style"][rows] == label).all()
    assert not method.generates
    method = build("reid")
    rows = method.streams(None)["styles"].sampler.batch(0)
    assert (method.info.labelled.camid[rows] == [0, 1, 2, 0, 1, 2]).all() and method.generates
    assert set(build("reid", camstyle__styles=0).streams(None)) == {"train"}


def test_style_images_come_from_one_place():
    for fields in (dict(data__styles="/styles"), dict(train__skip=("styles",))):
        with pytest.raises(
            ConfigError, match=r"style images come from the stage styles or from config\.data"
        ):
            build("reid", lambda i: i % 2, **fields)
    config = tiny("camstyle")
    with pytest.raises(ConfigError, match=r"config\.data\.frames is 4"):
        build("reid", data__frames=4)
    small = tiny("camstyle", data__width=16)
    with pytest.raises(ConfigError, match="need 24 pixels"):
        stages.build(small, "styles", facts(small, pids=6, cams=2))
    with pytest.raises(ConfigError, match="two cameras"):
        stages.build(config, "styles", facts(config, pids=6, cams=1))


@pytest.mark.slow
def test_generated_images_keep_their_rows():
    """Row j C + c is of camera c, and so is what is made of it; without noise it is the generator's."""
    method = build("reid", camstyle__noise=False)
    state = jax.tree.map(jnp.asarray, random_state(method))
    batch = {n: np.zeros((6, *s), np.int32) for n, s in (("flip", (2,)), ("crop", (2, 2)), ("erase", (2, 4)))}
    batch |= {"image": np.random.default_rng(0).integers(0, 256, (6, 32, 24, 3), np.uint8)}
    batch["flip"] = batch["flip"].astype(bool)
    made = jax.jit(method.styled)(state.nets, batch, jax.random.key(0))
    x = cycles.unnormalised(method.config, method.plain(batch["image"]))
    one = jax.jit(lambda x, a, b: cycles.styled(method.generator, state.nets, x, a, b, 3, None))
    for row in range(6):
        camera = row % 3
        options = [one(x[row : row + 1], camera, b) for b in range(3) if b != camera]
        near = [np.abs(cycles.normalised(method.config, o[0]) - made[row]).max() for o in options]
        assert min(near) < 1e-4
