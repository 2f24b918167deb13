#!/usr/bin/env bash
# Runs the tests: sets up .venv with the test extra, then pytest with all arguments.
# usage: bash launch/test.sh [pytest arguments]      (-m slow runs the long ones)
# REID_JAX_TEST_JOBS: processes (default 2, 0 for none), up to 6 GiB of memory each.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "test"
run exec python -m pytest -n "${REID_JAX_TEST_JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@"
