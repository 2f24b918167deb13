#!/usr/bin/env bash
# Trains on this machine (CPU or its GPUs): sets up .venv, then runs reid_jax.main with all arguments.
# usage: bash launch/local.sh --config=configs/efl.py:synthetic --workdir=runs/efl
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
exec python -m reid_jax.main "$@"
