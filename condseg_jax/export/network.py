"""Converts the encoder and decoder of a network to ONNX models.

    encoder  image float32 [1, C, *window] (, class_id int32 [K])  →  x, skip_0, skip_1, …
    decoder  x, skip_0, skip_1, … (, class_id int32 [K])  →  probability float32 [K, *window]

With `position` = `output_head` there are no skips, but a `summary`, the pooled coarsest features. K
is the number of classes. As in JAX, layers before the first condition are computed once for all
classes: their batch axis has length 1. A model without class conditioning has no `class_id`; if
neither has (`position` = `none`), the decoder's K is 1.

The code follows `models.dense_unet` and computes in float32.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from condseg_jax.errors import InputError
from condseg_jax.export import graph as layers
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.heads import head_layers


class Halves(NamedTuple):
  """Encoder and decoder, each a serialised ONNX model."""

  encoder: bytes
  decoder: bytes


class _Value(NamedTuple):
  """A tensor in a graph: name, channels, spatial shape, and batch size 1 or "K"."""

  name: str
  channels: int
  shape: tuple[int, ...]
  batch: int | str = 1


def onnx_halves(model: DenseUNet, params: Mapping, window: Sequence[int], channels: int) -> Halves:
  """Converts a trained network to ONNX.

  Args:
    model: the network.
    params: its parameters.
    window: spatial shape of the input.
    channels: of the image.

  Raises:
    InputError: ONNX export does not support the network, the conditioning, a block or the decoder.
  """
  if not isinstance(model, DenseUNet):
    raise InputError("network", f"ONNX export does not support {type(model).__name__}",
                     "export without ONNX")
  for name in (model.encoder_block, model.decoder_block, model.decoder):
    if name not in ("dense", "unet"):
      raise InputError("network", f"ONNX export does not support {name!r}", "export without ONNX")
  if (model.position == "per_class_decoders" or model.vector not in ("hash", "embedding")
      or (model.position != "none" and model.mechanism not in ("channel", "dynamic"))):
    raise InputError("network", "ONNX export does not support the conditioning "
                     f"{model.position}, {model.mechanism}, {model.vector}", "export without ONNX")
  encoder, features = _encoder(model, params, tuple(window), channels)
  return Halves(encoder, _decoder(model, params, features))


def _encoder(model, params, window, channels):
  net = _Network(model, params)
  inputs = {"image": (TensorProto.FLOAT, [1, channels, *window])}
  vector = net.class_vector(inputs) if model.encoder_sees_class else None
  x = net.layer(_Value("image", channels, window), None,
                vector if model.position == "input" else None, "stem")
  x = net.block(x, None, None, "down_0")
  skips = [x]
  for level in range(1, len(model.layers_per_level)):
    x = net.max_pool(x, model.strides[level - 1])
    x = net.block(x, None, vector if model.position == "encoder" else None, f"down_{level}")
    skips.append(x)
  coarsest = skips.pop()
  while len(skips) > model.conditioned_levels:
    x = net.merge(x, skips, None)
  features = [x._replace(name="x")]
  features += [skip._replace(name=f"skip_{level}") for level, skip in enumerate(skips)]
  if model.position == "output_head":
    skips.append(net.mean(coarsest))
    features.append(skips[-1]._replace(name="summary"))
  for value, feature in zip([x, *skips], features, strict=True):
    net.graph.add("Identity", value.name, name=feature.name)
  return net.graph.model(inputs, dict(map(_described, features))), features


def _decoder(model, params, features):
  net = _Network(model, params)
  inputs = dict(map(_described, features))
  vector = net.class_vector(inputs) if model.position in ("decoder", "output_head") else None
  x, *skips = features
  if model.position == "output_head":
    x = net.dynamic_head(x, *skips, vector)
  else:
    while skips:
      x = net.merge(x, skips, vector)
    x = net.conv([x], "head", 1)
  probability = net.graph.add("Sigmoid", x.name)
  net.graph.add("Squeeze", probability, net.graph.constant(np.array([1])), name="probability")
  return net.graph.model(inputs, {"probability": (TensorProto.FLOAT, [x.batch, *x.shape])})


def _described(value: _Value) -> tuple[str, tuple]:
  return value.name, (TensorProto.FLOAT, [value.batch, value.channels, *value.shape])


class _Network:
  """Adds the modules of `DenseUNet` to a graph; methods return their output."""

  def __init__(self, model: DenseUNet, params: Mapping):
    self.graph, self._model, self._params = layers.Graph(), model, params

  def class_vector(self, inputs: dict) -> str:
    """Adds the class vectors, and `class_id` to the inputs."""
    inputs["class_id"] = (TensorProto.INT32, ["K"])
    table = np.asarray(self._model.codes, np.float32)[:, None]
    if self._model.vector == "embedding":
      table = np.asarray(self._params["class_vector"]["embedding"])
    return self.graph.add("Gather", self.graph.constant(table, "class_vector"), "class_id")

  def conv(self, parts: Sequence[_Value], path: str, features: int) -> _Value:
    y = layers.convolve(self.graph, [p.name for p in parts], [p.channels for p in parts],
                        self._at(path), path)
    return parts[0]._replace(name=y, channels=features)

  def layer(self, x: _Value, shared: _Value | None, vector: str | None, path: str) -> _Value:
    params = self._at(path)
    y = self.conv([x] if shared is None else [x, shared], f"{path}/conv",
                  params["conv"]["kernel"].shape[-1])
    shift, summand = "", ""  # the condition as one number per channel, or as a map
    if vector is not None:
      y = y._replace(batch="K")
      summand = layers.condition(self.graph, vector, params["condition"], x.shape,
                                 f"{path}/condition")
      if set(params["condition"]["kernel"].shape[:-2]) == {1}:
        shift, summand = summand, ""
    name = layers.normalise(self.graph, y.name, self._model.norm, params.get("norm"),
                            f"{path}/norm", len(x.shape), shift)
    if summand:
      name = self.graph.add("Add", name, summand)
    return y._replace(name=layers.activate(self.graph, name, self._model.activation))

  def block(self, x: _Value, shared: _Value | None, vector: str | None, path: str) -> _Value:
    depth = sum(key.startswith("layer_") for key in self._at(path))
    for number in range(depth):
      y = self.layer(x, shared, vector, f"{path}/layer_{number}")
      if x.batch != y.batch:
        x = self._expand_classes(x)
      both = self.graph.add("Concat", x.name, y.name, axis=1)
      x = y._replace(name=both, channels=x.channels + y.channels)
    return self.layer(x, shared, vector, f"{path}/join")

  def max_pool(self, x: _Value, strides: Sequence[int]) -> _Value:
    shape = tuple(n // s for n, s in zip(x.shape, strides, strict=True))
    return x._replace(name=layers.max_pool(self.graph, x.name, strides), shape=shape)

  def merge(self, x: _Value, skips: list[_Value], vector: str | None) -> _Value:
    """Adds one decoder level; removes its skip from the list."""
    skip = skips.pop()
    level = len(skips)
    params = self._at(f"up_{level}")
    name = layers.upsample(self.graph, x.name, params, f"up_{level}")
    up = _Value(name, params["kernel"].shape[-1], skip.shape, x.batch)
    return self.block(up, skip, vector, f"merge_{level}")

  def mean(self, x: _Value) -> _Value:
    axes = self.graph.constant(np.arange(2, 2 + len(x.shape)))
    return x._replace(name=self.graph.add("ReduceMean", x.name, axes, keepdims=1),
                      shape=(1,) * len(x.shape))

  def dynamic_head(self, x: _Value, pooled: _Value, vector: str) -> _Value:
    """Adds `models.heads.DynamicHead`; its weights ω are transposed."""
    graph, params = self.graph, self._at("head")
    length = params["weight_0"]["kernel"].shape[0] - pooled.channels
    flat = graph.add("Reshape", pooled.name, graph.constant(np.array([1, pooled.channels])))
    size = graph.add("Concat", graph.add("Shape", "class_id"),
                     graph.constant(np.array([pooled.channels])), axis=0)
    inputs = [(graph.add("Expand", flat, size), pooled.channels), (vector, length)]
    context = graph.add("Concat", *(
        graph.add("Mul", name, graph.constant(np.array(n**-0.5, np.float32)))
        for name, n in inputs), axis=1)
    y = graph.add("Reshape", x.name, graph.constant(np.array([1, x.channels, -1])))
    layers_of_head = head_layers(x.channels)
    for i, (fan_in, features) in enumerate(layers_of_head):
      weight, bias = params[f"weight_{i}"], params[f"bias_{i}"]
      weight = graph.add("MatMul", context, graph.constant(np.asarray(weight["kernel"])))
      weight = graph.add("Reshape", weight, graph.constant(np.array([-1, fan_in, features])))
      weight = graph.add("Transpose", weight, perm=[0, 2, 1])
      offset = graph.add("Add", graph.add("MatMul", context,
                                          graph.constant(np.asarray(bias["kernel"]))),
                         graph.constant(np.asarray(bias["bias"])))
      offset = graph.add("Reshape", offset, graph.constant(np.array([-1, features, 1])))
      y = graph.add("Add", graph.add("MatMul", weight, y), offset)
      if i < len(layers_of_head) - 1:
        y = layers.activate(graph, y, self._model.activation)
    name = graph.add("Reshape", y, graph.constant(np.array([-1, 1, *x.shape])))
    return x._replace(name=name, channels=1, batch="K")

  def _expand_classes(self, x: _Value) -> _Value:
    """Broadcasts a value that is shared by all classes to batch size K."""
    count = self.graph.add("Shape", "class_id")
    rest = self.graph.constant(np.array([x.channels, *x.shape]))
    target = self.graph.add("Concat", count, rest, axis=0)
    return x._replace(name=self.graph.add("Expand", x.name, target), batch="K")

  def _at(self, path: str) -> Mapping:
    """Returns the parameters of a module."""
    params = self._params
    for key in path.split("/"):
      params = params[key]
    return params
