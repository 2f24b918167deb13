"""`embed` in blocks: resumed after a stop, by one process or several, the same file byte for byte."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_jax.commands import embed
from reid_jax.errors import DataError, PictureError
from reid_jax.eval import store
from reid_jax.serve import shares
from reid_jax.train import embedding

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def many(tmp_path):
    """Folder of 21 pictures, two of which are broken."""
    rng, folder = np.random.default_rng(0), tmp_path / "many"
    folder.mkdir()
    for i in range(21):
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), np.uint8)).save(folder / f"{i:02d}.png")
    for name in ("03.png", "20.png"):
        (folder / name).write_bytes(b"no picture")
    return folder


def call(trained, folder, output, *flags):
    """The bytes of the file of the command with batches of 8, in blocks of 8."""
    flags = ["--output", str(output), "--batch=8", *flags]
    assert embed.main([str(trained / "run"), str(folder), *flags]) == 0
    return output.read_bytes()


@pytest.mark.slow
def test_a_stopped_command_goes_on(trained, many, tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "BATCHES", 1)
    whole = call(trained, many, tmp_path / "a.npz", "--on-broken=nan")
    assert not os.path.exists(tmp_path / "a.npz.parts")
    found = store.load(tmp_path / "a.npz")
    assert np.flatnonzero(np.isnan(found.feature).any(1)).tolist() == [3, 20]

    save, images, read = shares.save, embedding.embed_images, []

    def stopped(place, rows, gone):
        if place.endswith("000001.npz"):
            raise KeyboardInterrupt
        save(place, rows, gone)

    def counted(config, embedder, state, records, *rest, **options):
        read.append(len(records))
        return images(config, embedder, state, records, *rest, **options)

    monkeypatch.setattr(shares, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        call(trained, many, tmp_path / "b.npz", "--on-broken=nan")
    monkeypatch.setattr(shares, "save", save)
    monkeypatch.setattr(embedding, "embed_images", counted)
    assert call(trained, many, tmp_path / "b.npz", "--on-broken=nan") == whole and read == [13]

    # blocks of other work are not taken for these
    shutil.copytree(tmp_path / "many", tmp_path / "more")
    (tmp_path / "c.npz.parts").mkdir()
    np.savez(tmp_path / "c.npz.parts" / "000000.npz", feature=np.zeros((8, 2)), gone=np.array([], "U"))
    call(trained, tmp_path / "more", tmp_path / "c.npz", "--on-broken=nan")
    np.testing.assert_array_equal(store.load(tmp_path / "c.npz").feature, found.feature)

    call(trained, many, tmp_path / "d.npz", "--on-broken=skip")
    left = store.load(tmp_path / "d.npz")
    keep = ~np.isnan(found.feature).any(1)
    np.testing.assert_array_equal(left.feature, found.feature[keep])
    assert left.path.tolist() == found.path[keep].tolist()
    with pytest.raises(PictureError, match="03.png.*--on_broken=skip"):
        call(trained, many, tmp_path / "e.npz")

    # a damaged block
    real = shares.joined

    def damaged(work, *rest):
        Path(work.place(2)).write_bytes(b"cut")
        return real(work, *rest)

    monkeypatch.setattr(shares, "joined", damaged)
    with pytest.raises(DataError, match="000002.npz is damaged.*delete it"):
        call(trained, many, tmp_path / "f.npz", "--on-broken=nan")
    for path in many.iterdir():
        path.write_bytes(b"no picture")
    monkeypatch.setattr(shares, "joined", real)
    with pytest.raises(PictureError, match="none of the pictures can be read"):
        call(trained, many, tmp_path / "g.npz", "--on-broken=nan")


@pytest.mark.slow
def test_several_processes(trained, many, tmp_path):
    """Two processes, one of which is killed after its first block; then both again: the bytes of one."""
    code = "import sys; from reid_jax.serve import shares; shares.BATCHES = 1\n"
    code += "if '--kill' in sys.argv:\n"
    code += "    sys.argv.remove('--kill'); save = shares.save\n"
    code += "    def once(*a): save(*a); import os; os.kill(os.getpid(), 9)\n"
    code += "    shares.save = once\n"
    code += "from reid_jax import cli; from reid_jax.commands import embed; cli.run(embed.main)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-c", code, str(trained / "run"), str(many), "--batch=8", "--on-broken=nan"]

    def start(output, count=1, kill=()):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        join = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"] if count > 1 else []
        own = [[*join, f"--process_id={i}"] if join else [] for i in range(count)]
        started = [
            subprocess.Popen(
                [*argv, "--output", str(output), *o, *(["--kill"] if i in kill else [])], env=environment
            )
            for i, o in enumerate(own)
        ]
        try:
            return [p.wait(200) for p in started]
        finally:
            for p in started:
                p.kill()

    assert start(tmp_path / "one.npz") == [0]
    ends = start(tmp_path / "two.npz", 2, kill=(0, 1))  # one that misses the other may abort before its own
    assert -9 in ends and set(ends) <= {-9, -6}
    left = set(os.listdir(tmp_path / "two.npz.parts"))
    assert "key.json" in left and left & {"000000.npz", "000001.npz"}
    assert start(tmp_path / "two.npz", 2) == [0, 0]
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert start(tmp_path / "again.npz", 2) == [0, 0]
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
