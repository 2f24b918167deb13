#!/usr/bin/env bash
# Trains on a TPU slice of one or more hosts, through gcloud: copies this checkout to all of them, then
# starts one process on each.
# usage: TPU_NAME=my-slice TPU_ZONE=us-central2-b bash launch/tpu.sh --config=... --workdir=/mnt/shared/runs/x
# --workdir and the data lie on a file system that all hosts have mounted. Each host starts its process again
# after a failure (see restart.sh); the processes wait for each other. After a preemption make the slice again
# and start the same command. DRY_RUN=1 only prints the commands.
set -euo pipefail
: "${TPU_NAME:?the name of the TPU slice}" "${TPU_ZONE:?its zone}"
REID_JAX_INSTALL=0 # here; the hosts install it
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""

remote="cd reid_jax && REID_JAX_EXTRAS=${REID_JAX_EXTRAS:-tpu} RESTARTS=${RESTARTS:-3}"
remote+=" bash launch/local.sh --distributed$(printf ' %q' "$@")"
where=("$TPU_NAME" "--zone=$TPU_ZONE" --worker=all)
archive="$(mktemp)"
trap 'rm -f "$archive"' EXIT
run tar -czf "$archive" reid_jax configs launch tests setup.cfg pyproject.toml README.md LICENSE
run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:reid_jax.tar.gz" "--zone=$TPU_ZONE" --worker=all
run gcloud compute tpus tpu-vm ssh "${where[@]}" \
  --command="mkdir -p reid_jax && tar -xzf reid_jax.tar.gz -C reid_jax"
run gcloud compute tpus tpu-vm ssh "${where[@]}" --command="$remote"
