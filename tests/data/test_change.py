"""Augmentation beyond flips, crops and MMT's erasing: fills, jitter, parts of pictures, AutoAugment."""

import io
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import assert_equal, data_config, opened, take
from PIL import Image, ImageEnhance, ImageOps

from reid_jax.data import augment, autoaugment, decode
from reid_jax.data.change import Changes
from reid_jax.data.records import Dataset, Record
from reid_jax.data.transforms import Draws
from reid_jax.errors import ConfigError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB = np.random.default_rng(0).integers(0, 256, (24, 12, 3), np.uint8)


def draws(**fields):
    given = dict(height=256, width=128, flip=0.5, pad_crop=0, erase=1.0, erase_area=(0.02, 0.4))
    return Draws(**{**given, "erase_aspect": 0.3, **fields})


def loop(rng, area, aspect, log=False, tries=100, whole=False):
    """(h, w) of one rectangle as the published codes look for it, (0, 0) for none."""
    for _ in range(tries):
        size, ends = rng.uniform(*area) * 256 * 128, np.log(aspect) if log else aspect
        ratio = math.exp(rng.uniform(*ends)) if log else rng.uniform(*ends)
        h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if h < 256 + whole and w < 128 + whole:
            return h, w
    return 0, 0


FORMS = {
    "torchreid": ((0.02, 0.4), (0.3, 1 / 0.3), False, 100, False),
    "fastreid": ((0.02, 0.33), (0.3, 3.3), True, 10, False),
    "transreid": ((0.02, 1 / 3), (0.3, 1 / 0.3), True, 10, False),
    "camstyle": ((0.02, 0.2), (0.3, 3.0), False, 100, True),
    "once": ((0.3, 0.4), (0.3, 0.9), False, 1, False),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_erasing(form):
    """Heights, widths and how often nothing fits, against a loop."""
    names = ("erase_area", "erase_aspect", "erase_aspect_log", "erase_tries", "erase_whole")
    ours = draws(**dict(zip(names, FORMS[form], strict=True)))(0, 3000)["erase"][..., 2:].reshape(-1, 2)
    rng = np.random.default_rng(0)
    theirs = np.array([loop(rng, *FORMS[form]) for _ in range(6000)])
    q = np.linspace(0.05, 0.95, 10)
    gap = np.quantile(ours, q, axis=0) - np.quantile(theirs, q, axis=0)
    assert abs(gap).max() < 8 and abs((ours == 0).mean() - (theirs == 0).mean()) < 0.02
    assert ((theirs == 0).mean() > 0.2) == (form == "once")


def test_a_rectangle_as_large_as_the_image():
    square = dict(height=16, width=16, erase_area=(1.0, 1.0), erase_aspect=(1.0, 1.0))
    assert not draws(**square)(0, 5)["erase"].any()
    assert (draws(**square, erase_whole=True)(0, 5)["erase"] == (0, 0, 16, 16)).all()


def test_the_defaults_draw_as_before():
    """The numbers of the plain form do not depend on the others' draws."""
    plain, noisy = draws()(3, 40), draws(erase_fill="normal", jitter=(0.2, 0.1, 0.0))(3, 40)
    for name in ("flip", "crop", "erase"):
        np.testing.assert_array_equal(noisy[name][..., : plain[name].shape[-1]], plain[name])
    assert noisy["erase"].shape == (40, 2, 5) and len(np.unique(noisy["erase"][..., 4])) == 80
    later = draws(erase_fill="normal", jitter=(0.2, 0.1, 0.0))(13, 5)
    for name, value in later.items():
        np.testing.assert_array_equal(value, noisy[name][10:15])
    weak = draws(jitter=(0.2, 0.1, 0.3), views=("strong", "weak"))(0, 50)["jitter"]
    assert (weak[:, 1] == (1, 1, 1, 0)).all()
    low, high = weak[:, 0, :3].min(0), weak[:, 0, :3].max(0)
    np.testing.assert_allclose((low, high), ([0.8, 0.9, 0.7], [1.2, 1.1, 1.3]), atol=0.06)
    assert set(weak[:, 0, 3]) == set(range(6))


@pytest.mark.parametrize("kind, level, spread", [("normal", 0.0, 1.0), ("uniform", 0.227, 1.28)])
def test_noise_fills_what_is_erased(kind, level, spread):
    image = np.stack([RGB, RGB])
    erase = np.array([[2, 1, 20, 10, 7], [2, 1, 20, 10, 8]], np.int32)
    no, fixed = np.zeros(2, bool), dict(pad=0, mean=MEAN, std=STD, dtype=jnp.float32)
    out = np.asarray(augment.view(image, no, np.zeros((2, 2), np.int32), erase, fill=kind, **fixed))
    plain = np.asarray(augment.plain(image, mean=MEAN, std=STD, dtype=jnp.float32))
    gone = np.zeros((24, 12), bool)
    gone[2:22, 1:11] = True
    np.testing.assert_array_equal(out[:, ~gone], plain[:, ~gone])
    assert abs(out[:, gone].mean() - level) < 0.2 and abs(out[:, gone].std() - spread) < 0.2
    assert (out[0] != out[1])[gone].all()  # every image its own
    if kind == "normal":
        want = jax.random.normal(jax.random.key(7), RGB.shape)
        np.testing.assert_allclose(out[0][gone], want[gone], rtol=1e-6)


@pytest.mark.parametrize("order", range(6))
def test_jitter_is_pils(order):
    """Against ImageEnhance, which rounds after each."""
    factors, picture = (1.3, 0.7, 0.4), Image.fromarray(RGB)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in list(itertools.permutations(range(3)))[order]:
        picture = enhancers[which](picture).enhance(factors[which])
    out = np.asarray(augment.jittered(RGB, jnp.array([*factors, order], jnp.float32)))
    assert np.abs(out - np.asarray(picture)).max() < 4


def test_edges_are_padded():
    image, crop = RGB[None], np.array([[0, 5]], np.int32)
    no, none = np.zeros(1, bool), np.zeros((1, 4), np.int32)
    fixed = dict(pad=3, mean=(0, 0, 0), std=(1, 1, 1), fill=(0, 0, 0), dtype=jnp.float32)
    out = augment.view(image, no, crop, none, pad_mode="edge", **fixed)
    want = np.pad(RGB, [(3, 3), (3, 3), (0, 0)], mode="edge")[:24, 5:17]
    np.testing.assert_array_equal(np.rint(255 * np.asarray(out[0])), want)


@pytest.mark.parametrize("decoder", ["pil", "cv2"])
def test_kernels_of_resizing(decoder):
    pytest.importorskip({"pil": "PIL"}.get(decoder, decoder))
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    data = data_config(resize="bicubic", test_resize="bilinear", decoder=decoder)
    for train, kernel in ((True, Image.Resampling.BICUBIC), (False, Image.Resampling.BILINEAR)):
        want = np.asarray(Image.fromarray(RGB).resize((8, 16), kernel))
        np.testing.assert_array_equal(decode.of(data, train)(file.getvalue(), 16, 8), want)
    with pytest.raises(ConfigError, match=r"data\.resize"):
        decode.of(data_config(resize="nearest"))


def changes(**fields):
    return Changes.of(data_config(height=16, width=8, **fields))


def test_parts_of_pictures():
    rng, picture = np.random.default_rng(0), Image.new("RGB", (60, 160))
    boxes = [changes(crop="resized").box(rng, picture) for _ in range(300)]
    whole = [b for b in boxes if b == (0, 0, 60, 160)]
    left, top, right, bottom = np.array([b for b in boxes if b not in whole]).T
    w, h = right - left, bottom - top
    assert (w * h / (60 * 160) > 0.62).all() and (h / w > 1.95).all() and (h / w < 3.05).all()
    assert (left >= 0).all() and (top >= 0).all() and (right <= 60).all() and (bottom <= 160).all()
    assert len({*left}) > 5 and len({*top}) > 20 and len(whole) < 30
    flat = changes(crop="resized").box(rng, Image.new("RGB", (160, 20)))
    assert flat == (0, 0, 160, 20)  # nothing upright fits


def test_a_part_of_the_enlarged_picture():
    rows, columns = np.mgrid[:18, :9]
    picture = np.stack([rows * 10, columns * 20, 0 * rows], -1).astype(np.uint8)
    seen = set()
    for i in range(40):
        out = changes(crop="larger").made(np.random.default_rng(i), picture, False, True)
        assert out.shape == (16, 8, 3)
        y, x = out[0, 0, 0] // 10, out[0, 0, 1] // 20
        np.testing.assert_array_equal(out, picture[y : y + 16, x : x + 8])
        seen.add((int(y), int(x)))
    assert seen == {(y, x) for y in range(3) for x in range(2)}


def test_operations_of_autoaugment():
    image, names = Image.fromarray(RGB), {name for pair in autoaugment.POLICY for name, *_ in pair}
    assert names == set(autoaugment.OPERATIONS) and len(autoaugment.POLICY) == 25

    def of(name, strength, sign=1):
        return np.asarray(autoaugment.OPERATIONS[name](image, strength / 9, sign)).astype(int)

    np.testing.assert_array_equal(of("invert", 0), 255 - RGB.astype(int))
    np.testing.assert_array_equal(of("posterize", 9), RGB & 0b11110000)  # 4 bits
    threshold = 255 * 5 / 9
    np.testing.assert_array_equal(of("solarize", 4), np.where(threshold <= RGB, 255 - RGB.astype(int), RGB))
    np.testing.assert_array_equal(of("equalize", 0), np.asarray(ImageOps.equalize(image)))
    np.testing.assert_array_equal(of("color", 0), RGB)
    assert (of("contrast", 9, -1).std() < 0.2 * RGB.std()) and (of("rotate", 9) != of("rotate", 9, -1)).any()
    sheared = of("shear", 9)
    np.testing.assert_array_equal(sheared[0], RGB[0])
    made = [np.asarray(autoaugment.changed(image, np.random.default_rng(i % 50))) for i in range(100)]
    np.testing.assert_array_equal(made[:50], made[50:])
    assert len({m.tobytes() for m in made}) > 15


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, records = tmp_path_factory.mktemp("pictures"), []
    for i in range(12):
        path = str(folder / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 16, 3), np.uint8)).save(path)
        records.append(Record(path, i // 3, i % 3))
    return Dataset("tiny", str(folder), tuple(records), (), (), ("c1", "c2", "c3"))


def test_changed_batches_are_a_function_of_the_step(dataset):
    """Threads, a later start and shards change nothing; some pictures are as they were."""
    fields = dict(height=16, width=8, ids=2, instances=3, threads=1, prefetch=2)
    fields |= dict(crop="resized", crop_share=0.5, autoaugment=0.3, jitter=(0.2, 0.0, 0.0))
    fields |= dict(erase_fill="normal")
    whole = take(dataset, data_config(**fields), 4)
    assert_equal(whole[2:], take(dataset, data_config(**{**fields, "threads": 3}), 2, first_step=2))
    parts = [take(dataset, data_config(**fields), 4, shard=(i, 2)) for i in range(2)]
    batches = zip(*parts, strict=True)
    assert_equal(whole, [{k: np.concatenate([p[k] for p in b]) for k in b[0]} for b in batches])
    plain = take(dataset, data_config(**{**fields, "crop": "none", "autoaugment": 0.0}), 4)
    same = [(a["image"] == b["image"]).all((1, 2, 3)) for a, b in zip(whole, plain, strict=True)]
    assert 0.2 < np.mean(same) < 0.6
    assert whole[0].keys() == plain[0].keys()


@pytest.mark.parametrize("fields, match", [
    (dict(crop="half"), r"data\.crop"), (dict(crop_share=2.0), "crop_share"),
    (dict(crop_area=(0, 1)), "crop_area"),
    (dict(crop_aspect=(3, 2)), "crop_aspect"), (dict(crop_scale=0.5), "crop_scale"),
    (dict(autoaugment=1.5), "autoaugment"), (dict(erase_tries=0), "erase_tries"),
    (dict(erase_fill="grey"), "erase_fill"), (dict(jitter=(0.1, 0.2)), "jitter"),
    (dict(erase_aspect=(3.0, 2.0)), "erase_aspect"), (dict(frames=2, autoaugment=0.1), "data.frames"),
])  # fmt: skip
def test_bad_fields(dataset, fields, match):
    with pytest.raises(ConfigError, match=match):
        opened(dataset, data_config(**{**dict(height=16, width=8, ids=2, instances=3), **fields}))
