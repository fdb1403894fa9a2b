"""Validates the settings of a network."""

from collections.abc import Sequence

from condseg_jax.models import conditioning
from condseg_jax.models import decoders
from condseg_jax.models import layers
from condseg_jax.models.blocks import BLOCKS
from condseg_jax.models.class_vector import VECTORS

RES_UNET_POSITIONS = ("none", "input", "decoder")


def check_network(model) -> None:
  """Raises ValueError for a `dense_unet.DenseUNet` with invalid settings."""
  _check_levels(model)
  sizes = [model.channels, model.growth, model.embedding_size, *model.rates]
  sizes += [stride for level in model.strides for stride in level]
  if min(sizes) < 1 or min(*model.layers_per_level, *model.decoder_layers) < 0:
    raise ValueError("channels, growth, embedding_size, rates and strides must be 1 or more, "
                     "layers_per_level 0 or more")
  _check_names(model, conditioning.POSITIONS)
  for value, name, known in ((model.encoder_block, "encoder_block", tuple(BLOCKS)),
                             (model.decoder_block, "decoder_block", tuple(BLOCKS)),
                             (model.decoder, "decoder", decoders.DECODERS)):
    _check_name(value, name, known)
  if model.decoder != "unet":
    if model.position in ("decoder", "per_class_decoders"):
      raise ValueError(f"decoder {model.decoder!r} has no class conditioning: position "
                       f"{model.position!r} needs the decoder 'unet'")
    if model.partition is not None:
      raise ValueError(f"a volume cannot be split over devices with the decoder "
                       f"{model.decoder!r}")
  for name, block, layers_per_level in (
      ("encoder_block", model.encoder_block, model.layers_per_level),
      ("decoder_block", model.decoder_block, model.decoder_layers)):
    if block != "dense" and 0 in layers_per_level:
      raise ValueError(f"{name} {block!r} has no layer at a level with 0 layers: give it 1 or more")
  _check_condition(model)


def check_res_unet(model) -> None:
  """Raises ValueError for a `res_unet.ResUNet` with invalid settings."""
  _check_levels(model)
  sizes = [model.channels, model.max_channels, model.embedding_size, *model.layers_per_level,
           *model.decoder_layers]
  if min(*sizes, *(stride for level in model.strides for stride in level)) < 1:
    raise ValueError("channels, max_channels, embedding_size, strides, layers_per_level and "
                     "decoder_layers_per_level must be 1 or more")
  _check_names(model, RES_UNET_POSITIONS)
  _check_condition(model)


def _check_levels(model) -> None:
  levels = len(model.layers_per_level)
  if levels < 2 or len(model.strides) != levels - 1:
    raise ValueError(f"layers_per_level has {levels} levels and strides {len(model.strides)}; "
                     "there must be two levels or more, and one stride less than levels")
  if {len(level) for level in model.strides} not in ({2}, {3}):
    raise ValueError(f"strides {model.strides}: each has 2 axes, or each has 3")
  if len(model.decoder_layers) != len(model.strides):
    raise ValueError(f"decoder_layers_per_level has {len(model.decoder_layers)} levels; the "
                     f"decoder has {len(model.strides)}, one less than the encoder")


def _check_names(model, positions: Sequence[str]) -> None:
  for value, name, known in ((model.position, "position", positions),
                             (model.mechanism, "mechanism", tuple(conditioning.MECHANISMS)),
                             (model.vector, "vector", VECTORS),
                             (model.norm, "norm", layers.NORMS),
                             (model.activation, "activation", tuple(layers.ACTIVATIONS))):
    _check_name(value, name, known)


def _check_name(value: str, name: str, known: Sequence[str]) -> None:
  if value not in known:
    raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")


def _check_condition(model) -> None:
  if model.position not in ("none", "per_class_decoders"):
    chosen = conditioning.MECHANISMS[model.mechanism]
    if model.position not in chosen.positions:
      raise ValueError(f"mechanism {model.mechanism!r} does not act at position "
                       f"{model.position!r}, but at {', '.join(chosen.positions)}")
    if chosen.needs_norm and model.norm == "none":
      raise ValueError(f"mechanism {model.mechanism!r} needs a normalisation, norm is 'none'")
  if model.vector == "text" and (len(model.texts) != len(model.codes) or not all(
      len(row) == len(model.texts[0]) and any(row) for row in model.texts)):
    raise ValueError("vector 'text' needs one vector for each class, of one length and not zero")
  if model.from_level is not None:
    if model.position not in ("decoder", "per_class_decoders"):
      raise ValueError(f"from_level has no effect where position is {model.position!r}")
    if not 0 <= model.from_level < len(model.strides):
      raise ValueError(f"from_level {model.from_level} is not one of the decoder's levels, 0 to "
                       f"{len(model.strides) - 1}")
  most = max(0, model.conditioned_levels - 1)
  if not 0 <= model.deep_supervision <= most:
    raise ValueError(f"deep_supervision {model.deep_supervision}: {model.conditioned_levels} "
                     f"levels of the decoder see the class, so choose 0 to {most}")
