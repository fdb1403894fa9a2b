"""Settings, as a config or a checkpoint holds them, to a network."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp

from condseg_jax.errors import InputError
from condseg_jax.models.dense_unet import DenseUNet

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_model(model: Mapping, conditioning: Mapping, codes: Sequence[float]) -> DenseUNet:
  """The network of a config.

  Args:
    model: the `model` part of a config: fields of `DenseUNet`, `dtype` by name.
    conditioning: the `conditioning` part: `position`, `mechanism`, `vector`, `embedding_size`,
      `texts`, `from_level`.
    codes: class codes in the order of the ids.

  Raises:
    InputError: a setting that the network does not have, or a value that it cannot take.
  """
  settings = {**model, **conditioning}
  settings.pop("text_vectors", None)  # the file that the texts came from
  known = {f.name for f in dataclasses.fields(DenseUNet)}
  known -= {"codes", "partition", "batch_axes", "parent", "name"}
  for key in settings:
    if key not in known:
      raise InputError(f"model setting {key!r}", "is not known",
                       f"settings: {', '.join(sorted(known))}", usage=True)
  dtype = settings.pop("dtype", "float32")
  if dtype not in _DTYPES:
    raise InputError(f"dtype {dtype!r}", "is not known", f"one of {', '.join(_DTYPES)}", usage=True)
  try:
    settings["strides"] = tuple(tuple(int(s) for s in level) for level in settings["strides"])
    settings["depth"] = tuple(int(n) for n in settings["depth"])
    if settings.get("decoder_depth") is not None:
      settings["decoder_depth"] = tuple(int(n) for n in settings["decoder_depth"])
    settings["rates"] = tuple(int(n) for n in settings.get("rates", DenseUNet.rates))
    settings["texts"] = tuple(tuple(map(float, row)) for row in settings.get("texts", ()))
    network = DenseUNet(codes=tuple(float(c) for c in codes), dtype=_DTYPES[dtype], **settings)
    network.check()
  except KeyError as error:
    raise InputError("model", f"lacks {error}", "correct the config", usage=True) from error
  except (TypeError, ValueError) as error:
    raise InputError("model", str(error), "correct the config", usage=True) from error
  return network
