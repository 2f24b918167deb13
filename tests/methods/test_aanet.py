"""AANet: bands, attention map and task weights against loops and by hand; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of, tiny
from small import Stepping, drawn
from stage_cases import batches, facts, parts

from reid_jax.data import attributes
from reid_jax.data.synthetic import truth
from reid_jax.errors import ConfigError
from reid_jax.models.heads import regions
from reid_jax.train import stages


def test_bands_around_peaks():
    """Against a loop over pictures, channels and bands."""
    x = np.random.default_rng(0).normal(size=(3, 8, 3, 5)).astype(np.float32)
    found = np.asarray(regions.bands(jnp.asarray(x), 4, 1 / 6))
    for b in range(3):
        rows = [int(np.unravel_index(x[b, :, :, c].argmax(), (8, 3))[0]) for c in range(5)]
        for band in range(4):
            mine = [r for r in rows if r // 2 == band]
            peak = np.mean(mine) if mine else band * 2 + 0.5
            box = [r for r in range(8) if abs(r - peak) <= 8 / 6]
            np.testing.assert_allclose(found[band, b], x[b, box].mean((0, 1)), atol=1e-6)
    narrow = np.asarray(regions.bands(jnp.asarray(x), 4, 0.0))  # the nearest row at least
    assert np.isfinite(narrow).all() and abs(narrow - found).max() > 0.1


def test_attention_is_the_largest_map_without_weak_entries():
    maps = jnp.array([[[[0.0, 1.0], [2.0, 10.0]], [[3.0, 0.0], [1.5, 1.0]]]])
    expected = [[[1.0, 0.0], [0.5, 1.0]]]  # 0.1 is below 0.3
    np.testing.assert_allclose(regions.attention(maps, 0.3), expected, atol=1e-6)
    assert float(regions.attention(maps, 0.0)[0, 0, 1]) == pytest.approx(0.1)


def test_rows_of_a_region():
    x = jnp.arange(6.0)[None, :, None, None]
    shown = {name: regions.rows_of(x, *part)[0, :, 0, 0].tolist() for name, part in regions.REGIONS.items()}
    assert shown == {"whole": [0, 1, 2, 3, 4, 5], "top": [0, 1], "middle": [2, 3], "lower": [3, 4, 5]}
    assert regions.rows_of(x[:, :1], *regions.REGIONS["lower"]).shape[1] == 1


@pytest.fixture(scope="module")
def built():
    config, method = stages.build(tiny("aanet"), "train", facts(tiny("aanet"), cams=2))
    return config, method, drawn(method)


@pytest.mark.slow
def test_a_step_learns_the_weights_of_the_tasks(built):
    """The loss is the sum at s = 0, and s moves against 1/2 - L_t."""
    config, method, state = built
    (part,) = parts(method)
    made = batches(part, jax.tree.map(np.asarray, state), config.data)
    new, metrics = Stepping(part.step)(state, made)
    each = np.array([metrics[task] for task in config.aanet.tasks])
    np.testing.assert_allclose(metrics["loss"], each.sum(), rtol=1e-5)
    s = np.asarray(new.nets["net"]["params"]["log_variance"])
    assert (s > 0).all() and (each > 0.5).all()
    feature = method.embed(state, made["train"]["image"][:2], "net")
    assert feature.shape == (2, 16 + 2 * 8 + 16)
    np.testing.assert_allclose((np.asarray(feature) ** 2).sum(1), 4, rtol=1e-4)


def test_unknown_attributes_do_not_count(built):
    _, method, _ = built
    logits = [jnp.asarray(np.random.default_rng(i).normal(size=(4, 3))) for i in range(2)]
    table = jnp.array([[0, 1], [-1, 2], [2, -1], [-1, -1]])
    method = type(method)(method.config, method.info._replace(axis_name=None))
    found = method.attribute_losses(logits, table)
    by_hand = [
        -np.mean([jax.nn.log_softmax(x)[row, table[row, n]] for row in range(4) if table[row, n] >= 0])
        for n, x in enumerate(logits)
    ]
    np.testing.assert_allclose(found["attribute"], np.mean(by_hand), rtol=1e-5)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"aanet__tasks": ("global", "aam")}, "aam needs attribute"),
        ({"aanet__tasks": ("attribute",)}, "an identity task"),
        ({"aanet__attributes": (("hat", 2, "feet"),)}, "region of hat"),
        ({"data__frames": 4}, "for pictures"),
    ],
)
def test_what_cannot_be(changes, match):
    config = config_of("aanet.py:smoke", **changes)
    with pytest.raises(ConfigError, match=match):
        stages.build(config, "train", facts(config, cams=2))


def test_a_table_of_other_columns_is_refused():
    config = config_of("aanet.py:smoke")
    info = facts(config, cams=2)
    for table, match in ((info.attributes[:, 1:], "describe its columns"), (None, "learns attributes")):
        with pytest.raises(ConfigError, match=match):
            stages.build(config, "train", info._replace(attributes=table))


def test_described_columns_are_those_of_the_tables():
    """The published files' and the synthetic people's, by name and number of classes."""
    for variant, name in (("market", "market_attribute"), ("duke", "duke_attribute")):
        plain, colours = attributes.FILES[name]
        columns = config_of(f"aanet.py:{variant}").aanet.attributes
        assert [n for n, _, _ in columns] == [*plain, *(c for c, _, _ in colours)]
        assert [c for _, c, _ in columns[-2:]] == [len(names) + 1 for *_, names in colours]
    columns = config_of("aanet.py:synthetic").aanet.attributes
    assert [(n, c) for n, c, _ in columns] == list(truth.ATTRIBUTES)
