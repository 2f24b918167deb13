"""Random arrays like those a study keeps."""

import numpy as np


def study_arrays():
    """{name: array} of eval/STAGE/study.npz: 30 codes, a grid of 3 by 4, maps of two people."""
    rng = np.random.default_rng(0)
    return {
        "band/score/x": np.linspace(1, 4, 7, dtype=np.float32),
        "band/score/y": rng.standard_normal((7, 5), np.float32),
        "hist/score/clean": rng.standard_normal(6, np.float32),
        "hist/score/degraded": rng.standard_normal(6, np.float32),
        "scatter/code/points": rng.standard_normal((30, 4), np.float32),
        "scatter/code/brightness": rng.uniform(0, 255, 30),
        "scatter/code/sharpness": rng.uniform(0, 20, 30),
        "scatter/code/score": rng.standard_normal(30, np.float32),
        "grid/cross": rng.integers(0, 256, (3, 4, 16, 8, 3), np.uint8),
        "map/image": rng.integers(0, 256, (2, 2, 16, 8, 3), np.uint8),
        "map/content": rng.uniform(0, 5, (2, 2, 4, 2)).astype(np.float32),
        "map/teacher": rng.uniform(0, 9, (2, 2, 2, 1)).astype(np.float32),
    }
