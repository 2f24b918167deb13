"""Features of batches as Ray Data hands them over."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import reid_jax
from reid_jax.errors import ConfigError, DataError, PictureError
from reid_jax.serve.batch import Embed


def objects(values):
    """An object array, as Ray makes of bytes."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def test_batches(trained, files, arrays):
    apply = Embed(str(trained / "run"), "bytes", device="cpu", batch=4)
    contents = objects([*(Path(f).read_bytes() for f in files[:3]), b"no picture"])
    names = np.array([*files[:3], "x"])
    found = apply({"bytes": contents, "path": names})
    assert list(found) == ["path", "feature", "broken"] and found["path"] is names
    want = reid_jax.load(trained / "run", device="cpu", batch=4)(files[:4])
    np.testing.assert_array_equal(found["feature"][:3], want[:3])
    assert np.isnan(found["feature"][3]).all() and found["broken"].tolist()[:3] == ["", "", ""]
    assert "cannot be read" in found["broken"][3]

    apply.column, apply.keep = "path", True  # another column of the same model
    assert list(apply({"path": names[:3]})) == ["path", "feature", "broken"]
    apply.column, apply.given["on_broken"] = "image", "stop"
    mixed = apply({"image": np.stack(arrays[:2])})
    np.testing.assert_allclose(mixed["feature"], want[:2], atol=1e-6)
    assert list(mixed) == ["image", "feature"]
    with pytest.raises(PictureError, match="picture 0"):
        apply({"image": objects([b""])})
    with pytest.raises(ConfigError, match="a batch has no column 'image'; it has path"):
        apply({"path": names})
    with pytest.raises(DataError, match="a batch has 2 pictures and 4 of 'path'"):
        apply({"image": np.stack(arrays[:2]), "path": names})


def test_needs_no_ray():
    code = (
        "import sys; sys.modules['ray'] = None; import reid_jax.serve.batch; assert 'jax' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_under_ray(trained, files):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        table = ray.data.from_items([{"path": path, "number": i} for i, path in enumerate(files)])
        given = dict(fn_constructor_args=(str(trained / "run"), "path"), batch_size=4, concurrency=1)
        rows = table.map_batches(Embed, fn_constructor_kwargs={"device": "cpu"}, **given).take_all()
    finally:
        ray.shutdown()
    rows.sort(key=lambda row: row["number"])
    found = np.stack([row["feature"] for row in rows])
    np.testing.assert_allclose(found, reid_jax.load(trained / "run", device="cpu")(files), atol=1e-6)
