"""Preparing large CTs, reading random subvolumes of them, and feeding the training step."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
from scipy import ndimage
import tensorstore as ts

from condseg_jax.data.store import Store
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from tools.benchmark import feeding

SHAPE = (512, 512, 300)  # x y z
SPACING = (0.8, 0.8, 1.0)
SUBVOLUME = (32, 256, 256)  # D H W
CASES = 2
COPIES = 24
READS = 200  # per round
ROUNDS = 5
# Runs condseg-prepare and prints its peak memory above that of the imports. Linux's record of the
# peak is reset in between, because a child inherits that of its parent.
CHILD = """
import json, resource, sys, time
from condseg_jax.cli import prepare
from condseg_jax.datasets import corrupt, prepare as _, scribbles

def peak():
  try:
    with open("/proc/self/status", encoding="utf-8") as stream:
      peaks = [line.split()[1] for line in stream if line.startswith("VmHWM:")]
  except OSError:
    peaks = []
  return 1024 * int(peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

try:
  with open("/proc/self/clear_refs", "w", encoding="utf-8") as stream:
    stream.write("5")
except OSError:
  pass
before = peak()
start = time.perf_counter()
code = prepare.main(["condseg-prepare", *sys.argv[1:]])
print(json.dumps([code, time.perf_counter() - start, peak() - before]))
"""


def run(folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  raw = folder / "raw"
  if not (raw / "dataset.json").exists():
    write_cts(raw, SHAPE, CASES)
  own = (1.0, 0.8, 0.8)
  rows = [preparing(raw, folder / "same", own, "at its own spacing"),
          preparing(raw, folder / "finer", (1.0, 1.0, 1.0), "resampled to 1 mm"),
          preparing(raw, folder / "damaged", own, "boundary damaged", "--damage=boundary"),
          preparing(raw, folder / "scribbles", own, "a fifth scribbled", "--scribbles=0.2")]
  return [*rows, *subvolumes(folder / "same"), *feeding.rows(folder, folder / "same")]


def write_cts(raw: Path, shape: Sequence[int], cases: int) -> None:
  """Writes CTs of a body with a smooth texture and noise, and a large and a small organ.

  Args:
    raw: folder of the dataset.
    shape: of each, x y z.
    cases: their number.
  """
  for part in ("imagesTr", "labelsTr"):
    (raw / part).mkdir(parents=True, exist_ok=True)
  axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij",
                     sparse=True)
  body = axes[0] ** 2 / 0.7 + axes[1] ** 2 / 0.4 + 0 * axes[2] < 1
  training = []
  for number in range(cases):
    rng = np.random.default_rng(number)
    coarse = rng.normal(0, 40, [n // 10 for n in shape]).astype(np.float32)
    image = ndimage.zoom(coarse, [n / (n // 10) for n in shape], order=1)
    image += rng.normal(0, 12, shape).astype(np.float32)
    image = np.where(body, image + 40, -1000).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    for value, centre, radius in ((1, -0.3, 0.35), (2, 0.4, 0.12)):
      label[sum((a - c) ** 2 for a, c in zip(axes, (centre, 0, 0), strict=True)) < radius**2
            ] = value
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    name = f"ct_{number}.nii.gz"
    write_nifti(raw / "imagesTr" / name, Volume(image, affine))
    write_nifti(raw / "labelsTr" / name, Volume(label, affine), label=True)
    training.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
  (raw / "dataset.json").write_text(json.dumps(
      {"modality": {"0": "CT"}, "labels": {"1": "liver", "2": "kidney"}, "training": training}))


def preparing(raw: Path, out: Path, spacing: Sequence[float], name: str, *options: str) -> dict:
  """Returns the row of a preparation: seconds, and peak memory above that of the imports.

  Args:
    raw: the raw dataset.
    out: store to write.
    spacing: of the store, mm along D H W.
    name: of the row.
    *options: further flags of condseg-prepare.
  """
  text = ",".join(map(str, spacing))
  done = subprocess.run([sys.executable, "-c", CHILD, "--format=msd", f"--source={raw}",
                         f"--out={out}", f"--spacing={text}", *options],
                        capture_output=True, encoding="utf-8", check=True)
  code, seconds, peak = json.loads(done.stdout.splitlines()[-1])
  assert code == 0, done.stderr
  volume = 2 * int(np.prod(SHAPE))
  return {"name": f"prepare {CASES} CTs, {name}", "ours": seconds, "peer": None, "ratio": None,
          "unit": "s", "peak_bytes": peak, "peak_volumes": peak / volume}


def subvolumes(root: Path) -> list[dict]:
  """Returns the rows for random subvolumes per second: ours against plain TensorStore reads.

  The cases are copied until they exceed our cache many times, because the peer has no cache. The
  disk cache is warm.

  Args:
    root: the store.
  """
  store = Store.open(root)
  for number in range(COPIES):
    copy = root / "cases" / f"copy_{number}"
    if not copy.exists():
      shutil.copytree(root / "cases" / store.cases[number % CASES].id, copy)
  cases = [dataclasses.replace(store.cases[0], id=f"copy_{i}") for i in range(COPIES)]

  def open_array(case, name):
    path = str(store.root / "cases" / case.id / name) + "/"
    return ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}},
                   read=True).result()
  images, masks = ([open_array(case, name) for case in cases] for name in ("image", "masks"))
  ways = {
      "image": (lambda i, box: store.read_image(cases[i], box),
                lambda i, box: images[i][box].read().result()),
      "image and mask": (
          lambda i, box: (store.read_image(cases[i], box),
                          store.read_masks(cases[i], ["liver"], box)),
          lambda i, box: (images[i][box].read().result(),
                          masks[i][(slice(0, 1), *box)].read().result())),
  }
  rows = []
  for name, pair in ways.items():
    rates = ([], [])
    for turn in range(ROUNDS + 1):
      for read, rates_of_read in zip(pair, rates, strict=True):
        rate = _rate(read, cases[0].shape, turn)
        if turn:  # the first round warms the disk cache
          rates_of_read.append(rate)
    ours, peer = map(statistics.median, rates)
    rows.append({"name": f"random 256x256x32 subvolumes, {name}", "ours": ours, "peer": peer,
                 "ratio": ours / peer, "unit": "1/s"})
  return rows


def _rate(read: Callable, shape: Sequence[int], seed: int) -> float:
  rng = np.random.default_rng(seed)
  starts = [[rng.integers(0, n - m + 1) for n, m in zip(shape, SUBVOLUME, strict=True)]
            for _ in range(READS)]
  begin = time.perf_counter()
  for number, start in enumerate(starts):
    box = tuple(slice(int(s), int(s) + m) for s, m in zip(start, SUBVOLUME, strict=True))
    read(number % COPIES, box)
  return READS / (time.perf_counter() - begin)
