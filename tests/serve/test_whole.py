"""From a run to an answer, with the real model."""

import pytest

import reid_jax
from reid_jax.errors import PictureError

pytest.importorskip("reid_jax.serve.embedder")


def test_from_a_run_to_an_answer(trained, tmp_path):
    pictures = sorted(map(str, (trained / "pictures").glob("*.jpg")))
    cameras = [path.split("_c")[1][0] for path in pictures]
    e = reid_jax.load(str(trained / "run"))
    with reid_jax.Gallery(tmp_path / "people.sqlite", e) as g:
        g.add(pictures, camera=cameras)
        hit = g.search(pictures[1], k=1)[0]
        assert hit.source == pictures[1] and hit.score > 0.999
        others = g.search(pictures[1], k=99, not_camera=cameras[1])
        assert len(others) == sum(c != cameras[1] for c in cameras)
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        with pytest.raises(PictureError):
            g.add(tmp_path / "broken.jpg")
        assert g.add([tmp_path / "broken.jpg", pictures[0]], on_broken="skip")[0] is None
        assert isinstance(g.thresholds(), dict) and g.model == e.hash
