"""Style images beside the real ones."""

import numpy as np
import pytest

from reid_jax.data import rows, styles
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import DataError


def dataset(*pids):
    train = tuple(Record(f"/d/{p:04}_c{i}.jpg", p, i) for i, p in enumerate(pids))
    return Dataset("set", "/d", train, (), (), ("a", "b", "c"))


def test_they_have_identity_and_camera_of_the_real_image(tmp_path):
    names = (
        "0001_c1_fake_2to1.jpg",
        "0001_c1_fake_2to3.jpg",
        "0000_c0_fake_1to2.png",
        "9999_c1_fake_1to2.jpg",
    )
    for name in (*names, "0000_c0.jpg", "notes_fake.txt"):
        (tmp_path / name).touch()
    found = styles.add(dataset(0, 1, 1), str(tmp_path))
    assert [r.path.rpartition("/")[2] for r in found.train[3:]] == sorted(names[:3])
    assert [(r.pid, r.camid) for r in found.train[3:]] == [(0, 0), (1, 1), (1, 1)]
    labelled, _ = rows.rows_of(found)
    np.testing.assert_array_equal(labelled.extras["style"], [0, 0, 0, 1, 1, 1])


def test_what_cannot_be(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        styles.add(dataset(0), str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no images of set: .*_fake_1to2"):
        styles.add(dataset(0), str(tmp_path))
    with pytest.raises(DataError, match=r"config\.data\.styles needs training rows with identities"):
        styles.add(dataset(0, -1), str(tmp_path))
