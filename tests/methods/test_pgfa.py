"""PGFA: heat maps against loops and against Pillow, the score's features, what is refused."""

import jax
import numpy as np
import pytest
from runs import config_of, load, tiny
from scipy.special import erf
from small import drawn
from stage_cases import batches, facts, parts

from reid_jax.errors import ConfigError
from reid_jax.methods import pgfa
from reid_jax.models import weights
from reid_jax.models.heads import pose
from reid_jax.train import evaluate, stages
from reid_jax.train.devices import Devices


def some_points():
    """Two pictures of 18 points: of the first some are not sure or at 0; of the second none is."""
    rng = np.random.default_rng(0)
    found = np.float32(rng.uniform(0, 1, (2, 18, 3)) * (44, 96, 1))
    found[0, :, 2] = np.linspace(0, 1, 18)
    found[0, 10, 0], found[0, 11, 1] = 0, 0
    found[1, :, 2] = 0.2
    return found, np.float32([[96, 44], [80, 40]])


def dense(points, size, shape, fine=64):
    """The Gaussian's means over cells by sums over a fine grid, of one point."""
    height, width = size
    y = (np.arange(shape[0] * fine) + 0.5) * height / (shape[0] * fine) - np.floor(points[1]) - 0.5
    x = (np.arange(shape[1] * fine) + 0.5) * width / (shape[1] * fine) - np.floor(points[0]) - 0.5
    s = height * width / 1000
    heat = np.exp(-(y[:, None] ** 2 + x**2) / (2 * s * s))
    return heat.reshape(shape[0], fine, shape[1], fine).mean((1, 3))


def test_heat_over_cells():
    points, size = some_points()
    heat = np.asarray(pose.cell_heat(points, size, (6, 4), (48, 24)))
    sure = (points[0, :, 2] > 0.2) & (points[0, :, 0] > 0) & (points[0, :, 1] > 0)
    assert 10 < sure.sum() < 16 and (heat[0, ~sure] == 0).all() and (heat[1] == 1).all()
    for j in np.flatnonzero(sure):
        np.testing.assert_allclose(heat[0, j], dense(points[0, j], size[0], (6, 4)), atol=1e-4)
    pillow = pose.pillow_heat(points, size, (6, 4))
    assert abs(heat - pillow).max() < 0.2 and (pillow[1] == 1).all()  # whose filter reaches farther


def test_heat_follows_flip_and_crop():
    """As if the heat of the whole view had been flipped, then moved by the crop."""
    points, size = some_points()
    plain = np.asarray(pose.cell_heat(points, size, (48, 24), (48, 24)))
    moved = pose.cell_heat(
        points, size, (48, 24), (48, 24), flip=np.array([True, True]), crop=np.array([[1, 4], [2, 2]]), pad=2
    )
    np.testing.assert_allclose(moved[0, :, 1:, :-2], plain[0, :, :-1, ::-1][..., 2:], atol=1e-5)
    assert (np.asarray(moved[1]) == 1).all() and abs(erf(0.5) - 0.5205) < 1e-4


def test_visible_stripes():
    points = np.zeros((3, 18, 3), np.float32)
    points[:, :4, 2] = 0.9
    points[:, :4, 1] = (10, 20, 32, 90)  # 32 lies on the border of stripes 0 and 1 of three
    points[1, 2:4, 2] = 0.2  # fewer than 3
    points[2, 3, 1] = 64
    seen = pose.visible(points, np.float32([96, 96, 96]), 3)
    assert seen.tolist() == [[1, 0, 1], [1, 1, 1], [1, 0, 0]]


@pytest.fixture(scope="module")
def built():
    config, method = stages.build(tiny("pgfa"), "train", facts(tiny("pgfa"), cams=2))
    return config, method, drawn(method)


@pytest.mark.slow
def test_points_reach_the_features(built):
    """By points only: the pose's part moves with them, stripes count where they are seen."""
    config, method, state = built
    (part,) = parts(method)
    batch = batches(part, jax.tree.map(np.asarray, state), config.data)["train"]
    image = np.repeat(batch["image"][:1], 3, 0)
    points, size = np.repeat(batch["points"][:1], 3, 0), batch["size"][:3]
    points[1, :, 1] = 20  # all in the upper half
    points[2, :, 2] = 0
    embed = jax.jit(lambda s, b: method.embed_batch(s, b, "net"))
    feature = np.asarray(embed(state, {"image": image, "points": points, "size": size}))
    assert feature[:, -3:].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    unknown = np.asarray(method.embed(state, image[:1], "net"))
    np.testing.assert_allclose(unknown[0], feature[2], atol=1e-5)
    assert abs(feature[0, :8] - feature[1, :8]).max() > 1e-3
    np.testing.assert_allclose((feature[:, :-3] ** 2).sum(1), feature[:, -3:].sum(1), rtol=1e-5)


def test_heat_by_pillow_in_a_step(built):
    """On the host, flipped there: the same in the mirror as cells are, up to 8 bits."""
    config = tiny("pgfa", pgfa__heat="pil")
    _, method = stages.build(config, "train", facts(config, cams=2))
    points, size = some_points()
    batch = {"points": points, "size": size}
    flip = np.array([True, False])
    heat = jax.jit(lambda b: method.heat(b, flip, None)((6, 4)))(batch)
    expected = pose.pillow_heat(points, size, (6, 4))
    np.testing.assert_array_equal(heat[0], expected[0, :, :, ::-1])
    apart = {name: array[:, None] for name, array in batch.items()}  # a picture on each of two devices
    found = jax.pmap(lambda b: method.heat(b)((6, 4)), devices=jax.devices()[:2])(apart)
    np.testing.assert_array_equal(found[:, 0], expected)


def test_keys_of_the_published_files(built):
    _, method, state = built
    entries = weights.to_torch(jax.tree.map(np.asarray, dict(state.nets["net"])), "pgfa")
    assert {"global.add_block.0.weight", "partial1.classifier.0.bias"} <= set(entries)
    assert any(k.startswith("model.") for k in entries)
    read, report = weights.load(entries, jax.tree.map(np.zeros_like, state.nets["net"]))
    assert not report["missing"] and not report["unused"]
    np.testing.assert_array_equal(
        read["params"]["global"]["add_block_0"]["kernel"],
        state.nets["net"]["params"]["global"]["add_block_0"]["kernel"],
    )


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"eval__distance": "cosine"}, "set it to ratio3"),
        ({"pgfa__parts": 3}, "set it to ratio4"),
        ({"pgfa__heat": "pil", "data__pad_crop": 2}, "pad_crop=0"),
        ({"pgfa__dropout": 1.0}, "below 1"),
        ({"data__frames": 4}, "for pictures"),
    ],
)
def test_what_cannot_be(changes, match):
    config = config_of("pgfa.py:smoke", **changes)
    with pytest.raises(ConfigError, match=match):
        stages.build(config, "train", facts(config, cams=2))


@pytest.mark.parametrize("channels, count", [(4096, 1229758), (2048, 705470)])
def test_parameters_of_the_classifiers(channels, count):
    """Of the pose and of a stripe for 702 identities, as the published code has them."""
    block = pose.ClassBlock(702)
    shapes = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, False), np.zeros((1, channels)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_training_rows_without_points_are_refused():
    config = config_of("pgfa.py:smoke")
    info = facts(config, cams=2)
    with pytest.raises(ConfigError, match="learns from body points"):
        stages.build(config, "train", info._replace(labelled=info.labelled._replace(extras={})))


def test_published_settings():
    t = config_of("pgfa.py:occluded_duke")
    assert (t.data.name, t.data.variant, t.data.height, t.data.width) == ("dukemtmc", "occluded", 384, 128)
    assert (t.data.ids * t.data.instances, t.data.erase, t.data.flip, t.train.epochs) == (32, 0, 0.5, 60)
    assert (t.optim.kind, t.optim.lr, t.optim.nesterov, t.optim.milestones) == ("sgd", 0.1, True, (40,))
    assert (t.optim.weight_decay, t.optim.groups[0][1]) == (5e-4, 0.1)
    assert (t.pgfa.lam, t.pgfa.parts, t.pgfa.dim, t.eval.distance) == (0.2, 3, 256, "ratio4")
    assert pgfa.total(2.0, 1.0, 0.2) == pytest.approx(1.2)


@pytest.mark.slow
def test_what_is_seen_and_matched(tmp_path):
    """Half hidden queries show fewer stripes than the gallery; hidden ones match nothing."""
    config = tiny("pgfa", data__synthetic__kind="occluded")
    dataset = load(config, tmp_path)
    _, method = stages.build(config, "train", facts(config))
    state, devices = drawn(method), Devices(jax.devices()[:1])
    measure = method.study(dataset, lambda f: evaluate.InBatches(f, 16, devices))
    figures, arrays = measure(devices.local_state(devices.replicate(state)))
    assert figures["visible"] < figures["visible_gallery"] and 0 <= figures["mAP_every"] <= 100
    shown, seen, both = (arrays[f"map/{name}"] for name in ("image", "visible", "matched"))
    assert shown.shape[:2] == seen.shape[:2] == (8, 2) and seen.shape[2:] == (16, 1)
    hidden = seen.min(1) == 0
    assert hidden.any() and (both[:, 0][hidden] == 0).all() and (both[:, 0][~hidden] > 0).all()
    assert np.array_equal(both[:, 0], both[:, 1])
