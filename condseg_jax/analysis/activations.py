"""Outputs of all layers, in the order in which the network computes them.

A layer is the stem, an upsampling, the head, or a child of a block (`down_1/layer_0`). Its parts
(convolution, normalisation, condition) are not analysed separately.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.unet import BLOCK_KINDS
from condseg_jax.models.unet import kind_and_level
from condseg_jax.models.unet import PARTS


class LayerInfo(NamedTuple):
  """A layer of the network.

  Attributes:
    name: as in the tree of parameters, at most two names joined by `/`.
    part: `encoder` or `decoder`.
    level: 0 is the finest.
    channels: output channels.
  """

  name: str
  part: str
  level: int
  channels: int


def layer_name(path: Sequence[str]) -> str:
  """Returns the layer that a path in the tree of modules or parameters belongs to; "" if none.

  Args:
    path: names from the root, e.g. ("down_1", "layer_0", "conv", "kernel").
  """
  kind, _ = kind_and_level(path[0] if path else "") or ("", 0)
  if kind in BLOCK_KINDS:
    return "/".join(path[:2]) if len(path) > 1 else ""
  return path[0] if kind else ""


def activations(model: DenseUNet, variables: Mapping, image_BDHWC: jax.Array,
                class_id_B: jax.Array) -> dict[str, jax.Array]:
  """Computes the output of every layer for one class per image.

  Args:
    model: the network.
    variables: as `model.init` returns them.
    image_BDHWC: normalised images; without D in 2-D.
    class_id_B: requested class of each image.

  Returns:
    Layer → [B, *shape of the level, channels], in network order, whether `encode` or `decode`
    computes it. The output of the head has one channel, the logits.
  """
  model, names = model.clone(remat=False), {}  # a dict, as an ordered set

  def is_layer(module, method):
    name = layer_name(module.path)
    captured = bool(name) and method == "__call__" and "/".join(module.path) == name
    if captured:
      names.setdefault(name, None)  # called after each module, so in network order
    return captured

  capture = dict(capture_intermediates=is_layer, mutable=["intermediates"])
  features, encoded = model.apply(variables, image_BDHWC,
                                  class_id_B if model.encoder_sees_class else None,
                                  method=model.encode, **capture)
  _, decoded = model.apply(variables, features, class_id_B, method=model.decode_levels, **capture)
  outputs = {}
  for name in names:
    for captured in (encoded, decoded):
      output = _output(captured.get("intermediates", {}), name, image_BDHWC.ndim)
      if output is not None:
        outputs[name] = output
  return outputs


def list_layers(model: DenseUNet, channels: int) -> tuple[LayerInfo, ...]:
  """Lists the layers of a network in network order; only shapes are computed.

  Args:
    model: the network.
    channels: image channels.
  """
  image = jax.ShapeDtypeStruct((1, *model.stride, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  names = []

  def compute(x, i):
    outputs = activations(model, model.init(jax.random.key(0), x, i), x, i)
    names.extend(outputs)
    return list(outputs.values())

  outputs = jax.eval_shape(compute, image, ids)
  layers = []
  for name, output in zip(names, outputs, strict=True):
    kind, level = kind_and_level(name.partition("/")[0])
    layers.append(LayerInfo(name, PARTS[kind], level, output.shape[-1]))
  return tuple(layers)


def compiled(model: DenseUNet) -> Callable[..., list[jax.Array]]:
  """Compiles `activations`: (variables, image_BDHWC, class_id_B) → one array per layer."""
  return jax.jit(lambda variables, image, ids:
                 list(activations(model, variables, image, ids).values()))


def _output(tree: Mapping, name: str, ndim: int) -> jax.Array | None:
  """Returns the captured output of a layer, or None if it is not a spatial map."""
  for key in name.split("/"):
    tree = tree.get(key, {})
  if "__call__" not in tree:
    return None
  output = tree["__call__"][-1]
  if not isinstance(output, jax.Array):
    return None
  if name == "head" and output.ndim == ndim - 1:  # logits without a channel axis
    output = output[..., None]
  return output if output.ndim == ndim else None
