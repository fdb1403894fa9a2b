"""Convolution layers of the networks, forward and backward."""

from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import layers
from tools.benchmark import nets
from tools.benchmark import peer
from tools.benchmark.timing import race

if TYPE_CHECKING:
  import torch


class Size(NamedTuple):
  """A layer: input channels, output channels, kernel size per axis, spatial shape, batch size."""

  inputs: int
  outputs: int
  kernel_size: int
  shape: tuple[int, ...]
  batch: int = 2


FINE, MIDDLE, COARSE = (40, 56, 40), (20, 28, 20), (10, 14, 10)
SIZES = (Size(8, 8, 3, FINE), Size(16, 8, 3, FINE), Size(12, 12, 3, FINE), Size(16, 16, 3, FINE),
         Size(48, 16, 3, FINE), Size(32, 16, 1, FINE), Size(32, 32, 3, FINE),
         Size(16, 16, 3, MIDDLE), Size(32, 32, 3, MIDDLE), Size(64, 64, 3, MIDDLE),
         Size(24, 24, 3, COARSE), Size(64, 64, 3, COARSE), Size(128, 128, 3, COARSE))


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite, two per layer."""
  return [row for size in SIZES for row in measure(size)]


def measure(size: Size) -> list[dict]:
  """Returns the rows of a layer: forward, and forward with the gradients of input and kernel."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(size.batch, *size.shape, size.inputs)).astype(np.float32)
  kernel_size = (size.kernel_size,) * len(size.shape)
  fan_in = np.prod(kernel_size) * size.inputs
  kernel = rng.normal(0, fan_in**-0.5, (*kernel_size, size.inputs, size.outputs))
  kernel = kernel.astype(np.float32)
  cotangent = rng.normal(size=(size.batch, *size.shape, size.outputs)).astype(np.float32)
  name = (f"{size.inputs}→{size.outputs}, {'x'.join(map(str, kernel_size))}, "
          f"{size.batch}x{'x'.join(map(str, size.shape))}")
  flops = 2.0 * kernel.size * size.batch * np.prod(size.shape)

  arguments = jax.device_put((x, kernel, cotangent))
  forward = jax.jit(layers.convolve)

  @jax.jit
  def both(x, kernel, cotangent):
    out, backward = jax.vjp(layers.convolve, x, kernel)
    return out, *backward(cotangent)

  calls = [peer_calls(way, x, kernel, cotangent)
           for way in peer.ways(len(size.shape), compiled=False)]
  common = {"budget": 4.0}
  return [race(f"conv {name}, forward", lambda: forward(*arguments[:2]),
               {way: call for way, call, _ in calls}, flops=flops, distance=forward_distance,
               **common),
          race(f"conv {name}, forward and backward", lambda: both(*arguments),
               {way: call for way, _, call in calls}, flops=3 * flops, distance=backward_distance,
               **common)]


def peer_calls(way: peer.Way, x: np.ndarray, kernel: np.ndarray,
               cotangent: np.ndarray) -> tuple[str, Callable, Callable]:
  """Returns the name of a PyTorch configuration, forward, and forward with gradients."""
  import torch
  import torch.nn.functional as F
  ndim = x.ndim - 2
  convolve = {2: F.conv2d, 3: F.conv3d}[ndim]
  x, cotangent = way.tensor(x), way.tensor(cotangent)
  weight = way.in_format(torch.tensor(kernel).permute(ndim + 1, ndim, *range(ndim)))
  padding = kernel.shape[0] // 2

  def forward():
    with torch.no_grad():
      out = convolve(x, weight, padding=padding)
    way.wait()
    return out

  def both():
    leaves = x.requires_grad_(), weight.requires_grad_()
    out = convolve(*leaves, padding=padding)
    gradients = torch.autograd.grad(out, leaves, cotangent)
    way.wait()
    return out.detach(), *gradients

  return way.name, forward, both


def forward_distance(ours: jax.Array, theirs: "torch.Tensor") -> float:
  """Returns the largest difference between the outputs."""
  return nets.max_difference(ours, theirs.movedim(1, -1))


def backward_distance(ours: Sequence[jax.Array], theirs: Sequence["torch.Tensor"]) -> float:
  """Returns the largest difference of output and gradients, each relative to its largest value."""
  out, gradient, kernel = theirs
  ndim = kernel.ndim - 2
  theirs = out.movedim(1, -1), gradient.movedim(1, -1), kernel.permute(*range(2, ndim + 2), 1, 0)
  return max(nets.max_difference(a, b) / float(jnp.abs(a).max())
             for a, b in zip(ours, theirs, strict=True))
