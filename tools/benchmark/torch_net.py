"""The peer: the network of `condseg_jax.models`, its objective and its step, in PyTorch.

The same layers with the same weights, written to be fast in PyTorch: convolutions of a single
concatenation, and the class condition as a bias map per class as in our network, because
concatenated constant channels are slower. Requires the extra `bench`.

Tensors are channels-first, `x_BCDHW`; their memory format is that of the input.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from condseg_jax.models.dense_unet import DenseUNet

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
ACTIVATIONS = {"relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
               "gelu": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


def taps_inside(size: int, taps: int, device: torch.device) -> torch.Tensor:
  """Returns [size, taps]: 1 where a kernel tap at a position of an axis is inside the image."""
  position = torch.arange(size)[:, None] + torch.arange(taps)[None] - taps // 2
  return ((position >= 0) & (position < size)).float().to(device)


cached_taps_inside = functools.lru_cache(taps_inside)


class ConstantChannels(nn.Module):
  """Implements `models.constant_channels`."""

  def __init__(self, size: int, features: int, kernel_size: tuple[int, ...]):
    super().__init__()
    self.kernel = nn.Parameter(torch.empty(*kernel_size, size, features))

  def forward(self, vector_BE: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Returns [B, features, *shape]."""
    # torch.compile does not support the cache, and folds constants itself.
    inside_of = taps_inside if torch.compiler.is_compiling() else cached_taps_inside
    out = torch.tensordot(vector_BE, self.kernel, dims=([1], [self.kernel.ndim - 2]))
    for axis, (size, taps) in enumerate(zip(shape, self.kernel.shape[:-2], strict=True), start=1):
      if taps == 1:
        continue  # broadcast below
      inside = inside_of(size, taps, out.device)
      out = torch.tensordot(inside, out, dims=([1], [axis])).movedim(0, axis)
    return out.movedim(-1, 1)


class Layer(nn.Module):
  """Convolution, normalisation, condition, activation."""

  def __init__(self, model: DenseUNet, channels: int, features: int, size: int, condition: int):
    super().__init__()
    plain = model.norm == "none"
    self.conv = CONVOLUTION[model.ndim](channels, features, size, padding=size // 2, bias=plain)
    group = 1 if model.norm == "instance" else math.gcd(8, features)
    self.norm = nn.Identity() if plain else nn.GroupNorm(features // group, features, eps=1e-6)
    window = (size,) * model.ndim
    self.condition = ConstantChannels(condition, features, window) if condition else None
    self.activation = ACTIVATIONS[model.activation]

  def forward(self, x: torch.Tensor, vector_BE: torch.Tensor | None = None) -> torch.Tensor:
    """Returns [B, features, *shape]."""
    y = self.norm(self.conv(x))
    if self.condition is not None:
      y = y + self.condition(vector_BE, y.shape[2:])
    return self.activation(y)


class Block(nn.Module):
  """A dense block: densely connected layers and their join."""

  def __init__(self, model: DenseUNet, level: int, channels: int, condition: int = 0):
    super().__init__()
    growth, features = model.growth * (level + 1), model.channels * (level + 1)
    self.layers = nn.ModuleList()
    for _ in range(model.layers_per_level[level]):
      self.layers.append(Layer(model, channels, growth, 3, condition))
      channels += growth
    self.join = Layer(model, channels, features, 1, condition)

  def forward(self, x: torch.Tensor, vector_BE: torch.Tensor | None = None,
              skip: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """Returns [B, features, *shape]; all layers also read `skip`, which has 0 or 1 tensors."""
    made = [x]
    for layer in (*self.layers, self.join):
      parts = [*made, *skip]
      made.append(layer(torch.cat(parts, 1) if len(parts) > 1 else x, vector_BE))
    return made[-1]


class TorchNet(nn.Module):
  """`DenseUNet` with the condition in the decoder or without condition."""

  def __init__(self, model: DenseUNet, image_channels: int = 1):
    super().__init__()
    if model.position not in ("decoder", "none"):
      raise ValueError(f"the peer does not support the position {model.position!r}")
    levels, learned = len(model.layers_per_level), model.vector == "embedding"
    size = 0 if model.position == "none" else model.embedding_size if learned else 1
    last = levels - 2 if model.from_level is None else model.from_level
    self.conditioned_levels = last + 1  # number of decoder levels, finest first, in `decode`
    width = [model.channels * (level + 1) for level in range(levels)]
    strides = [tuple(s) for s in model.strides]
    self.ndim, self.strides = model.ndim, strides
    self.stem = Layer(model, image_channels, width[0], 3, 0)
    self.down = nn.ModuleList(
        Block(model, level, width[max(level - 1, 0)]) for level in range(levels))
    self.up = nn.ModuleList(
        TRANSPOSED[model.ndim](width[level + 1], width[level], strides[level], strides[level],
                               bias=False) for level in range(levels - 1))
    self.merge = nn.ModuleList(
        Block(model, level, 2 * width[level], size if level <= last else 0)
        for level in range(levels - 1))
    self.head = CONVOLUTION[model.ndim](width[0], 1, 1)
    codes = torch.tensor(model.codes, dtype=torch.float32)[:, None]
    self.vectors = nn.Parameter(torch.empty(len(model.codes), model.embedding_size)) if (
        size and learned) else codes
    self.is_conditioned = bool(size)

  def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Computes the encoder and the unconditioned decoder levels: features and skips."""
    x = self.down[0](self.stem(image))
    skips = [x]
    for block, stride in zip(self.down[1:], self.strides, strict=True):
      x = block(POOL[self.ndim](x, stride))
      skips.append(x)
    skips.pop()
    while len(skips) > self.conditioned_levels:
      x = self._merge(x, skips, None)
    return x, skips

  def decode(self, features: tuple[torch.Tensor, Sequence[torch.Tensor]],
             class_id_B: torch.Tensor) -> torch.Tensor:
    """Computes the logits of one class per sample, [B, *shape]."""
    x, skips = features[0], list(features[1])
    vector = self.vectors.to(x.device)[class_id_B] if self.is_conditioned else None
    while skips:
      x = self._merge(x, skips, vector)
    with torch.autocast(x.device.type, enabled=False):  # the head is float32, as ours
      return self.head(x.float())[:, 0]

  def forward(self, image: torch.Tensor, class_id_B: torch.Tensor) -> torch.Tensor:
    """Computes the logits of one class per sample, [B, *shape]."""
    return self.decode(self.encode(image), class_id_B)

  def _merge(self, x, skips, vector):
    skip = skips.pop()
    level = len(skips)
    return self.merge[level](self.up[level](x), vector, (skip,))

  def load(self, params: Mapping) -> "TorchNet":
    """Loads flax parameters; the parameters of both sides must match one to one."""
    axes = tuple(range(self.ndim))
    state = {}
    for path, value in _leaves(params):
      value = torch.tensor(np.asarray(value))
      if path[-1] == "kernel" and path[-2] != "condition":
        order = (0, self.ndim + 1, *(a + 1 for a in axes)) if path[0].startswith("up_") else (
            self.ndim + 1, self.ndim, *axes)
        value = value.permute(order)
      state[_torch_name(path)] = value
    self.load_state_dict(state)
    return self


def _leaves(tree: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _torch_name(path: tuple[str, ...]) -> str:
  """Converts a flax path: merge_0/layer_1/norm/scale → merge.0.layers.1.norm.weight."""
  if path == ("class_vector", "embedding"):
    return "vectors"
  parts = list(path)
  if parts[-1] == "scale" or (parts[-1] == "kernel" and "condition" not in parts):
    parts[-1] = "weight"
  return ".".join(parts).replace("layer_", "layers.").replace("down_", "down.").replace(
      "up_", "up.").replace("merge_", "merge.")


def objective(logits_BDHW: torch.Tensor, mask_BDHW: torch.Tensor,
              bce_weight: float) -> torch.Tensor:
  """Implements `losses.objective` for one annotated class per image and α = 1."""
  logits, mask = logits_BDHW.float().flatten(1), mask_BDHW.flatten(1)
  labelled = (mask != 255).float()
  target = (mask == 1).float()
  logits = torch.where(labelled > 0, logits, 0.0)
  count, positive = labelled.sum(1), target.sum(1)
  probability = torch.sigmoid(logits) * labelled
  overlap, predicted = (probability * target).sum(1), probability.sum(1)
  empty = positive == 0
  numerator = torch.where(empty, 2 * (count - predicted), 2 * overlap)
  denominator = torch.where(empty, 2 * count - predicted, predicted + positive)
  dice = torch.where(count > 0, 1 - numerator / torch.where(count > 0, denominator, 1.0), 0.0)
  entropy = F.softplus(torch.where(target > 0, -logits, logits)) * labelled
  return (dice + bce_weight * entropy.sum(1) / count.clamp(min=1.0)).mean()


def make_step(net: nn.Module, forward: Callable, settings: Mapping, bce_weight: float,
              bfloat16: bool) -> Callable:
  """Builds a training step: (image, class_id_B, mask) → loss and gradient norm, tensors.

  Args:
    net: the network with the parameters.
    forward: `net`, possibly compiled.
    settings: section `optimizer` of a config, for Adam with a constant learning rate.
    bce_weight: weight of the cross-entropy.
    bfloat16: whether to use automatic mixed precision.
  """
  adam = torch.optim.Adam(net.parameters(), settings["learning_rate"],
                          (settings["b1"], settings["b2"]), fused=True)

  def step(image, class_id_B, mask):
    adam.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bfloat16):
      logits = forward(image, class_id_B)
    loss = objective(logits, mask, bce_weight)
    loss.backward()
    # Our step always returns the norm and clips it only if the config says so.
    norm = nn.utils.clip_grad_norm_(net.parameters(), settings["clip_norm"] or math.inf)
    adam.step()
    return loss.detach(), norm

  return step
