"""Peak memory of predicting a volume, with one process per number of classes.

The network is small, so that 105 classes take minutes only; the memory that grows with the classes
does not depend on it. `baseline_bytes` is the peak of the same process for one window and class:
imports, network, compiled program. The peer is MONAI's inferer with the same network, encoding
once, followed by an argmax.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import sys

import numpy as np

from condseg_jax.models.dense_unet import DenseUNet
from tools.benchmark import child
from tools.benchmark import nets
from tools.benchmark import peer
from tools.benchmark.timing import best_row
from tools.benchmark.timing import progress

CLASSES = (2, 64, 105)
SHAPE, WINDOW = (160, 256, 256), (32, 128, 128)  # D H W
BUDGET = 130_000_000  # bytes, for every number of classes; two classes need two passes
LIGHT = {"model": {"channels": 4, "growth": 4, "layers_per_level": (1, 1, 1),
                   "strides": ((2, 2, 2),) * 2},
         "conditioning": {"from_level": 0}}


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  ways = {"ours": ours, **({"monai": monai} if peer.installed("monai") else {})}
  peaks = {}
  for way in ways:
    for shape, classes in ((WINDOW, 1), *((SHAPE, k) for k in CLASSES)):
      progress(f"memory, {way}, {shape}, K = {classes}")
      peaks[way, classes] = child.result(child.start(__name__, way, classes, json.dumps(shape),
                                                     json.dumps(WINDOW)))
  rows = []
  for classes in CLASSES:
    peers = {"MONAI": peaks["monai", classes]} if "monai" in ways else {}
    row = best_row(f"memory of predicting {'x'.join(map(str, SHAPE))}, K = {classes}",
                   peaks["ours", classes], peers, unit="bytes", classes=classes,
                   peak_bytes=peaks["ours", classes], baseline_bytes=peaks["ours", 1])
    if peers:
      row["peer_baseline_bytes"] = peaks["monai", 1]
    rows.append(row)
  return rows


def ours(classes: int, shape: Sequence[int], window: Sequence[int]) -> None:
  """Predicts with `Predictor.predict`."""
  from condseg_jax.classes import ClassTable
  from condseg_jax.geometry import Volume
  from condseg_jax.plan import Plan
  from condseg_jax.predictor import Predictor
  model, params = network(classes)
  table = ClassTable.create([f"class {k}" for k in range(classes)], capacity=max(CLASSES))
  plan = Plan("mr", (1.0, 1.0, 1.0), tuple(window))
  # The axes of the volume are D H W in the canonical orientation already.
  affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
  predictor = Predictor(model, {"params": params}, table, plan)
  label = predictor.predict(Volume(volume(shape), affine), step=1.0, memory_bytes=BUDGET).label
  assert label.array.shape == tuple(shape)


def monai(classes: int, shape: Sequence[int], window: Sequence[int]) -> None:
  """Predicts with MONAI's inferer and an argmax over the classes."""
  from monai.inferers import sliding_window_inference
  import torch
  model, params = network(classes)
  way = peer.ways(len(shape), compiled=False)[-1]
  net, _ = way.network(model, params)
  image = volume(shape).astype(np.float32)
  image = way.tensor(((image - image.mean()) / image.std())[None, ..., None])

  def predictor(patch):
    features = net.encode(way.in_format(patch))
    return torch.sigmoid(torch.stack(
        [net.decode(features, torch.tensor([k], device=way.device)) for k in range(classes)], 1))

  with torch.no_grad():
    output = sliding_window_inference(image, window, 1, predictor, overlap=0.0, mode="gaussian")
    best, label = output[0].max(0)
    label = torch.where(best >= 0.5, label + 1, 0).to(torch.uint8)
  assert label.shape == tuple(shape)


def network(classes: int) -> tuple[DenseUNet, dict]:
  """Returns the small network and its parameters."""
  model = nets.network(nets.config_of("base", LIGHT), classes)
  return model, nets.parameters(model)


def volume(shape: Sequence[int]) -> np.ndarray:
  """Draws a random int16 volume."""
  return np.random.default_rng(0).integers(-1000, 1000, shape, np.int16)


def peak_bytes() -> int:
  """Returns the peak resident memory of this process.

  From /proc: the peak that `resource` returns is inherited from the parent process.
  """
  lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(way: str, classes: str, shape: str, window: str) -> None:
  """Runs in the child: prints the peak resident memory in bytes."""
  {"ours": ours, "monai": monai}[way](int(classes), json.loads(shape), json.loads(window))
  print(peak_bytes())


if __name__ == "__main__":
  main(*sys.argv[1:])
