"""Augmentation: draws against their definition, the device side against plain numpy loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.data import augment
from reid_jax.data.transforms import Draws
from reid_jax.errors import ConfigError

MEAN, STD, FILL = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.485, 0.456, 0.406)


def draws(**fields):
    return Draws(**{**dict(height=256, width=128, flip=0.5, pad_crop=0, erase=0.5, erase_area=(0.02, 0.4),
                           erase_aspect=0.3, seed=0), **fields})  # fmt: skip


def naive_view(image, flip, crop, erase, pad, edge=False):
    """One image by loops over pixels: u8 [H,W,3] after flip, pad and crop, and the mask of erased pixels."""
    h, w, _ = image.shape
    out, gone = np.zeros_like(image), np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            sy, sx = y + crop[0] - pad, x + crop[1] - pad
            if edge:
                sy, sx = min(max(sy, 0), h - 1), min(max(sx, 0), w - 1)
            if 0 <= sy < h and 0 <= sx < w:
                out[y, x] = image[sy, w - 1 - sx if flip else sx]
            gone[y, x] = erase[0] <= y < erase[0] + erase[2] and erase[1] <= x < erase[1] + erase[3]
    return out, gone


@pytest.mark.parametrize("pad, edge", [(0, False), (3, False), (3, True)])
def test_view_equals_loops(pad, edge):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 12, 10, 3), np.uint8)
    d = draws(height=12, width=10, pad_crop=pad, seed=5)(0, 24)
    flip, crop, erase = d["flip"][:, 1], d["crop"][:, 1], d["erase"][:, 1]
    options = dict(pad=pad, mean=MEAN, std=STD, fill=FILL, dtype=jnp.float32)
    options["pad_mode"] = "edge" if edge else "zeros"
    f = jax.jit(lambda *a: augment.view(*a, **options))
    out = np.asarray(f(image, flip, crop, erase))
    assert out.dtype == np.float32 and flip.any() and not flip.all() and (erase[:, 2] > 0).any()
    for i in range(24):
        pixels, gone = naive_view(image[i], flip[i], crop[i], erase[i], pad, edge)
        back = np.rint((out[i] * np.float32(STD) + np.float32(MEAN)) * 255)
        np.testing.assert_array_equal(back[~gone], pixels[~gone])  # geometry: exactly the same pixels
        expected = (pixels.astype(np.float64) / 255 - MEAN) / STD
        np.testing.assert_allclose(out[i][~gone], expected[~gone], atol=1e-6)
        assert (out[i][gone] == np.float32(FILL)).all()


def test_identity_draw_is_plain():
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    no, options = np.zeros(2, bool), dict(mean=MEAN, std=STD, dtype=jnp.float32)
    for pad in (0, 4):
        d = draws(height=8, width=6, flip=0, erase=0, pad_crop=0)(0, 2)
        crop = d["crop"][:, 0] + pad  # what "off" means for a padded image
        out = augment.view(image, no, crop, d["erase"][:, 0], pad=pad, fill=FILL, **options)
        np.testing.assert_array_equal(out, augment.plain(image, **options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_plain_dtype(dtype):
    out = augment.plain(np.full((1, 2, 2, 3), 255, np.uint8), mean=MEAN, std=STD, dtype=jnp.dtype(dtype))
    assert out.dtype == jnp.dtype(dtype)
    expected = np.broadcast_to((1 - np.array(MEAN)) / np.array(STD), (1, 2, 2, 3))
    rtol = {"bfloat16": 1e-2, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=rtol)


def test_draws_depend_on_the_position_alone():
    d = draws(pad_crop=10, seed=9)
    whole = d(0, 64)
    for first, count in ((0, 1), (5, 7), (63, 1), (32, 32)):
        for name, value in d(first, count).items():
            np.testing.assert_array_equal(value, whole[name][first : first + count])
    other = draws(pad_crop=10, seed=10)(0, 64)
    assert (other["flip"] != whole["flip"]).any() and (other["crop"] != whole["crop"]).any()
    far = d(10**12, 4)  # late in a long run
    assert far["erase"].shape == (4, 2, 4) and not np.array_equal(far["crop"], whole["crop"][:4])


def test_flip_and_crop_statistics():
    d = draws(flip=0.3, pad_crop=2)(0, 4000)
    assert d["flip"].shape == (4000, 2) and d["flip"].dtype == bool
    assert abs(d["flip"].mean() - 0.3) < 0.02
    assert abs((d["flip"][:, 0] & d["flip"][:, 1]).mean() - 0.09) < 0.02  # views are independent
    counts = np.bincount(d["crop"].ravel(), minlength=5)
    assert d["crop"].dtype == np.int32 and len(counts) == 5 and (abs(counts / 16000 - 0.2) < 0.02).all()
    assert (draws()(0, 50)["crop"] == 0).all()


def mmt_erase(rng, height, width, low, high, aspect_low):
    """Area and aspect accepted by MMT's loop, as that code writes it."""
    for _ in range(100):
        area = rng.uniform(low, high) * height * width
        aspect = rng.uniform(aspect_low, 1 / aspect_low)
        h, w = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        if w < width and h < height:
            return rng.integers(0, height - h, endpoint=True), rng.integers(0, width - w, endpoint=True), h, w
    return 0, 0, 0, 0


def test_erasing_statistics():
    rng = np.random.default_rng(0)
    ours = draws(seed=1)(0, 10000)["erase"].reshape(-1, 4)
    assert ours.dtype == np.int32
    erased = ours[ours[:, 2] > 0]
    assert abs(len(erased) / len(ours) - 0.5) < 0.02
    y, x, h, w = erased.T
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= 256).all() and (x + w <= 128).all()
    assert (h < 256).all() and (w < 128).all()
    share = h * w / (256 * 128)
    assert share.min() > 0.019 and share.max() < 0.41
    reference = np.array([mmt_erase(rng, 256, 128, 0.02, 0.4, 0.3) for _ in range(10000)])
    for column in range(4):  # quantiles of y, x, h, w
        q = np.linspace(0.05, 0.95, 10)
        gap = np.quantile(erased[:, column], q) - np.quantile(reference[:, column], q)
        assert abs(gap).max() < 7, (column, gap)


def test_erasing_gives_up_after_100_tries():
    d = draws(height=16, width=16, erase=1.0, erase_area=(1.0, 1.0))(0, 100)
    assert (d["erase"] == 0).all()  # nothing that large has both sides shorter than the image
    assert (draws(erase=1.0)(0, 300)["erase"][..., 2:] > 0).all()


@pytest.mark.parametrize(
    "field, value",
    [
        ("flip", 1.5),
        ("erase", -0.1),
        ("pad_crop", -1),
        ("erase_area", (0.4, 0.02)),
        ("erase_aspect", 0.0),
        ("height", 0),
    ],
)
def test_bad_fields(field, value):
    with pytest.raises(ConfigError, match=f"data.{field}"):
        draws(**{field: value})


def test_from_config():
    d = Draws.of(namespace(defaults()["data"]), 4)
    assert (d.height, d.width, d.erase_area, d.seed) == (256, 128, (0.02, 0.4), 4)
