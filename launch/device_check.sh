#!/usr/bin/env bash
# What this machine's accelerator does with reid_jax, in ten minutes: step times in bfloat16 beside PyTorch where
# it is installed, recorded cases on the device, and EFL with a real ResNet-50 on the synthetic set, end to end.
# Needs jax, flax, optax and orbax; the last part also grain and ml_collections, and is left out without them.
# usage: bash launch/device_check.sh OUT.json      (DRY_RUN=1 prints the commands)
# STEPS, BATCH: benchmarked steps and images of a batch; LIMIT: seconds of each command (default 150);
# PLATFORM: of the recorded cases (default cuda).
set -euo pipefail
REID_JAX_INSTALL=0 # the environment that is active
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
out="${1:?usage: bash launch/device_check.sh OUT.json}"
logs="${out%.json}.logs"
python="${PYTHON:-python}"
if [ "${DRY_RUN:-0}" = 0 ]; then
  mkdir -p "$logs"
  : >"$logs/parts"
fi

# Runs one part under its time limit; what it prints goes to a log, whatever comes of it.
part() {
  local name="$1" code=0 began=$SECONDS
  shift
  if [ "${DRY_RUN:-0}" != 0 ]; then
    run "$@"
    return
  fi
  echo "$name ..." >&2
  timeout "${LIMIT:-150}" "$@" >"$logs/$name.log" 2>&1 || code=$?
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - began))" >>"$logs/parts"
}

for step in ${STEPS:-baseline efl transreid}; do
  part "step_$step" "$python" -m reid_jax.benchmarks step --steps "$step" --dtype bfloat16 --batch "${BATCH:-64}" --repeats 5
done
part parity "$python" -m reid_jax.parity tests/cases/efl__club.npz tests/cases/efl__mmt_losses.npz \
  tests/cases/efl__triplet.npz tests/cases/dsanet__losses.npz tests/cases/adl__triplet.npz --platform "${PLATFORM:-cuda}"
part efl "$python" -m reid_jax.main --config=configs/efl.py:synthetic --workdir="$logs/efl" \
  --config.model.backbone=resnet50 --config.model.dtype=bfloat16 --config.train.epochs=10

[ "${DRY_RUN:-0}" = 0 ] || exit 0
"$python" - "$logs" "$out" <<'END'
import json, pathlib, sys
import jax
logs, result = pathlib.Path(sys.argv[1]), {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "parts": {}}
for line in (logs / "parts").read_text().splitlines():
    name, code, seconds = line.split("\t")
    text = (logs / f"{name}.log").read_text(errors="replace").splitlines()
    part = result["parts"][name] = {"exit": int(code), "seconds": int(seconds), "last": text[-3:]}
    if name.startswith("step_") and text and text[-1].startswith("{"):
        part["figures"] = json.loads(text[-1])
    summary = logs / name / "summary.json"
    if summary.exists():
        part["summary"] = json.loads(summary.read_text())
pathlib.Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")
print(f"{sys.argv[2]}: " + ", ".join(f"{k} {'ok' if not v['exit'] else 'exit %d' % v['exit']}" for k, v in result["parts"].items()))
END
