"""The forward pass and the training step, against the same network in PyTorch.

A step consists of forward pass, loss (soft Dice, and cross-entropy if the config has it), backward
pass, gradient clipping and Adam, on a batch that is already on the device. Augmentation is off on
both sides; ours also computes the metrics and checks for non-finite values, as in training. On CPUs
ours in bfloat16 meets PyTorch in float32 and in bfloat16, whichever is faster.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from condseg_jax.config import Config
from condseg_jax.models.build import DTYPES as DTYPE_OF
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.onednn import convolution as onednn
from tools.benchmark import nets
from tools.benchmark import ours
from tools.benchmark import peer
from tools.benchmark import roofline
from tools.benchmark.timing import not_measured
from tools.benchmark.timing import race


class Case(NamedTuple):
  """A network and an input size.

  Attributes:
    name: name of the size in the rows.
    config: name of a config in experiments/configs.
    shape: D H W.
    batch: number of images.
    once: time a single round on CPU, because it takes long.
  """

  name: str
  config: str
  shape: tuple[int, ...]
  batch: int
  once: bool = False


CASES = (Case("hippocampus 40x56x40 batch 2", "hippocampus", (40, 56, 40), 2),
         Case("paper-like 128x128x128 batch 1", "ct_abdomen", (128, 128, 128), 1, once=True),
         Case("paper-like 256x256x32 batch 2", "ct_abdomen", (32, 256, 256), 2, once=True))
DTYPES = {"cpu": ("float32", "bfloat16"), "gpu": ("bfloat16",)}


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite, without figures for other platforms than this one."""
  rows = []
  for platform, dtypes in DTYPES.items():
    for dtype, case in itertools.product(dtypes, CASES):
      if reason := _missing(platform, dtype):
        rows += [not_measured(row_name(part, case, dtype, platform), reason)
                 for part in ("forward", "step")]
      else:
        rows += measure(case, dtype)
  return rows


def _missing(platform: str, dtype: str) -> str:
  """Returns why nothing can be measured here; "" if it can."""
  if platform != jax.default_backend():
    return f"no {platform.upper()}"
  fast = platform != "cpu" or onednn.usable(jax.ShapeDtypeStruct((), DTYPE_OF[dtype]))
  return "" if fast or dtype == "float32" else "no oneDNN, or no instructions for bfloat16"


def row_name(part: str, case: Case, dtype: str, platform: str) -> str:
  """Returns the name of a row; `part` is `forward` or `step`."""
  return f"{part}, {case.name}, {dtype}, {platform.upper()}"


def measure(case: Case, dtype: str) -> list[dict]:
  """Returns the rows of a case: forward pass and step."""
  platform = jax.default_backend()
  once = case.once and platform == "cpu"
  config = nets.config_of(case.config, {"model": {"dtype": dtype}})
  model = nets.network(config)
  params = nets.parameters(model)
  image, class_id, mask = nets.inputs(case.shape, case.batch)
  flops = case.batch * sum(nets.work(params, model, case.shape))
  common = {"dtype": dtype, "parameters": sum(p.size for p in jax.tree.leaves(params))}

  # torch.compile takes minutes for the long cases, and was the fastest on CPU for one row only.
  compiled = not once and (platform != "cpu" or dtype == "float32")
  # On CPUs PyTorch may be faster in float32.
  types = ("float32", "bfloat16") if (platform, dtype) == ("cpu", "bfloat16") else (dtype,)

  def competitors(make: Callable) -> dict[str, Callable]:
    ways = peer.ways(len(case.shape), compiled=compiled)
    return {way.name if len(types) == 1 else f"{way.name}, {kind}": make(way, kind == "bfloat16")
            for way in ways for kind in types}

  forward = ours.Forward(model, params, image, class_id)
  calls = competitors(lambda way, mixed: peer_forward(way, model, params, image, class_id, mixed))
  rows = [race(row_name("forward", case, dtype, platform), forward, calls, flops=flops,
               distance=nets.max_difference, once=once,
               least=roofline.least_seconds(forward.compiled), **common)]

  calls = competitors(lambda way, mixed: peer_step(way, model, params, config,
                                                   (image, class_id, mask), mixed))
  step = ours.Step(model, params, config, (image, class_id, mask))
  rows.append(race(row_name("step", case, dtype, platform), step, calls, flops=3 * flops,
                   distance=relative_difference, once=once,
                   least=roofline.least_seconds(step.compiled), **common))
  return rows


def peer_forward(way: peer.Way, model: DenseUNet, params: Mapping, image: np.ndarray,
                 class_id: np.ndarray, mixed: bool) -> Callable:
  """Returns a function that computes logits in PyTorch, a tensor; `mixed`: in bfloat16."""
  import torch
  _, forward = way.network(model, params)
  image, class_id = way.tensor(image), way.plain(class_id)

  def call():
    with torch.no_grad(), torch.autocast(way.device, torch.bfloat16, enabled=mixed):
      logits = forward(image, class_id)
    way.wait()
    return logits

  return call


def peer_step(way: peer.Way, model: DenseUNet, params: Mapping, config: Config,
              arrays: Sequence[np.ndarray], mixed: bool) -> Callable:
  """Returns a function that runs a step in PyTorch; its result are loss and gradient norm.

  Every call continues from the parameters of the previous one.

  Args:
    way: configuration of PyTorch.
    model: the network.
    params: initial parameters.
    config: of the training.
    arrays: image, class ids and mask.
    mixed: whether to compute in bfloat16.
  """
  from tools.benchmark.torch_net import make_step
  net, forward = way.network(model, params)
  step = make_step(net, forward, vars(config.optimizer), config.loss.bce_weight, mixed)
  image, class_id, mask = way.tensor(arrays[0]), way.plain(arrays[1]), way.plain(arrays[2])

  def call():
    result = step(image, class_id, mask)
    way.wait()
    return result

  return call


def relative_difference(ours: Sequence, theirs: Sequence) -> float:
  """Returns the largest relative difference of loss and gradient norm."""
  return max(abs(float(a) - float(b)) / float(a) for a, b in zip(ours, theirs, strict=True))
