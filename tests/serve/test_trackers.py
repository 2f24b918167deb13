"""What trackers call: boxes are cut out, rounded and clipped as said; frames are BGR."""

import numpy as np
import pytest

from reid_jax.errors import DataError
from reid_jax.serve import pictures, trackers

FRAME = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


class Means(trackers.Trackers):
    """An embedder whose features are the mean RGB of each picture."""

    reader = pictures.Reader(8, 4)

    def __call__(self, given, channels="rgb"):
        rows = [pictures.whole(x, channels).reshape(-1, 3).mean(0) for x in pictures.each(given)]
        return np.array(rows, np.float32).reshape(-1, 3)


def mean(x1, y1, x2, y2):
    return FRAME[y1:y2, x1:x2, ::-1].reshape(-1, 3).mean(0)


def test_get_features_of_boxmot():
    boxes = [
        [1.4, 2.6, 10, 12, 0.9, 0],
        [-5, -5, 3, 4, 0.5, 1],
        [25, 15, 99, 99, 0.5, 1],
        [5, 5, 5, 9, 0.5, 1],
    ]
    found = Means().get_features(np.array(boxes), FRAME)
    want = [mean(1, 3, 10, 12), mean(0, 0, 3, 4), mean(25, 15, 30, 20), np.zeros(3)]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert Means().get_features(np.zeros((0, 4)), FRAME).shape == (0, 3)
    with pytest.raises(DataError, match="rotated boxes"):
        Means().get_features(np.zeros((2, 5)), FRAME)
    with pytest.raises(DataError, match="not finite"):
        Means().get_features([[0, 0, np.nan, 4]], FRAME)


def test_predict_and_encoder():
    crops = [FRAME[3:12, 1:10], FRAME[:0]]
    found = Means().predict(crops)
    assert isinstance(found, list)
    np.testing.assert_allclose(found, [mean(1, 3, 10, 12), np.zeros(3)], rtol=1e-6)
    np.testing.assert_allclose(Means().encoder(FRAME, [[1, 3, 9, 9]]), [mean(1, 3, 10, 12)], rtol=1e-6)
    assert Means().encoder(FRAME, []).shape == (0, 3)


def test_crops_are_of_rgb_pictures():
    np.testing.assert_allclose(Means().crops(FRAME, [[1, 3, 10, 12]])[0], mean(1, 3, 10, 12)[::-1], rtol=1e-6)
