#!/usr/bin/env bash
# Trains one network on several GPU nodes of a SLURM cluster, one process per GPU.
#
#   sbatch --nodes=2 tools/launch/slurm.sh CONFIG DATA WORKDIR [--config.FIELD=VALUE …]
#   sbatch --nodes=2 tools/launch/slurm.sh experiments/configs/hippocampus.py /disk/data /disk/run
#
# Submit from the repository; it, DATA and WORKDIR lie on a disk that all nodes see, and .venv holds
# jax for the GPUs. Prepare the data first (condseg-prepare), or the first process does it while the
# others wait. data.batch_size counts over all GPUs and must be a multiple of their number. Told to
# end, by `scancel --signal=TERM JOB` or five minutes before the time limit, the run saves itself
# and ends; the same command goes on from there.
#SBATCH --job-name=condseg
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=condseg-%j.log
set -euo pipefail

config=${1:?CONFIG} data=${2:?DATA} workdir=${3:?WORKDIR}
shift 3
source .venv/bin/activate

# The sums of the gradients shall run beside the computation. Collectives are asynchronous by
# default (xla_gpu_enable_async_collectives is gone, and a flag that XLA does not know stops the
# program); the scheduler that makes use of that must be asked for. For more overlap try a lower
# --xla_gpu_all_reduce_combine_threshold_bytes: the gradients then leave in more and earlier pieces.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
# jax's own connections must not go through a proxy.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

# jax reads from SLURM who the processes are, and gives each the GPU of its local rank. A process
# that fails takes the others with it.
srun --kill-on-bad-exit=1 condseg-train --distributed --config="$config" \
  --config.data.root="$data" --workdir="$workdir" "$@"
