# shellcheck shell=bash
# Sourced by the other scripts: makes .venv beside the README and installs reid_jax with EXTRAS into it.
# usage: source launch/setup.sh EXTRAS      (EXTRAS: comma-separated extras of setup.cfg, may be empty)
# PYTHON chooses the interpreter (default: the first of python3, python3.14, 3.13, 3.12, 3.11 that fits).
# REID_JAX_VENV: another folder than .venv. REID_JAX_INSTALL=0 takes the environment that is active as it is;
# DRY_RUN=1 does too, and `run` only prints.

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/${REID_JAX_VENV:-.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "reid_jax needs Python 3.11 to 3.14; name one: PYTHON=/path/to/python3.12 bash $0" >&2
  return 1
}

# The extra of JAX's CUDA form for the GPUs of this machine; nothing where there is none that JAX can use.
# CUDA 13 needs driver 580 and compute capability 7.5, CUDA 12 driver 525 and 5.2.
cuda_extra() {
  local query="--format=csv,noheader" gpus
  command -v nvidia-smi >/dev/null 2>&1 || return 0
  if ! gpus="$(nvidia-smi --query-gpu=driver_version,compute_cap "$query" 2>/dev/null)" &&
    ! gpus="$(nvidia-smi --query-gpu=driver_version "$query" 2>/dev/null)"; then # old ones know no capability
    echo "nvidia-smi fails: installing JAX for CPUs; REID_JAX_EXTRAS=cuda12 or cuda13 for GPUs" >&2
    return 0
  fi
  LC_ALL=C awk -F', *' '
    $1 + 0 == 0 { next } # no GPU
    $1 + 0 < 525 || ($2 + 0 > 0 && $2 + 0 < 5.2) { unfit = $0; next }
    { usable = 1 }
    $1 + 0 < 580 || $2 + 0 < 7.5 { twelve = 1 }
    END {
      if (usable) print twelve ? "cuda12" : "cuda13"
      else if (unfit) print "JAX needs NVIDIA driver 525 and compute capability 5.2; here they are " unfit \
        ": installing JAX for CPUs" >"/dev/stderr"
    }' <<<"$gpus"
}

# Two CUDA forms of JAX get into each other's way: takes the one that is not among EXTRAS out of .venv.
only_one_cuda() {
  local extras="$1" other stamp
  case ",$extras," in
    *,cuda13,*) other=12 ;;
    *,cuda12,* | *,cuda,*) other=13 ;;
    *) return 0 ;;
  esac
  for stamp in "$VENV"/reid_jax-*cuda*; do
    [ -e "$stamp" ] || continue
    [[ "$stamp" == *"cuda$((25 - other))"* ]] && continue
    "$VENV/bin/python" -m pip uninstall --quiet --quiet --yes "jax-cuda$other-plugin" "jax-cuda$other-pjrt"
    rm -f "$stamp"
  done
}

install() {
  local extras="$1" stamp wanted more
  if [ "${REID_JAX_EXTRAS+set}" ]; then
    more="$REID_JAX_EXTRAS"
  else
    more="$(cuda_extra)"
  fi
  extras="$extras${more:+${extras:+,}$more}"
  if [ ! -x "$VENV/bin/python" ]; then
    local python
    python="$(find_python)"
    echo "making ${VENV##*/} with $("$python" --version)" >&2
    "$python" -m venv "$VENV"
  fi
  stamp="$VENV/reid_jax-${extras//[^a-z0-9]/_}"
  wanted="$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    only_one_cuda "$extras"
    echo "installing reid_jax${extras:+ [$extras]} into ${VENV##*/} (about a minute the first time)" >&2
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary \
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
  export PATH="$VENV/bin:$PATH"
fi
cd "$ROOT"
