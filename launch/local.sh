#!/usr/bin/env bash
# Trains on this machine (CPU, all its GPUs, or a TPU): sets up .venv, then runs reid_jax.main with all
# arguments, again after a failure (see restart.sh).
# usage: bash launch/local.sh --config=configs/efl.py:synthetic --workdir=runs/efl
# DRY_RUN=1 only prints the command.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
run exec bash launch/restart.sh python -m reid_jax.main "$@"
