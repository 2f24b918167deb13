# shellcheck shell=bash
# Sourced by the other scripts: makes .venv beside the README and installs reid_jax with EXTRAS into it.
# usage: source launch/setup.sh EXTRAS      (EXTRAS: comma-separated extras of setup.cfg, may be empty)
# PYTHON chooses the interpreter (default: the first of python3, python3.13, 3.12, 3.11 that is new enough).
# REID_JAX_INSTALL=0 takes the environment that is active as it is. DRY_RUN=1 does too, and `run` only prints.

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "reid_jax needs Python 3.11, 3.12 or 3.13; name one: PYTHON=/path/to/python3.12 bash $0" >&2
  return 1
}

install() {
  local extras="$1" venv="$ROOT/.venv" stamp wanted
  if [ "${REID_JAX_EXTRAS+set}" ]; then
    extras="${extras:+$extras,}$REID_JAX_EXTRAS"
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    extras="${extras:+$extras,}cuda"
  fi
  if [ ! -x "$venv/bin/python" ]; then
    local python
    python="$(find_python)"
    echo "making .venv with $("$python" --version)" >&2
    "$python" -m venv "$venv"
  fi
  stamp="$venv/reid_jax-${extras//[^a-z]/_}"
  wanted="$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing reid_jax${extras:+ [$extras]} into .venv (about a minute the first time)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary \
      --editable "$ROOT${extras:+[$extras]}"
    printf '%s' "$wanted" >"$stamp"
  fi
}

# Runs a command; with DRY_RUN=1 prints it, quoted for a shell.
run() {
  if [ "${DRY_RUN:-0}" = 0 ]; then
    "$@"
  else
    [ "$1" = exec ] && shift
    printf '%q ' "$@"
    echo
  fi
}

if [ "${DRY_RUN:-0}" = 0 ] && [ "${REID_JAX_INSTALL:-1}" = 1 ]; then
  install "${1:-}"
  export PATH="$ROOT/.venv/bin:$PATH"
fi
cd "$ROOT"
