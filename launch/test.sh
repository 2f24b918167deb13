#!/usr/bin/env bash
# Runs the tests: sets up .venv with the test extra, then pytest with all arguments.
# usage: bash launch/test.sh [pytest arguments]      (-m slow runs the long ones)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "test"
exec python -m pytest "$@"
