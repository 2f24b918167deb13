"""Images that show nobody, behind the real ones."""

import os

import numpy as np
import pytest

from reid_jax.data import generated, rows
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import DataError


def dataset(*pids, frames=()):
    train = tuple(Record(f"/d/{p:04}_c{i}.jpg", p, i, frames) for i, p in enumerate(pids))
    return Dataset("set", "/d", train, (), (), ("a", "b", "c"))


def test_they_lie_behind_the_rows_with_identities(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("b.png", "a.jpg", "more/c.JPG", "notes.txt"):
        (tmp_path / name).touch()
    joined = generated.add(dataset(0, 1, 1), str(tmp_path))
    added = [os.path.relpath(r.path, tmp_path) for r in joined.train[3:]]
    assert added == ["a.jpg", "b.png", "more/c.JPG"]
    assert joined.num_train_pids == 2
    labelled, unlabelled = rows.rows_of(joined)
    np.testing.assert_array_equal(labelled.pid, [0, 1, 1])
    np.testing.assert_array_equal(unlabelled.pid, [-1, -1, -1])
    assert (labelled.num_cams, unlabelled.start) == (3, 3)


def test_what_cannot_be(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        generated.add(dataset(0), str(tmp_path / "absent"))
    with pytest.raises(DataError, match="has no images"):
        generated.add(dataset(0), str(tmp_path))
    with pytest.raises(DataError, match=r"needs training rows that all have identities"):
        generated.add(dataset(0, -1), str(tmp_path))
    with pytest.raises(DataError, match="not tracklets"):
        generated.add(dataset(0, frames=("/d/a.jpg",)), str(tmp_path))
