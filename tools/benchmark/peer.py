"""Configurations of PyTorch for the same work; none if PyTorch is not installed."""

from collections.abc import Callable
from collections.abc import Mapping
import importlib.util
import os
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np

from condseg_jax.models.dense_unet import DenseUNet

if TYPE_CHECKING:
  import torch

class Way(NamedTuple):
  """A configuration of PyTorch.

  Attributes:
    name: name in the row.
    format: memory format of image and parameters.
    compiled: whether to use torch.compile.
    device: `cpu` or `cuda`.
  """

  name: str
  format: object
  compiled: bool
  device: str

  def tensor(self, array_BDHWC: np.ndarray) -> "torch.Tensor":
    """Converts a channels-last array to a tensor in the memory format, on the device."""
    import torch
    return self.in_format(torch.tensor(array_BDHWC).movedim(-1, 1))

  def in_format(self, tensor: "torch.Tensor") -> "torch.Tensor":
    """Returns a copy in the memory format, on the device.

    Not with `contiguous`: a tensor with a single channel is contiguous in both formats, and PyTorch
    selects the format by the strides.
    """
    import torch
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=self.format,
                        device=self.device)
    return empty.copy_(tensor)

  def plain(self, array: np.ndarray) -> "torch.Tensor":
    """Converts class ids or masks to a tensor on the device; ids become int64, for indexing."""
    import torch
    tensor = torch.tensor(array)
    return (tensor.long() if tensor.dtype == torch.int32 else tensor).to(self.device)

  def network(self, model: DenseUNet, params: Mapping) -> tuple["torch.nn.Module", Callable]:
    """Returns the network with these parameters, and the function to call, compiled or not."""
    import torch

    from tools.benchmark.torch_net import TorchNet
    net = TorchNet(model).load(params).to(self.device, memory_format=self.format)
    if not self.compiled:
      return net, net
    return net, torch.compile(net)

  def wait(self) -> None:
    """Waits until the device has finished."""
    if self.device == "cuda":
      import torch
      torch.cuda.synchronize()


def installed(package: str = "torch") -> bool:
  """Returns whether a package is installed."""
  return importlib.util.find_spec(package) is not None


def ways(ndim: int = 3, *, compiled: bool = True) -> list[Way]:
  """Lists the configurations: channels-first and channels-last, eager and compiled.

  Args:
    ndim: number of spatial axes.
    compiled: whether to include torch.compile.
  """
  if not installed():
    return []
  import torch

  from tools.benchmark.torch_net import CHANNELS_LAST
  torch.set_num_threads(os.cpu_count())
  torch.compiler.reset()  # earlier networks count towards its limit of programs
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.backends.cudnn.benchmark = True  # selects the fastest convolution, as XLA does
  last = CHANNELS_LAST[ndim]
  configurations = [Way("channels-first", torch.contiguous_format, False, device),
                    Way("channels-last", last, False, device)]
  if compiled:
    configurations.append(Way("channels-last, compiled", last, True, device))
  if compiled and device == "cuda":  # on CPU never the fastest, and takes minutes to compile
    configurations.append(Way("channels-first, compiled", torch.contiguous_format, True, device))
  return configurations
