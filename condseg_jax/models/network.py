"""The protocol of networks, and logits of several classes from one shared encoder pass."""


from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp

CLASSES = "classes"  # vmapped axis over the classes decoded per image


class Network(Protocol):
  """A Flax module that encodes an image once and decodes it for one class at a time.

  Attributes:
    ndim: number of spatial axes, 2 or 3.
    stride: the spatial shape of an input must be a multiple of this.
    encoder_sees_class: whether `encode` depends on the class and so runs once per class.
    deep_supervision: number of coarser levels in `decode_levels` besides the finest.
    batch_axes: mapped axes that a batch is spread over, for batch statistics.
  """

  @property
  def ndim(self) -> int: ...

  @property
  def stride(self) -> tuple[int, ...]: ...

  @property
  def encoder_sees_class(self) -> bool: ...

  deep_supervision: int
  batch_axes: tuple[str, ...]

  def encode(self, image_BDHWC: jax.Array, class_id_B: jax.Array | None = None) -> Any:
    """Computes the features of an image for `decode`, once per image; any pytree."""

  def decode(self, features: Any, class_id_B: jax.Array) -> jax.Array:
    """Returns the logits of one class per sample, float32 [B, *shape]."""

  def decode_levels(self, features: Any, class_id_B: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the logits of one class per sample at every supervised level, finest first."""

  def init(self, rngs, image_BDHWC: jax.Array, class_id_B: jax.Array) -> Mapping[str, Any]: ...

  def apply(self, variables, *args, **kwargs) -> Any: ...

  def clone(self, **changes: Any) -> "Network": ...

  def __hash__(self) -> int: ...


def smallest_inputs(model: Network, channels: int) -> tuple[Any, Any]:
  """Returns shape and type of the smallest image, float32 [1, *stride, C], and of its class id."""
  return (jax.ShapeDtypeStruct((1, *model.stride, channels), jnp.float32),
          jax.ShapeDtypeStruct((1,), jnp.int32))


def variable_shapes(model: Network, channels: int) -> Mapping[str, Any]:
  """Returns shapes and types of a network's variables, without computing any of them."""
  return jax.eval_shape(lambda x, i: model.init(jax.random.key(0), x, i),
                        *smallest_inputs(model, channels))


def class_logits(model: Network, variables, image_BDHWC: jax.Array,
                 class_id_BN: jax.Array) -> jax.Array:
  """Returns the logits of N classes per image, float32 [B, *shape, N]; see `level_logits`."""
  return level_logits(model, variables, image_BDHWC, class_id_BN)[0]


def level_logits(model: Network, variables, image_BDHWC: jax.Array,
                 class_id_BN: jax.Array) -> tuple[jax.Array, ...]:
  """Returns the logits of N classes per image at every supervised level.

  Each image is encoded once if the encoder is unconditioned; only class-conditioned parts run N
  times.

  Args:
    model: the network.
    variables: as `model.init` returns them.
    image_BDHWC: normalised images.
    class_id_BN: int, the classes to decode per image.

  Returns:
    1 + `model.deep_supervision` arrays, finest level first, float32 [B, *shape of the level, N].
  """
  return _every_class(model, variables, image_BDHWC, class_id_BN, False)[0]


def training_logits(model: Network, variables, image_BDHWC: jax.Array,
                    class_id_BN: jax.Array) -> tuple[tuple[jax.Array, ...], dict]:
  """Computes `level_logits` in training mode, with updated batch statistics.

  Returns:
    The logits, and {"statistics": …} if the network uses batch normalisation, else {}.
  """
  if "statistics" not in variables:
    return level_logits(model, variables, image_BDHWC, class_id_BN), {}
  model = model.clone(batch_axes=(*model.batch_axes, CLASSES))
  return _every_class(model, variables, image_BDHWC, class_id_BN, ["statistics"])


def _every_class(model, variables, image, class_id_BN, mutable):
  def apply(changed, *arguments, method):
    out = model.apply({**variables, **changed}, *arguments, method=method, mutable=mutable)
    return out if mutable else (out, {})

  def encode(class_id_B):
    return apply({}, image, class_id_B, method=model.encode)

  def decode(encoded, class_id_B):
    features, changed = encoded
    return apply(changed, features, class_id_B, method=model.decode_levels)

  # Statistics are summed over the classes and therefore identical for all of them.
  over_classes: dict[str, Any] = dict(out_axes=(-1, None), axis_name=CLASSES)
  if model.encoder_sees_class:
    return jax.vmap(lambda ids: decode(encode(ids), ids), in_axes=1, **over_classes)(class_id_BN)
  return jax.vmap(decode, in_axes=(None, 1), **over_classes)(encode(None), class_id_BN)


def initial_variables(model: Network, seed: int, shape: Sequence[int]) -> dict:
  """Returns what `model.init` returns, compiled in a fifth of the time on CPU.

  LLVM spends 25 of 30 seconds on optimising code that runs once; without these passes the
  parameters are bitwise identical.

  Args:
    model: the network.
    seed: seed of the parameters.
    shape: shape of an image, [*space, C].
  """
  options = None
  if jax.default_backend() == "cpu" and not jax.config.read("jax_disable_most_optimizations"):
    options = {"xla_backend_optimization_level": 1}
  image = jnp.zeros((1, *shape), jnp.float32)
  draw = jax.jit(model.init, compiler_options=options)
  return draw(jax.random.key(seed), image, jnp.zeros(1, jnp.int32))
