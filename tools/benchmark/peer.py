"""The ways in which PyTorch does the same work; none where it is not installed."""

import importlib.util
import os
from typing import NamedTuple


class Way(NamedTuple):
  """How PyTorch runs a network.

  Attributes:
    name: for the row.
    format: memory format of image and parameters.
    compiled: whether by torch.compile.
    device: cpu or cuda.
  """

  name: str
  format: object
  compiled: bool
  device: str

  def tensor(self, array_BDHWC):
    """A channels-last array as a tensor of this format on the device."""
    import torch
    return self.laid(torch.tensor(array_BDHWC).movedim(-1, 1))

  def laid(self, tensor):
    """A copy in this format on the device.

    Not by `contiguous`: with a single channel both formats are, and the strides that are left
    decide in which of them PyTorch works.
    """
    import torch
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=self.format,
                        device=self.device)
    return empty.copy_(tensor)

  def plain(self, array):
    """Class ids and masks: a tensor on the device; ids as PyTorch indexes with."""
    import torch
    tensor = torch.tensor(array)
    return (tensor.long() if tensor.dtype == torch.int32 else tensor).to(self.device)

  def network(self, model, params):
    """The network with these parameters, and what is to be called in its place."""
    import torch

    from tools.benchmark.torch_net import TorchNet
    net = TorchNet(model).load(params).to(self.device, memory_format=self.format)
    if not self.compiled:
      return net, net
    return net, torch.compile(net)

  def wait(self):
    """Until the device is done."""
    if self.device == "cuda":
      import torch
      torch.cuda.synchronize()


def installed(package: str = "torch") -> bool:
  return importlib.util.find_spec(package) is not None


def ways(ndim: int = 3, *, compiled: bool = True) -> list[Way]:
  """Channels-first, channels-last, compiled; with as many threads as we have."""
  if not installed():
    return []
  import torch

  from tools.benchmark.torch_net import CHANNELS_LAST
  torch.set_num_threads(os.cpu_count())
  torch.compiler.reset()  # past networks would count against its limit of programs
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.backends.cudnn.benchmark = True  # looks for the fastest convolution, as XLA does
  last = CHANNELS_LAST[ndim]
  found = [Way("channels-first", torch.contiguous_format, False, device),
           Way("channels-last", last, False, device)]
  if compiled:
    found.append(Way("channels-last, compiled", last, True, device))
  if compiled and device == "cuda":  # on CPU never the best, and minutes to compile
    found.append(Way("channels-first, compiled", torch.contiguous_format, True, device))
  return found
