#!/usr/bin/env bash
# What one GPU can tell in under 9 minutes, without network: bash tools/gpu.sh OUT
# Tests of network and step, the speed of step and prediction, compilation times, and a training of
# the hippocampus for three minutes. Every part has a time limit (525 s in all), and a failed one
# does not stop the others. On a CPU the suites are stopped at their limits, the rest ends.
out="$(realpath -m "${1:?usage: bash tools/gpu.sh OUT}")"
mkdir -p "$out"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
data="${CONDSEG_TEST_DATA:-../shared/data}/hippocampus"
minutes="${GPU_MINUTES:-3}"  # of the training

part() {  # name, seconds at most, command…
  local name="$1" limit="$2" start=$SECONDS
  shift 2
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    echo "$name: done in $((SECONDS - start)) s"
  else
    echo "$name: failed or stopped after $((SECONDS - start)) s: $(tail -n 1 "$out/$name.log")"
  fi
}

python -c 'import jax; print(jax.devices())'
part tests 60 env CONDSEG_TEST_PLATFORM="${GPU_PLATFORM:-cuda}" python -m pytest -q \
  tests/models/test_layers.py tests/test_losses.py tests/models/test_network.py -p no:cacheprovider
part step 90 python -m tools.benchmark step --json="$out/step.json"
part predict 45 python -m tools.benchmark predict --json="$out/predict.json"
part startup 60 python -m tools.benchmark startup --json="$out/startup.json"
if [ -d "$data" ]; then
  part train $((60 * minutes + 60)) condseg-train --config=hippocampus \
    --config.data.root="$data" --config.data.cache="$out/cache" \
    --config.train.minutes="$minutes" --workdir="$out/run"
  part evaluate 60 condseg-evaluate --workdir="$out/run" --data="$data" --out="$out/scores"
else
  echo "train: skipped, there is no $data"
fi
