#!/usr/bin/env bash
# Trains one network on all workers of a Cloud TPU slice, one process per worker.
#
#   tools/launch/tpu_pod.sh TPU ZONE CONFIG DATA WORKDIR [--config.FIELD=VALUE …]
#   tools/launch/tpu_pod.sh my-tpu us-central2-b experiments/configs/hippocampus.py \
#     gs://my-bucket/data gs://my-bucket/run
#
# DATA (a prepared store, or a folder of several) and WORKDIR lie in a bucket that the workers may
# read and write. The project is that of `gcloud config`. Run from the repository: its last commit
# is copied to every worker and installed there, where python3 must be 3.11 or newer.
# data.batch_size counts over all chips and must be a multiple of their number. The same command
# goes on where a run stopped.
set -euo pipefail

tpu=${1:?TPU} zone=${2:?ZONE} config=${3:?CONFIG} data=${4:?DATA} workdir=${5:?WORKDIR}
shift 5

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$tpu:condseg.tar.gz" --zone="$zone" --worker=all

# jax asks the metadata server who the workers are. Collectives are asynchronous on TPU; these flags
# of libtpu (not of XLA_FLAGS) let the sums of the gradients run beside more of the computation.
flags="--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true \
--xla_tpu_enable_data_parallel_all_reduce_opt=true \
--xla_tpu_data_parallel_opt_different_sized_ops=true"
arguments=$(printf ' %q' --distributed --config="$config" --config.data.root="$data" \
  --workdir="$workdir" "$@")
gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="
  set -e
  mkdir -p condseg && tar -xzf condseg.tar.gz -C condseg && cd condseg
  python3 -m venv .venv && . .venv/bin/activate
  pip install --quiet -r requirements.txt 'jax[tpu]' && pip install --quiet --no-deps -e .
  LIBTPU_INIT_ARGS='$flags' python -m condseg_jax.cli.train$arguments"
