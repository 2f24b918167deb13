"""Benchmarks at the smallest sizes: their figures fit together."""

import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from reid_jax.benchmarks import data as data_benchmark
from reid_jax.benchmarks import eval as eval_benchmark
from reid_jax.benchmarks import rounds, scaling
from reid_jax.benchmarks import step as step_benchmark
from reid_jax.errors import ConfigError
from reid_jax.eval import ranking
from reid_jax.plan import stored


@pytest.mark.parametrize("distance", ranking.DISTANCES)
def test_eval(capsys, distance):
    got = eval_benchmark.main(
        ["--size=600", "--dim=64", "--rounds=1", "--numpy-queries=40", f"--distance={distance}"]
    )
    for name in ("seconds", "first_call_seconds", "matmul_seconds", "numpy_seconds"):
        assert got[name] >= 0
    assert got["gallery"] == 600 and got["queries"] == 103 and got["numpy_scaled_up"]
    assert got["numpy_ap_difference"] < 0.01  # near ties may fall the other way
    assert 0 < got["mINP"] < got["mAP"] < got["rank1"] < 1 and np.isfinite(got["extra_mib"])
    assert "scaled up from 40 queries" in capsys.readouterr().out


@pytest.mark.slow
def test_step_compiled_only(capsys):
    """Twice the frames, about twice the work and more memory."""
    options = ["--size=narrow", "--steps=dsanet", "--compile-only", "--batch=16"]
    one, two = (step_benchmark.main([*options, f"--frames={n}"])["steps"]["dsanet"] for n in (1, 2))
    assert one["batch"] == two["batch"] == 16 and "seconds" not in one
    assert 1.6 < two["gflop"] / one["gflop"] < 2.4
    assert 0 < one["xla_temp_mib"] < two["xla_temp_mib"]
    assert "memory, MiB: xla_temp" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["spcl", "cap", "softsim"])
def test_rounds(task):
    got = rounds.main(["--size=120", "--dim=16", f"--task={task}", "--part-dim=4", "--repeats=0"])
    assert got["images"] == 120 and got["seconds"] > 0 and got["ratio_to_matmul"] > 0
    assert got["neighbours"] == [120, 4] if task == "softsim" else got["clusters"] >= 1


SMALL = {
    "eval": ["--size=300", "--dim=16", "--rounds=1"],
    "rerank": ["--size=120", "--dim=16", "--numpy-images=120"],
    "cluster": ["--size=120", "--dim=16", "--numpy-images=120"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("cluster", "rerank"))) for n in SMALL]
)
def test_last_line_is_json(name):
    command = [sys.executable, "-m", "reid_jax.benchmarks", name, *SMALL[name]]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = {"seconds", "first_call_seconds", "extra_mib", "matmul_seconds", "ratio_to_matmul"}
    assert {*wanted, "speedup_over_numpy"} <= set(json.loads(out.splitlines()[-1]))


def test_eval_sizes():
    assert eval_benchmark.problem_sizes("msmt17", 2048)[:2] == (11659, 82161)
    with pytest.raises(ConfigError):
        eval_benchmark.parse(["--size=enormous"])


def test_collectives_of_a_step_are_counted():
    """A loop of three reductions, two that XLA joins, a gathering and its gradient."""

    def step(x):
        def body(c, _):
            return lax.pmean(c, scaling.AXIS), None

        x, _ = lax.scan(body, x, None, length=3)
        x, y = lax.pmean((x, 2 * x), scaling.AXIS)
        square = jax.grad(lambda x: (lax.all_gather(x, scaling.AXIS, tiled=True) ** 2).sum())
        return square(x) + y

    traced = jax.make_jaxpr(step, axis_env=[(scaling.AXIS, 8)])(jnp.zeros(1000))
    found = scaling.collectives(traced.jaxpr, 8)
    assert found["reduced_mb"] == pytest.approx(5 * 4000 / 1e6)
    assert found["gathered_mb"] == pytest.approx(2 * 8 * 4000 / 1e6)
    assert found["calls"] == 3 + 1 + 2


def test_scaling_of_a_plan_by_hand(tmp_path, capsys):
    """16 chips, planned for 4: moving (10 ms) is longer than computing (5), and four times is gathered."""
    sorts = [("all-reduce", 3, 8e6), ("all-gather", 2, 1e6), ("reduce-scatter", 1, 0.25e6)]
    step = dict(name="train: train", rows=64, trains=True, flops=0.985e12, moved=8.19e9)
    step["collectives"] = [dict(kind=k, calls=n, bytes=b) for k, n, b in sorts]
    file = tmp_path / "plan.json"
    file.write_text(
        json.dumps({"place": "v5e:2x2", "devices": 4, "programs": [step, step | {"trains": False}]})
    )
    figures = scaling.main([f"--plan={file}", "--devices", "1,4,16"])["programs"]["train: train"]
    assert figures[1] == dict(
        reduced_mb=0, gathered_mb=0, calls=0, efficiency=dict.fromkeys(scaling.DEVICES, 1)
    )
    assert (figures[4]["reduced_mb"], figures[4]["gathered_mb"], figures[4]["calls"]) == (8, 1 + 1, 6)
    assert (figures[16]["reduced_mb"], figures[16]["gathered_mb"]) == (8, 4 + 4)
    sending = (2 * 8 + 8) * 15 / 16 / 100e3 + 6 * 10e-6 * 4  # MB over 100 GB/s, 10 us a call and doubling
    assert figures[16]["efficiency"]["TPU v5e, one pod"] == pytest.approx(0.01 / (0.01 + sending))
    assert "| 16 | 8.0 | 8.00 | 6 |" in capsys.readouterr().out
    for text in ("{}", "nothing", json.dumps({"place": "cpu", "devices": 1, "programs": [step]})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="plan.json"):
            scaling.main([f"--plan={file}"])


def test_cores_of_a_host_by_hand(tmp_path, capsys):
    """8 chips that take 10 ms for 64 pictures each, read on 2 cores, or on the one there is."""
    step = dict(name="train: train", rows=64, trains=True, flops=0.985e12, moved=8.19e9, collectives=[])
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"place": "v5e:1x1", "devices": 1, "programs": [step]}))
    plan, cores = stored.read(str(file)), min(2, os.cpu_count())
    rates = {"threads_pil_2": 3200.0, "cached_2": 80000.0}
    need = data_benchmark.hosts(plan, rates, 2, ["pil"])["train: train"]["v5e"]
    assert need == pytest.approx({"images": 51200, "pil": 16 * cores, "cached": 0.64 * cores})
    data_benchmark.print_hosts(plan, rates, types.SimpleNamespace(workers=2, decoders=["pil"]))
    assert "51,200" in capsys.readouterr().out


@pytest.mark.slow
def test_scaling(capsys):
    """What EFL's step reduces: gradients of three networks, running statistics of five, metrics."""
    figures = scaling.main(["--size", "narrow", "--batch", "8", "--devices", "1,4,16"])
    options = types.SimpleNamespace(step="efl", size="narrow", batch=8, bn="device")
    method, batch = scaling.stage_of(options, None)
    nets = jax.eval_shape(method.init, jax.random.key(0)).nets
    trained = [nets[n]["params"] for n in ("phi1", "phi2", "cam")]
    moved = [nets[n]["batch_stats"] for n in ("phi1", "phi2", "cam", "m1", "m2")]
    want = sum(4 * x.size for x in jax.tree.leaves((trained, moved))) / 1e6
    four, sixteen = (figures["devices"][n] for n in (4, 16))
    assert want < four["reduced_mb"] < 1.002 * want
    assert four["reduced_mb"] == sixteen["reduced_mb"]
    assert sixteen["gathered_mb"] == pytest.approx(4 * four["gathered_mb"])
    for name in scaling.DEVICES:
        assert figures["devices"][1]["efficiency"][name] == 1 > four["efficiency"][name]
        assert four["efficiency"][name] > sixteen["efficiency"][name] > 0
    assert "| 16 |" in capsys.readouterr().out
