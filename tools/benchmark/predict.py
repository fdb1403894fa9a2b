"""Whole-volume prediction, against MONAI's sliding_window_inference.

Both use the same windows with an overlap of one half, and average probabilities with the same
Gaussian weights. The peer runs the whole network per class or, the fair comparison, encodes a
window once and decodes its classes; the faster one counts.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from condseg_jax.infer import sliding_window
from condseg_jax.infer.schedule import make_schedule
from condseg_jax.models.dense_unet import DenseUNet
from tools.benchmark import nets
from tools.benchmark import peer
from tools.benchmark.timing import race

CLASSES = (1, 3, 14, 64)
CONFIG = "hippocampus"
# One and a half windows along each axis: eight windows, at the same positions as MONAI's.
VOLUME = (60, 84, 60)


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  return list(map(measure, CLASSES))


def measure(classes: int) -> dict:
  """Returns the row for the probabilities of a number of classes in one volume."""
  config = nets.config_of(CONFIG)
  window = config.data.subvolume
  model = nets.network(config, classes)
  params = nets.parameters(model)
  image = nets.inputs(VOLUME, 1)[0][0]
  functions, ids = sliding_window.window_functions(model), list(range(classes))
  schedule = make_schedule(VOLUME, window, classes)
  variables = jax.device_put({"params": params})
  calls = {}
  if peer.installed("monai"):
    for way in peer.ways(len(window), compiled=False):
      calls |= peer_calls(way, model, params, image, classes, window)
  return race(f"predict {'x'.join(map(str, VOLUME))}, K = {classes}",
              lambda: sliding_window.class_probabilities(functions, variables, image, ids, window,
                                                         schedule),
              calls, distance=nets.max_difference, classes=classes)


def peer_calls(way: peer.Way, model: DenseUNet, params: Mapping, image_DHWC: np.ndarray,
               classes: int, window: Sequence[int]) -> dict[str, Callable]:
  """Returns both variants of MONAI's inferer by name."""
  from monai.inferers import sliding_window_inference
  import torch
  net, _ = way.network(model, params)
  image = way.tensor(image_DHWC[None])
  ids = [way.plain(np.array([k], np.int32)) for k in range(classes)]

  def each(patch):
    return [net(patch, k.expand(len(patch))) for k in ids]

  def shared(patch):
    features = net.encode(patch)
    return [net.decode(features, k.expand(len(patch))) for k in ids]

  def caller(logits):
    def predictor(patch):
      patch = way.in_format(patch)
      return torch.sigmoid(torch.stack(logits(patch), 1))

    def call():
      with torch.no_grad():
        output = sliding_window_inference(image, window, 1 if way.device == "cpu" else 4, predictor,
                                          overlap=0.5, mode="gaussian")
      way.wait()
      return output[0]
    return call

  return {f"MONAI, {way.name}, once per class": caller(each),
          f"MONAI, {way.name}, encoded once": caller(shared)}
