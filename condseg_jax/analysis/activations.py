"""The output of every layer, in the order in which the network computes them.

A layer is the stem, an upsampling, the head, or a child of a block (`down_1/layer_0`); what lies
inside of it (convolution, normalisation, condition) is not looked at.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from condseg_jax.models.dense_unet import DenseUNet

BLOCKS, SINGLE = ("down_", "merge_"), ("stem", "up_", "head")


class Place(NamedTuple):
  """Where a layer is in the network.

  Attributes:
    name: as in the tree of parameters, at most two names joined by `/`.
    part: `encoder` or `decoder`.
    level: 0 is the finest.
    channels: of its output.
  """

  name: str
  part: str
  level: int
  channels: int


def layer_name(path: Sequence[str]) -> str:
  """The layer that a path in the tree of modules or parameters belongs to; empty for no layer."""
  first = path[0] if path else ""
  if first.startswith(BLOCKS):
    return "/".join(path[:2]) if len(path) > 1 else ""
  return first if first.startswith(SINGLE) else ""


def part_and_level(name: str) -> tuple[str, int]:
  """Of a layer's name."""
  first = name.partition("/")[0]
  number = first.rpartition("_")[2]
  return ("encoder" if first.startswith(("stem", "down_")) else "decoder",
          int(number) if number.isdigit() else 0)


def activations(model: DenseUNet, variables, image_BDHWC: jax.Array,
                class_id_B: jax.Array) -> dict[str, jax.Array]:
  """Layer → its output under the class asked for, in network order.

  The decoder levels that `encode` computes where no class is seen are of the decoder all the same.

  Args:
    model: the network.
    variables: as `model.init` returns them.
    image_BDHWC: normalised images; without D in 2-D.
    class_id_B: the class asked of each.

  Returns:
    [B, *shape of the level, channels] for each layer; the head's has one channel, the logits.
  """
  model, found = model.clone(remat=False), {}

  def watch(module, method):
    name = layer_name(module.path)
    taken = bool(name) and method == "__call__" and "/".join(module.path) == name
    if taken:
      found.setdefault(name, None)  # asked when a module is done, so in the order of the network
    return taken

  capture = dict(capture_intermediates=watch, mutable=["intermediates"])
  features, encoded = model.apply(variables, image_BDHWC,
                                  class_id_B if model.encoder_sees_class else None,
                                  method=model.encode, **capture)
  _, decoded = model.apply(variables, features, class_id_B, method=model.decode_levels, **capture)
  out = {}
  for name in found:
    for captured in (encoded, decoded):
      value = _output(captured.get("intermediates", {}), name, image_BDHWC.ndim)
      if value is not None:
        out[name] = value
  return out


def places(model: DenseUNet, channels: int) -> tuple[Place, ...]:
  """The layers of a network in its order; nothing is computed.

  Args:
    model: the network.
    channels: of an image.
  """
  image = jax.ShapeDtypeStruct((1, *model.stride, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  names = []

  def outputs(x, i):
    variables = model.init(jax.random.key(0), x, i)
    found = activations(model, variables, x, i)
    names.extend(found)
    return list(found.values())

  shapes = jax.eval_shape(outputs, image, ids)
  return tuple(Place(name, *part_and_level(name), shape.shape[-1])
               for name, shape in zip(names, shapes, strict=True))


def compiled(model: DenseUNet) -> Callable[..., list[jax.Array]]:
  """`activations` under jit, as a list: (variables, image_BDHWC, class_id_B) → one per place."""
  return jax.jit(lambda variables, image, ids:
                 list(activations(model, variables, image, ids).values()))


def _output(tree, name: str, ndim: int) -> jax.Array | None:
  """What was captured of a layer; None where it is no map over space."""
  for key in name.split("/"):
    tree = tree.get(key, {})
  if "__call__" not in tree:
    return None
  value = tree["__call__"][-1]
  if not isinstance(value, jax.Array):
    return None
  if name == "head" and value.ndim == ndim - 1:  # logits without an axis of channels
    value = value[..., None]
  return value if value.ndim == ndim else None
