"""Implements the network's layers as ONNX nodes, channels first: `x_BCDHW` (no D in 2-D).

They correspond to `models.layers` and `models.conditioning`, expressed by native ONNX operators: a
convolution is always a single node, pooling and upsampling are MaxPool and ConvTranspose.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math

import numpy as np
import onnx
from onnx import helper
from onnx import numpy_helper

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # matches the opset, for older runtimes


class Graph:
  """Builds a graph; methods that add a node return the name of its output."""

  def __init__(self):
    self._nodes, self._constants, self._scope = [], {}, []

  def add(self, op: str, *inputs: str, name: str = "", **attributes) -> str:
    """Adds a node with one output, called `name` if given."""
    name = name or f"{op}_{len(self._nodes)}"
    self._nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}",
                                        **attributes))
    return name

  def constant(self, array: np.typing.ArrayLike, name: str = "") -> str:
    """Adds a constant; unnamed constants of equal value are shared."""
    array = np.ascontiguousarray(array)
    tensor = numpy_helper.from_array(array, name)
    key = name or (array.dtype.str, array.shape, array.tobytes())
    if key not in self._constants:
      tensor.name = name or f"constant_{len(self._constants)}"
      self._constants[key] = tensor
    return self._constants[key].name

  def model(self, inputs: Mapping[str, tuple], outputs: Mapping[str, tuple]) -> bytes:
    """Returns the checked and serialised model.

    Args:
      inputs: name → (element type of `onnx.TensorProto`, shape); a dynamic axis has a name instead
        of a length.
      outputs: likewise.
    """
    ends = [[helper.make_tensor_value_info(name, kind, shape)
             for name, (kind, shape) in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(self._nodes, "condseg_jax", *ends, list(self._constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                              ir_version=IR_VERSION, producer_name="condseg_jax")
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def convolve(graph: Graph, parts: Sequence[str], channels: Sequence[int], params: Mapping,
             path: str) -> str:
  """Adds `layers.Conv`: the sum of the parts' convolutions; a part shared by all classes is
  broadcast."""
  kernel = np.asarray(params["kernel"])
  ndim = kernel.ndim - 2
  kernel = np.moveaxis(kernel, (-1, -2), (0, 1))  # [O, C, *window]
  pads = [size // 2 for size in kernel.shape[2:]] * 2
  out, first = None, 0
  for number, (part, count) in enumerate(zip(parts, channels, strict=True)):
    weights = [graph.constant(kernel[:, first:first + count], f"{path}/kernel_{number}")]
    if number == 0 and "bias" in params:
      weights.append(graph.constant(np.asarray(params["bias"]), f"{path}/bias"))
    y = graph.add("Conv", part, *weights, kernel_shape=kernel.shape[2:], pads=pads,
                  strides=[1] * ndim)
    out = y if out is None else graph.add("Add", out, y)
    first += count
  return out


def normalise(graph: Graph, x: str, kind: str, params: Mapping, path: str, ndim: int,
              shift: str = "") -> str:
  """Adds `layers.Norm`, fused with a `shift` [B, C, 1, …] if given."""
  if kind == "none":
    return graph.add("Add", x, shift) if shift else x
  scale, bias = np.asarray(params["scale"]), np.asarray(params["bias"])
  one = [1] * ndim
  size = 1 if kind == "instance" else math.gcd(8, len(scale))
  space = graph.constant(np.arange(2, 2 + ndim))

  def mean(y):
    y = graph.add("ReduceMean", y, space)
    if size > 1:
      y = graph.add("Reshape", y, graph.constant([0, -1, size, *one[1:]]))
      y = graph.add("ReduceMean", y, graph.constant([2]))
    return y  # [B, groups, 1, …]

  mu, square = mean(x), mean(graph.add("Mul", x, x))
  variance = graph.add("Relu", graph.add("Sub", square, graph.add("Mul", mu, mu)))
  deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(np.float32(1e-6))))
  # From groups to channels: [B, groups, 1] · [groups, size] and back to [B, C, 1, …].
  groups, flat = graph.constant([0, -1, 1]), graph.constant([0, -1, *one])
  mu, deviation = (graph.add("Reshape", y, groups) for y in (mu, deviation))
  gamma = graph.constant(scale.reshape(-1, size), f"{path}/scale")
  beta = graph.constant(bias.reshape(-1, size), f"{path}/bias")
  factor = graph.add("Div", gamma, deviation)
  offset = graph.add("Sub", beta, graph.add("Mul", mu, factor))
  factor, offset = (graph.add("Reshape", y, flat) for y in (factor, offset))
  if shift:
    offset = graph.add("Add", offset, shift)
  return graph.add("Add", graph.add("Mul", x, factor), offset)


def condition(graph: Graph, vector: str, params: Mapping, shape: Sequence[int], path: str) -> str:
  """Adds `conditioning.constant_channels` of a vector [K, E].

  Returns:
    The summand [K, O, *shape]; [K, O, 1, …] if the kernel is one voxel, so that it is constant.
  """
  kernel = np.asarray(params["kernel"])
  window, (size, features) = kernel.shape[:-2], kernel.shape[-2:]
  ndim = len(window)
  kernel = np.moveaxis(kernel, (-2, -1), (0, 1)).reshape(size, -1)
  out = graph.add("MatMul", vector, graph.constant(kernel, f"{path}/kernel"))
  if set(window) == {1}:
    return graph.add("Reshape", out, graph.constant([-1, features, *window]))
  done = []  # lengths of the finished axes, from the last
  for axis in range(ndim - 1, -1, -1):
    taps = np.arange(window[axis]) - window[axis] // 2
    position = np.arange(shape[axis])[:, None] + taps
    inside = graph.constant(((position >= 0) & (position < shape[axis])).astype(np.float32))
    rows = [features, *window[:axis], window[axis], math.prod(done)]
    out = graph.add("Reshape", out, graph.constant([-1, *rows]))
    out = graph.add("MatMul", inside, out)
    done.append(shape[axis])
  return graph.add("Reshape", out, graph.constant([-1, features, *shape]))


def activate(graph: Graph, x: str, name: str) -> str:
  """Adds one of `layers.ACTIVATIONS`."""
  if name == "silu":
    return graph.add("Mul", x, graph.add("Sigmoid", x))
  op, settings = {"relu": ("Relu", {}), "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
                  "gelu": ("Gelu", {"approximate": "tanh"})}[name]
  return graph.add(op, x, **settings)


def max_pool(graph: Graph, x: str, strides: Sequence[int]) -> str:
  """Adds `layers.max_pool`."""
  return graph.add("MaxPool", x, kernel_shape=strides, strides=strides)


def upsample(graph: Graph, x: str, params: Mapping, path: str) -> str:
  """Adds `layers.Upsample`."""
  kernel = np.moveaxis(np.asarray(params["kernel"]), -1, 1)  # [C, O, *strides]
  return graph.add("ConvTranspose", x, graph.constant(kernel, f"{path}/kernel"),
                   kernel_shape=kernel.shape[2:], strides=kernel.shape[2:])
