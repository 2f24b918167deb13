"""A long run, of steps or of rounds: its memory stops growing and nothing is compiled again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS, EVALUATE, CHECKPOINT = 2400, 198, 99  # of three steps an epoch
GROWTH = 16  # MiB that may be added after the first quarter: less than 10 KiB a step
FLAGS = [
    f"--config.train.eval_every={EVALUATE // 3}", f"--config.train.checkpoint_every={CHECKPOINT // 3}",
    "--config.train.log_every=20", "--config.report.enabled=False",
]  # fmt: skip
LONG = {
    **{name: [f"--config.train.steps={STEPS}"] for name in ("baseline", "efl")},
    "cluster_contrast": [
        "--config.cluster_contrast.steps=3",
        f"--config.cluster_contrast.rounds={STEPS // 3}",
    ],
}
# The command, which with every line of metrics.jsonl notes its resident memory and its compilations so far.
PROGRAM = """
import json, os, sys
import jax
from reid_jax import main
from reid_jax.train import writer

compiled, log = [], open(sys.argv.pop(1), "a", buffering=1)

def listen(event, seconds, **kind):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(seconds)

def write(self, kind, step, *rest, write=writer.Writer.write):
    write(self, kind, step, *rest)
    pages = int(open("/proc/self/statm").read().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    print(json.dumps({"kind": kind, "step": step, "mib": mib, "compiled": len(compiled)}), file=log)

jax.monitoring.register_event_duration_secs_listener(listen)
writer.Writer.write = write
main.run()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("config", LONG)
def test_long_run(config, tmp_path):
    notes = tmp_path / "notes"
    command = [sys.executable, "-c", PROGRAM, notes, f"--config=configs/{config}.py:smoke"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *FLAGS, *LONG[config], f"--workdir={tmp_path}/run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notes = [json.loads(x) for x in notes.read_text().splitlines()]
    training = [x for x in notes if x["kind"] == "train"]
    print([(x["step"], round(x["mib"], 1), x["compiled"]) for x in training if x["step"] % 500 == 0])
    assert training[-1]["step"] == STEPS
    quarter = max(x["mib"] for x in training if x["step"] <= STEPS // 4)
    assert max(x["mib"] for x in training) < quarter + GROWTH
    first = next(x for x in notes if x["kind"] == "eval")
    assert first["step"] == EVALUATE and first["compiled"] > 0
    assert notes[-1]["compiled"] == first["compiled"]
