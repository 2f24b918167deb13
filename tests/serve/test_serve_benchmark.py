"""The benchmark of the gallery at its smallest: it runs, and its figures fit together."""

import importlib.util

import pytest

from reid_jax.benchmarks import serve
from reid_jax.errors import ConfigError

SIZES = ["--rows=900", "--dim=48", "--rounds=1", "--requests=2"]


def test_figures(tmp_path, capsys):
    parts = ["search", "store"] + ["index"] * (importlib.util.find_spec("faiss") is not None)
    found = serve.main([*SIZES, f"--parts={','.join(parts)}", f"--folder={tmp_path}"])
    assert all(found[name] > 0 for name in ("search_1", "search_200", "add", "load"))
    assert "target at most" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="knows search, store, index, page, model, not x"):
        serve.parse(["--parts=x"])


@pytest.mark.slow
def test_figures_of_models(tmp_path):
    pytest.importorskip("uvicorn")
    small = ["--backbone=narrow", "--picture=64x32", "--pictures=5", "--batch=4"]
    found = serve.main([*SIZES, *small, "--parts=page,model", f"--folder={tmp_path}"])
    wanted = ("page_p95", "page_p95_toy", "page_median", "embed_arrays", "embed_files")
    assert all(found[name] > 0 for name in wanted)
