"""Bodies of drawn people, as studies of generators measure pictures by them."""

from types import SimpleNamespace

import numpy as np

from reid_jax.config import defaults
from reid_jax.data import datasets
from reid_jax.fields import namespace
from reid_jax.methods import _study
from reid_jax.methods.dgnet import study


def test_edges_of_real_pictures_are_those_of_their_own_bodies(tmp_path):
    """On drawn people; another order of the silhouettes spoils it, and a flat picture has none."""
    data = defaults()["data"]
    data.update(name="synthetic", root=str(tmp_path), height=64, width=32, ids=1)
    data["synthetic"].update(train_ids=1, test_ids=24, cameras=2, images=2, height=64, width=32, junk=0)
    data = namespace(data)
    dataset = datasets.load(data, None)
    records = _study.one_each(dataset.gallery)
    people, bodies = _study.pictures(records, data), _study.silhouettes(dataset, records, data)
    assert bodies.shape == people.shape[:3] and 0 <= bodies.min() < 0.1 < 0.9 < bodies.max() <= 1
    own = study.shapes(people, people, bodies)
    assert own["outline"] == own["outline_real"] > 0.2 and own["shape"] > 80
    swapped = study.shapes(np.roll(people, 1, 0), people, bodies)
    assert swapped["shape"] == 100 - own["shape"] and swapped["outline"] < own["outline"] - 0.1
    assert study.shapes(np.zeros_like(people), people, bodies)["outline"] == 0
    assert _study.silhouettes(SimpleNamespace(root=str(tmp_path / "elsewhere")), records, data) is None


def test_edges_by_hand():
    """A step of 2 between two columns: the central difference is 1 on either side of it, 0 elsewhere."""
    maps = np.zeros((1, 3, 6))
    maps[..., 3:] = 2
    np.testing.assert_allclose(_study.edges(maps)[0], [[0, 0, 1, 1, 0, 0]] * 3)
