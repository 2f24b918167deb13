"""The comparison table against hand numbers."""

import pytest

from reid_jax import compare
from reid_jax.errors import ConfigError


def figures(rank1, seconds=60.0):
    return {
        "rank1": rank1,
        "mAP": rank1 / 2,
        "prop": 20.0,
        "camera_probe": 70.0,
        "net": "m1",
        "seconds": seconds,
    }


def test_table_has_means_spreads_and_paired_gains(tmp_path):
    results = {
        "baseline": {0: figures(50.0), 1: figures(60.0)},
        "EFL": {0: figures(56.0, 120.0), 1: figures(58.0, 120.0)},
    }
    text = compare.write(results, tmp_path)
    base, efl = text.splitlines()[2:]
    assert "| 55.0 ± 7.1 |" in base and "| - |" in base
    assert "| 57.0 ± 1.4 |" in efl and "| 2.0 ± 5.7 (up in 1 of 2) |" in efl and "| 2.0 |" in efl
    assert (tmp_path / "table.csv").read_text().splitlines()[1] == "baseline,0,50.0,25.0,20.0,70.0,m1,60.0"
    assert (tmp_path / "table.md").read_text() == text


def test_arguments():
    argv = "--workdir w --seeds 3,4 a=configs/efl.py:smoke b=configs/baseline.py:smoke -- --config.seed=2"
    args = compare.arguments(argv.split())
    assert args.runs == {"a": "configs/efl.py:smoke", "b": "configs/baseline.py:smoke"}
    assert args.seeds == [3, 4] and args.extra == ["--config.seed=2"]
    with pytest.raises(ConfigError, match="LABEL=CONFIG"):
        compare.labelled("configs/efl.py:smoke")
    with pytest.raises(ConfigError, match="does not exist"):
        compare.load_config("configs/nothing.py")
