#!/usr/bin/env bash
# Three single-organ phantom datasets in, one network that segments all three organs out.
# Everything it makes lies in quickstart/, or in the folder given as the first argument.
out="${1:-quickstart}"
cache="${XDG_CACHE_HOME:-$out/cache}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export XDG_CACHE_HOME="$cache"

[ -f "$out/data/test/dataset.json" ] || condseg-prepare --format=phantom --out="$out/data"
condseg-train --config=experiments/configs/phantom.py --config.data.root="$out/data/train" \
  --workdir="$out/run"
case="$(ls "$out"/data/test/imagesTr/*.nii.gz | head -n 1)"
condseg-predict --workdir="$out/run" --input="$case" --output="$out/prediction" --preset=abdomen
condseg-evaluate --workdir="$out/run" --data="$out/data/test" --out="$out/scores"

echo
echo "label map: $out/prediction/$(basename "$case")"
echo "picture:   $out/prediction/$(basename "$case" .nii.gz)_overlay.png"
