"""Features of batches as Ray Data hands them over."""

import os
import shutil
import signal
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


SCRIPT = """
import sys, ray
from reid_jax.serve.batch import Embed

run, folder, output = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=1 << 27)
pictures = ray.data.read_binary_files(folder, include_paths=True)
features = pictures.map_batches(
    Embed, fn_constructor_args=(run,), batch_size=4, compute=ray.data.ActorPoolStrategy(size=1)
)
features.write_parquet(output)
assert "jax" not in sys.modules
ray.shutdown()
"""


@pytest.mark.slow
def test_under_ray(trained, files, tmp_path):
    """As the guide has it: files -> features on a disk. The driver is a process without JAX, as Ray forks."""
    pytest.importorskip("ray")
    folder, output = tmp_path / "pictures", tmp_path / "features"
    folder.mkdir()
    for path in files:
        shutil.copy(path, folder)
    (folder / "cut.jpg").write_bytes(Path(files[0]).read_bytes()[:300])
    command = [str(c) for c in (sys.executable, "-c", SCRIPT, trained / "run", folder, output)]
    # Ray's workers yield to all other processes, by 15: beside them, on a busy machine, they hardly ever run
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    with subprocess.Popen(command, start_new_session=True, env=environment) as process:
        try:
            assert process.wait(480) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    table = pyarrow_table(output)
    by_name = {os.path.basename(path): i for i, path in enumerate(table["path"])}
    assert len(by_name) == len(files) + 1 and sorted(table) == ["broken", "feature", "path"]
    assert "cannot be read" in table["broken"][by_name["cut.jpg"]]
    found = np.array([table["feature"][by_name[os.path.basename(path)]] for path in files])
    np.testing.assert_allclose(found, reid_jax.load(trained / "run", device="cpu")(files), atol=1e-6)


def pyarrow_table(folder):
    """{column: list} of the Parquet files of a folder."""
    from pyarrow import parquet

    return parquet.read_table(folder).to_pydict()
