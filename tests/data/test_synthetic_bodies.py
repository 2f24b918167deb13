"""Silhouettes and swapped backgrounds of drawn sets."""

import numpy as np
import pytest

from reid_jax.data import images
from reid_jax.data.synthetic import bodies, generate
from reid_jax.errors import ConfigError


def small(root, **fields):
    sizes = dict(train_ids=1, test_ids=3, cameras=3, height=64, width=32, distractors=0, junk=0, strength=1.5)
    return generate(root, progress=False, **sizes | fields)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_bodies_stay_and_backgrounds_change(kind, tmp_path):
    folder = small(tmp_path, kind=kind, **({"frames": (3, 4)} if kind == "video" else {}))
    known = bodies.Bodies(folder)
    paths = [p for p in known.jobs if known.jobs[p].pid > 1][::5][:8]
    inside, outside, sizes = [], [], []
    for path in paths:
        body, job = known.silhouette(path), known.jobs[path]
        picture = images.original(f"{folder}/{path}").astype(float)
        made = known.swapped(path, (job.cam + 1) % 3).astype(float)
        gap = np.abs(picture - made).mean(2)
        assert body.shape == (64, 32) and 0 <= body.min() <= body.max() <= 1
        sizes.append((body > 0.5).mean())
        inside.append(gap[body > 0.99].mean())
        outside.append(gap[body < 0.01].mean())
    assert 0.08 < np.mean(sizes) < 0.5
    assert np.mean(inside) < 6 < 25 < np.mean(outside)  # JPEG alone within


def test_a_place_without_the_body_is_empty(tmp_path):
    """What is pasted on is the other camera's place, the same for two people in shots of one window."""
    folder = small(tmp_path, strength=0.0)
    known = bodies.Bodies(folder)
    assert any(j.pid == 1 for j in known.jobs.values())
    with pytest.raises(ConfigError, match="bodies are not known"):
        bodies.Bodies(tmp_path)
