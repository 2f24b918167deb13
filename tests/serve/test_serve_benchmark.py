"""The benchmark of the gallery at its smallest: it runs, and its figures fit together."""

import pytest

from reid_jax.benchmarks import serve
from reid_jax.errors import ConfigError


def test_figures(tmp_path, capsys):
    parts = ["search", "store"]
    for part, package in (("index", "faiss"), ("page", "uvicorn")):
        try:
            __import__(package)
            parts.append(part)
        except ImportError:
            pass
    small = ["--backbone=narrow", "--picture=64x32", "--pictures=5", "--batch=4", "--rounds=1"]
    sizes = ["--rows=900", "--dim=48", "--requests=2", *small]
    found = serve.main([*sizes, f"--parts={','.join(parts)}", f"--folder={tmp_path}"])
    wanted = {"search_1", "search_200", "add", "load"} | (
        {"page_p95", "page_p95_toy"} if "page" in parts else set()
    )
    assert all(found[name] > 0 for name in wanted) and "target at most" in capsys.readouterr().out
    found = serve.main([*small, "--parts=model", "--rows=201", "--dim=8", f"--folder={tmp_path}"])
    assert found["embed_arrays"] > 0 and found["embed_files"] > 0
    with pytest.raises(ConfigError, match="knows search, store, index, page, model, not x"):
        serve.parse(["--parts=x"])
