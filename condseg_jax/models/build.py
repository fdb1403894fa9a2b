"""Builds a network from the settings of a config or checkpoint."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.config import Conditioning
from condseg_jax.config import Model
from condseg_jax.errors import InputError
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import Network
from condseg_jax.models.onednn import convolution as onednn
from condseg_jax.models.res_unet import ResUNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
AMPERE = 8.0  # the first compute capability of NVIDIA with bfloat16
CPU_CHANNELS = 16  # with 8, a training step was 5 to 21 % slower in bfloat16 than in float32


def computation_dtype(name: str, channels: int) -> jnp.dtype:
  """Returns the dtype of a `model.dtype`.

  For `auto` it is bfloat16 on TPUs, on GPUs from Ampere on, and on CPUs with instructions for it
  where convolutions run in oneDNN and have work enough; else float32.

  Args:
    name: the setting.
    channels: of the finest level.
  """
  if name != "auto":
    return jnp.dtype(DTYPES[name])
  platform = jax.default_backend()
  if platform == "cpu":
    fast = channels >= CPU_CHANNELS and onednn.usable(jax.ShapeDtypeStruct((), jnp.bfloat16))
  elif platform == "gpu":
    fast = not any(map(_before_ampere, jax.local_devices()))
  else:
    fast = platform == "tpu"
  return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)


def _before_ampere(device: jax.Device) -> bool:
  capability = str(getattr(device, "compute_capability", ""))  # of AMD, e.g. gfx90a
  return re.fullmatch(r"[0-9.]+", capability) is not None and float(capability) < AMPERE


def dense_unet(model: Model, conditioning: Conditioning, codes: tuple[float, ...]) -> DenseUNet:
  """Builds the network of `models.dense_unet`, whose fields have the names of the settings."""
  _check_unused(model, "max_channels")
  network = DenseUNet(codes=codes, **_fields(DenseUNet, model, conditioning))
  network.check()
  return network


def res_unet(model: Model, conditioning: Conditioning, codes: tuple[float, ...]) -> ResUNet:
  """Builds the network of `models.res_unet`, whose fields have the names of the settings."""
  return _strided_unet(model, conditioning, codes, residual=True)


def plain_unet(model: Model, conditioning: Conditioning, codes: tuple[float, ...]) -> ResUNet:
  """Builds the network of `models.res_unet` with layers in place of residual units."""
  return _strided_unet(model, conditioning, codes, residual=False)


def _strided_unet(model: Model, conditioning: Conditioning, codes: tuple[float, ...], *,
                  residual: bool) -> ResUNet:
  _check_unused(model, "growth", "encoder_block", "decoder_block", "decoder", "rates")
  network = ResUNet(codes=codes, residual=residual, **_fields(ResUNet, model, conditioning))
  network.check()
  return network


def _check_unused(model: Model, *names: str) -> None:
  """Raises ValueError for settings that the network does not have and that are no defaults."""
  for name in names:
    if getattr(model, name) != getattr(Model(), name):
      raise ValueError(f"{name} has no effect on the network {model.network!r}")


def _fields(network: type[DenseUNet] | type[ResUNet], model: Model,
            conditioning: Conditioning) -> dict[str, Any]:
  """Returns the settings that are fields of a network."""
  fields = {f.name for f in dataclasses.fields(network)}
  values = {**vars(model), **vars(conditioning),
            "dtype": computation_dtype(model.dtype, model.channels)}
  return {key: values[key] for key in values if key in fields}


# (model, conditioning, class codes) → network. To add one, write a module that implements the
# protocol `models.network.Network` and register it here: `config.model.network` selects it.
# ValueErrors are reported to the user as invalid settings.
NETWORKS: dict[str, Callable[[Model, Conditioning, tuple[float, ...]], Network]] = {
    "dense_unet": dense_unet, "res_unet": res_unet, "plain_unet": plain_unet}


def build_model(model: Model, conditioning: Conditioning,
                codes: Sequence[float] | np.ndarray) -> Network:
  """Builds the network of a config.

  Args:
    model: the `model` section of the config.
    conditioning: the `conditioning` section.
    codes: class codes in the order of the ids.

  Raises:
    InputError: the settings do not define a valid network.
  """
  if model.network not in NETWORKS:
    raise InputError("model.network", f"{model.network!r} is not registered",
                     f"one of {', '.join(NETWORKS)}", usage=True)
  try:
    return NETWORKS[model.network](model, conditioning, tuple(float(code) for code in codes))
  except ValueError as error:
    raise InputError("model", str(error), "correct the config", usage=True) from error
