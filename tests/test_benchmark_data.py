"""The input pipeline's benchmark at the smallest size: its figures fit together."""

import importlib.util

import pytest

from reid_jax.benchmarks import data
from reid_jax.errors import ConfigError


def test_stages_and_ratios(capsys):
    args = [
        "--images=16",
        "--batch=8",
        "--batches=2",
        "--rounds=1",
        "--workers=1",
        "--height=32",
        "--width=16",
    ]
    got = data.main([*args, "--decoders", "pil"])
    names = ("file", "augment", "device", "decode_pil", "bare_pil", "batch_pil", "threads_pil", "placed_pil")
    for name in (*names, "built_pil", "workers_pil", "cached"):
        assert got[f"{name}_1"] > 0, name
    best = max(got["threads_pil_1"], got["workers_pil_1"])
    assert got["pil_of_decode_and_resize"] == pytest.approx(best / got["bare_pil_1"], abs=2e-3, rel=1e-2)
    assert ("torch_pil_1" in got) == (importlib.util.find_spec("torch") is not None)
    assert "pipeline, pil of decode and resize" in capsys.readouterr().out


def test_sizes():
    with pytest.raises(ConfigError):
        data.parse(["--batch=6"])
    with pytest.raises(ConfigError):
        data.parse(["--images=8", "--batch=64"])
