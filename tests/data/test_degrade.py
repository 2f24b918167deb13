"""Degradations on the host against PIL and formulas, on the device against the host."""

import jax
import numpy as np
import pytest
from PIL import Image

from reid_jax.data import degrade, degrade_device
from reid_jax.errors import ConfigError


def pictures(height, width, count=6):
    """Half of them smooth, half noise."""
    rng = np.random.default_rng(height)
    small = rng.integers(0, 256, (count // 2, height // 8, width // 8, 3), np.uint8)
    smooth = [np.asarray(Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC)) for s in small]
    return np.stack([*smooth, *rng.integers(0, 256, (count // 2, height, width, 3), np.uint8)])


def test_shrink_keeps_means_and_rounds_down():
    picture = pictures(97, 45, 2)[0]
    small = degrade.shrink(picture, 3.3)
    assert small.shape == (29, 13, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small.mean((0, 1)), picture.mean((0, 1)), atol=2)
    assert degrade.shrink(picture, 200.0).shape == (1, 1, 3)
    np.testing.assert_array_equal(degrade.shrink(picture, 1.0), picture)


def test_shrink_averages_whole_blocks():
    """Ratio 2: a triangle of four pixels in each direction, weights 1 3 3 1 of 8."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    w = np.array([1, 3, 3, 1]) / 8
    block = picture[3:7, 5:9].astype(float)
    want = np.einsum("h,w,hwc->c", w, w, block)
    np.testing.assert_allclose(degrade.shrink(picture, 2.0)[2, 3], want, atol=1.01)


def test_darken_by_the_formula():
    picture = pictures(32, 16, 2)[1]
    for gamma, gain in ((2.0, 1.0), (3.5, 0.75)):
        want = np.trunc(255.999 * gain * (picture / 255.0) ** gamma)
        np.testing.assert_array_equal(degrade.darken(picture, gamma, gain), want)


def test_drawn_strengths_stay_in_their_ranges():
    picture, rng = pictures(64, 48, 2)[0], np.random.default_rng(0)
    widths = {degrade.draw(rng, picture, "res").shape[1] for _ in range(60)}
    assert min(widths) == 12 and max(widths) == 23  # ratios of 2 to 4
    ranges = degrade.Ranges(gamma=(2, 2), gain=(1, 1))
    np.testing.assert_array_equal(degrade.draw(rng, picture, "ill", ranges), degrade.darken(picture, 2, 1))
    noisy = degrade.draw(rng, np.full((64, 48, 3), 128, np.uint8), "noise").astype(float)
    assert abs(noisy.std() - 10) < 0.5 and abs(noisy.mean() - 128) < 0.5
    rough = pictures(64, 48, 2)[1]
    before, after = (
        np.abs(np.diff(p.astype(float), axis=0)).mean() for p in (rough, degrade.draw(rng, rough, "blur"))
    )
    assert after < 0.5 * before
    assert 0 < np.abs(degrade.draw(rng, picture, "jpeg").astype(float) - picture).mean() < 40


def test_the_same_generator_gives_the_same_picture():
    picture = pictures(32, 16, 2)[0]
    for kind in degrade.KINDS:
        one, other, third = (degrade.draw(np.random.default_rng(s), picture, kind) for s in (1, 1, 2))
        np.testing.assert_array_equal(one, other)
        assert kind in ("blur", "jpeg") or one.shape != third.shape or (one != third).any()
    with pytest.raises(ConfigError, match="rain"):
        degrade.draw(np.random.default_rng(0), picture, "rain")


@pytest.mark.parametrize("size,share", [((64, 32), 0.01), ((128, 64), 0.01)])
def test_lower_on_the_device(size, share):
    """At most two levels beside PIL, rarely any."""
    images = pictures(*size)
    ratio = np.array([2.0, 2.31, 2.9, 3.0, 3.57, 4.0], np.float32)
    host = np.stack(
        [degrade.enlarge(degrade.shrink(p, float(r)), *size) for p, r in zip(images, ratio, strict=True)]
    )
    device = np.asarray(jax.jit(lambda x, r: degrade_device.lower(x, r, most=2))(images, ratio))
    difference = np.abs(host.astype(int) - device)
    assert device.dtype == np.uint8 and difference.max() <= 2 and (difference > 0).mean() < share
    assert np.abs(device.astype(int) - images).mean() > 5


def test_darken_on_the_device():
    images = pictures(40, 24)
    rng = np.random.default_rng(1)
    gamma, gain = (rng.uniform(*r, 6).astype(np.float32) for r in ((2, 3.5), (0.75, 1)))
    host = [degrade.darken(p, float(a), float(b)) for p, a, b in zip(images, gamma, gain, strict=True)]
    device = np.asarray(jax.jit(degrade_device.darken)(images, gamma, gain))
    difference = np.abs(np.stack(host).astype(int) - device)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
