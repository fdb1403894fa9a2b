"""The network that a command names, loaded once in every process that works for it."""

import functools
from typing import NamedTuple
import uuid

from absl import flags

from condseg_jax import loading
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.predictor import Predictor
from condseg_jax.system.cache import enable_compilation_cache


class Network(NamedTuple):
  """What `load` needs.

  Attributes:
    workdir, checkpoint, runtime, locator, verify, members: see `load`.
    command: unique to a call of a command, as the files may change between two.
  """

  workdir: str
  checkpoint: str
  runtime: str
  locator: str
  verify: bool
  members: int
  command: str

  @classmethod
  def of(cls, values: flags.FlagValues, runtime: str = "jax") -> "Network":
    """Returns the network of the flags `define_model`, `define_verify` and `define_locator`."""
    return cls(values.workdir, values.checkpoint, runtime, values.locator, values.verify == "on",
               values.members, uuid.uuid4().hex)

  def load(self, step: int | None = None) -> Predictor:
    """Returns the predictor, which a process keeps until it loads another.

    Args:
      step: of the checkpoint that is expected.

    Raises:
      InputError: see `load`; the checkpoint has another step.
    """
    predictor = _loaded(self)
    if step not in (None, predictor.step):
      raise InputError(self.workdir, f"was at step {step} when the command began, now at "
                       f"{predictor.step}", "run it when the training has ended", usage=True)
    return predictor


@functools.lru_cache(maxsize=1)
def _loaded(network: Network) -> Predictor:
  enable_compilation_cache()
  with as_flags(members="--members"):
    return loading.load(network.workdir, network.checkpoint, network.runtime, network.locator,
                        verify=network.verify, members=network.members)


def leave_devices() -> None:
  """Leaves the devices of this machine to the workers of a cluster; to be called first."""
  import jax
  jax.config.update("jax_platforms", "cpu")
