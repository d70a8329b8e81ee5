#!/bin/bash
# Measures for a refresh on other hosts of a Slurm cluster: an array, one GPU for each task.
#   sbatch pipelines/deploy/slurm-work.sh /shared/gracekit-store
# The refresh itself runs wherever the store's recipe is, with `scoring: {share: true}`:
#   gracekit watch /shared/runs/sft --set scoring.share=true
# Tasks come and go as the queue lets them: each may start late, be preempted or be killed, and what
# it worked on is measured by another. docs/scale.md says what hosts must have in common.
#SBATCH --job-name=gracekit-work
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=gracekit-work-%A-%a.log
# SIGTERM two minutes before the time ends: the worker finishes its batch and gives its shard back.
#SBATCH --signal=TERM@120

set -euo pipefail
store=${1:?usage: sbatch slurm-work.sh STORE}

# (!) The environment that the refresher runs in: the same gracekit, torch, transformers and numpy.
# shellcheck source=/dev/null
source "${GRACEKIT_VENV:-/opt/gracekit}/bin/activate"
export GRACEKIT_LOG_FORMAT=json HF_HUB_OFFLINE=1

# An hour without work ends the task, so that the GPU is not held while the trainer trains.
# `srun` hands Slurm's signals to the worker; it does not take over the number of CPUs by itself.
exec srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" gracekit work "$store" --max-idle 3600
