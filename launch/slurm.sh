#!/usr/bin/env bash
# Trains on several machines under Slurm: one process on each node drives all GPUs (or cores) of it.
# usage: sbatch --nodes=2 --gpus-per-node=4 [sbatch options] launch/slurm.sh --config=... --workdir=DIR
# The checkout, --workdir and the data lie on a file system that all nodes share. Submit from the checkout.
# A failure starts all processes again (see restart.sh). 180 s before the time limit the run saves, and the job
# goes into the queue again; a preempted job is put there by Slurm.
# DRY_RUN=1 bash launch/slurm.sh ... only prints the command.
#SBATCH --job-name=reid_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}" # Slurm runs a copy of this script
# shellcheck source=launch/setup.sh
source launch/setup.sh ""

# JAX gives a task of Slurm one GPU; here it gets those of its node.
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
  JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))"
  export JAX_LOCAL_DEVICE_IDS
fi

code=0
run bash launch/restart.sh srun --kill-on-bad-exit=1 python -m reid_jax.main --distributed "$@" || code=$?
if [ "$code" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID" # the same job goes on from the checkpoint
fi
exit "$code"
