"""Everything after the last window: fusion, resampling to the native grid, writing the file.

Input are synthetic scores of 14 classes on the network's grid, for an image of 512×512×200. Ours
keeps the best class only. The peer is the common approach: all classes in full on both grids,
interpolated one after the other, with the argmax at the end; it is implemented here in numpy with
the same interpolation, so only the method differs.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import sys
import tempfile
import time

import numpy as np

from condseg_jax import resample
from condseg_jax.formats import files
from condseg_jax.infer import fuse
from condseg_jax.infer import to_native
from condseg_jax.infer.sliding_window import Slab
from tools.benchmark import child
from tools.benchmark.memory import peak_bytes
from tools.benchmark.timing import best_row
from tools.benchmark.timing import progress

CLASSES, NETWORK, NATIVE = 14, (160, 320, 320), (200, 512, 512)  # D H W
ROWS = 16  # slices of a slab


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  results = {}
  for method in ("ours", "all_classes"):
    progress(f"export, {method}")
    results[method] = child.result(child.start(__name__, method))
  title = f"after the last window, {'x'.join(map(str, NATIVE))}, K = {CLASSES}"
  both = ((f"seconds {title}", "seconds", "s"), (f"memory {title}", "bytes", "bytes"))
  return [best_row(name, results["ours"][key], {"all classes in full": results["all_classes"][key]},
                   unit=unit, classes=CLASSES, seconds_fusion=results["ours"]["fusion"])
          for name, key, unit in both]


def slabs() -> Iterator[Slab]:
  """Yields noisy blobs of 14 classes, with sharp borders as of a trained network, in slabs."""
  rng = np.random.default_rng(0)
  centre = rng.uniform(0.2, 0.8, (CLASSES, 3)) * NETWORK
  radius = rng.uniform(0.04, 0.15, CLASSES) * min(NETWORK[1:])
  h, w = (np.arange(n, dtype=np.float32) for n in NETWORK[1:])
  for first in range(0, NETWORK[0], ROWS):
    d = np.arange(first, first + ROWS, dtype=np.float32)
    planes = np.empty((CLASSES, ROWS, *NETWORK[1:]), np.float32)
    for k in range(CLASSES):
      square = ((d - centre[k, 0])[:, None, None] ** 2 + (h - centre[k, 1])[None, :, None] ** 2
                + (w - centre[k, 2])[None, None] ** 2)
      planes[k] = 1 / (1 + np.exp(np.clip(np.sqrt(square) - radius[k], -30, 30)))
    planes *= rng.uniform(0.9, 1.0, planes.shape[1:]).astype(np.float32)
    yield Slab(range(CLASSES), (slice(first, first + ROWS), *map(slice, NETWORK[1:])), planes)


def ours(path: Path) -> dict:
  """Writes the label map by keeping the best class only; returns seconds."""
  fusion = 0.0

  def timed():
    nonlocal fusion
    for slab in slabs():
      start = time.perf_counter()
      yield slab
      fusion += time.perf_counter() - start
  best, score = fuse.best_class(timed(), NETWORK, range(CLASSES))
  start = time.perf_counter()
  label = to_native.label_map(best, score, NATIVE, 0.5)
  files.write_label(path, label, np.eye(4), {f"class {k}": k + 1 for k in range(CLASSES)})
  return {"seconds": fusion + time.perf_counter() - start, "fusion": fusion}


def all_classes(path: Path) -> dict:
  """Writes the label map from all classes in full; returns seconds."""
  planes = np.empty((CLASSES, *NETWORK), np.float32)
  for slab in slabs():
    planes[:, slab.box[0]] = slab.planes
  start = time.perf_counter()
  resampled = np.stack([resample.resample_to(plane, NATIVE, 1) for plane in planes])
  label = np.where(resampled.max(0) >= 0.5, resampled.argmax(0) + 1, 0).astype(np.uint8)
  files.write_label(path, label, np.eye(4), {f"class {k}": k + 1 for k in range(CLASSES)})
  return {"seconds": time.perf_counter() - start}


def main(method: str) -> None:
  """Runs in the child: prints seconds and the peak memory in bytes."""
  with tempfile.TemporaryDirectory() as folder:
    result = {"ours": ours, "all_classes": all_classes}[method](Path(folder) / "label.nii.gz")
  print(json.dumps({**result, "bytes": peak_bytes()}))


if __name__ == "__main__":
  main(*sys.argv[1:])
