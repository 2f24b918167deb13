"""The synthetic set with infrared cameras: SYSU-MM01's tree, grey pictures, the same people in both."""

import os

import numpy as np
import pytest
from PIL import Image

from reid_jax.data.datasets import read_synthetic
from reid_jax.data.synthetic import generate, infrared
from reid_jax.errors import DataError

SMALL = dict(kind="infrared", train_ids=4, test_ids=2, images=1, height=32, width=16, progress=False)


def test_tree_and_pictures(tmp_path):
    folder = generate(str(tmp_path), **SMALL)
    dataset = read_synthetic(folder)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (4 * 6, 2 * 2, 2 * 4)
    assert dataset.protocol == "sysu-all"
    light = ["infrared" in name for name in dataset.camera_names]
    assert [i for i, dark in enumerate(light) if dark] == list(infrared.INFRARED)
    assert {r.camid for r in dataset.query} == set(infrared.INFRARED)
    for record in dataset.train:
        picture = np.asarray(Image.open(record.path)).astype(int)
        coloured = np.abs(picture - picture.mean(-1, keepdims=True)).mean()
        assert (coloured < 1) == light[record.camid]
    assert open(os.path.join(folder, "exp", "val_id.txt")).read() == "4\n"


def test_as_many_cameras_as_the_layout_has(tmp_path):
    with pytest.raises(DataError, match="cameras = 4 must be 6 for kind infrared"):
        generate(str(tmp_path), **SMALL, cameras=4)
