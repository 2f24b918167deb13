"""From a run to an answer, with the real model."""

import pytest

import reid_jax
from reid_jax.errors import DataError

pytest.importorskip("reid_jax.serve.embedder")


def test_from_a_run_to_an_answer(trained, tmp_path):
    pictures = sorted(map(str, (trained / "pictures").glob("*.jpg")))
    cameras = [path.split("_c")[1][0] for path in pictures]
    e = reid_jax.load(str(trained / "run"))
    with reid_jax.Gallery(tmp_path / "people.sqlite", e, precision="float32") as g:
        g.add(pictures, camera=cameras)
        hits = g.search(pictures[1], k=99)  # of random weights: people look alike
        assert {h.source for h in hits} == set(pictures) and abs(hits[0].score - 1) < 1e-5
        others = g.search(pictures[1], k=99, not_camera=cameras[1])
        assert len(others) == sum(c != cameras[1] for c in cameras)
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        with pytest.raises(DataError):
            g.add(tmp_path / "broken.jpg")
        assert g.add([tmp_path / "broken.jpg", pictures[0]], on_broken="skip")[0] is None
        assert isinstance(g.thresholds(), dict) and g.model == e.hash
