"""Augmentation inside the jitted step: one affine resampling, then intensity transforms.

Pure functions of a key. The key of a sample is fold_in(fold_in(key(seed), step), index), so that
random numbers do not depend on resuming, device count or batch layout.
"""

from collections.abc import Callable
import math
import zlib

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Augment
from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError

Draw = Callable[[jax.Array, tuple[int, ...], float], jax.Array]


def gamma(image: jax.Array, key: jax.Array, limit: float, draw: Draw) -> jax.Array:
  """Applies a gamma between e^-limit and e^limit to the image rescaled to [0, 1] by its range."""
  exponent = jnp.exp(draw(key, (), limit))
  low, high = image.min(), image.max()
  width = jnp.maximum(high - low, 1e-6)
  # The compiler may round `image` and `low` differently; the base of a power must not be negative.
  return low + width * (jnp.maximum(image - low, 0.0) / width) ** exponent


def scale(image: jax.Array, key: jax.Array, limit: float, draw: Draw) -> jax.Array:
  """Multiplies contrast by 1 / (1 + limit) to 1 + limit."""
  return image * jnp.exp(draw(key, (), math.log1p(limit)))


def offset(image: jax.Array, key: jax.Array, limit: float, draw: Draw) -> jax.Array:
  """Adds an offset of up to ±limit, in units of the normalised image."""
  return image + draw(key, (), limit)


def noise(image: jax.Array, key: jax.Array, limit: float, draw: Draw) -> jax.Array:
  """Adds Gaussian noise with a standard deviation of up to limit, in normalised units."""
  sd_key, field_key = jax.random.split(key)
  sd = jnp.abs(draw(sd_key, (), limit))
  return image + sd * jax.random.normal(field_key, image.shape, image.dtype)


def blur(image: jax.Array, key: jax.Array, limit: float, draw: Draw) -> jax.Array:
  """Convolves with a Gaussian of a standard deviation of up to limit voxels, edges repeated."""
  sd = jnp.maximum(jnp.abs(draw(key, (), limit)), 1e-3)

  def weights(size: int) -> jax.Array:
    place = jnp.arange(size, dtype=jnp.float32)
    # A voxel beyond the edge counts as the last one: its weight is that of the whole tail.
    tails = jax.scipy.stats.norm.cdf((place[None, :-1] + 0.5 - place[:, None]) / sd)
    return jnp.diff(tails, axis=1, prepend=0.0, append=1.0)
  return _separably(image, weights)


def low_resolution(image: jax.Array, key: jax.Array, limit: float, draw: Draw) -> jax.Array:
  """Keeps every f-th voxel along each axis, f up to 1 + limit, and interpolates between them.

  As the simulation of low resolution in Isensee et al. (nnU-Net, Nature Methods 2021), whose f is
  up to 2, with linear in place of cubic interpolation.
  """
  factor = 1.0 + jnp.abs(draw(key, (), limit))

  def weights(size: int) -> jax.Array:
    coarse = jnp.arange(size, dtype=jnp.float32) / factor
    before = jnp.floor(coarse)
    kept = [jnp.clip(jnp.round((before + k) * factor), 0, size - 1).astype(jnp.int32)
            for k in (0, 1)]
    share = (coarse - before)[:, None]
    return (1 - share) * jax.nn.one_hot(kept[0], size) + share * jax.nn.one_hot(kept[1], size)
  return _separably(image, weights)


def _separably(image_DHWC: jax.Array, weights: Callable[[int], jax.Array]) -> jax.Array:
  """Applies along every spatial axis the matrix [n, n] that `weights` returns for its size."""
  for axis, size in enumerate(image_DHWC.shape[:-1]):
    moved = jnp.tensordot(weights(size), image_DHWC, axes=(1, axis))
    image_DHWC = jnp.moveaxis(moved, 0, axis)
  return image_DHWC


# Intensity augmentations in the order in which they are applied: (image_DHWC, key, limit, draw) →
# image. `limit` is its setting, `config.augment.NAME` or `config.augment.extra.NAME`; `draw(key,
# shape, limit)` is uniform in ±limit, or 0 where the sample is left unchanged. To add one, write a
# function and register it here.
AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array, float, Draw], jax.Array]] = {
    "blur": blur, "low_resolution": low_resolution, "gamma": gamma, "scale": scale,
    "offset": offset, "noise": noise}
_BUILT_IN = tuple(AUGMENTATIONS)
# These share one split of a sample's key; any other folds its name into the key, so that adding one
# does not change the random numbers of the rest.
_SPLIT = ("scale", "offset", "gamma", "noise")


def check_augmentations(settings: Augment) -> None:
  """Raises InputError for an unregistered name in `augment.extra`."""
  for name in settings.extra:
    if name not in AUGMENTATIONS or name in _BUILT_IN:
      raise InputError(f"augment.extra.{name}", "is not a registered augmentation", "name one that "
                       "`train.augment.AUGMENTATIONS` adds to the built-in ones", usage=True)


def augment(batch: Batch, key: jax.Array, settings: Augment, spacing: tuple[float, ...],
            lateral_axes: jax.Array) -> Batch:
  """Augments every sample of a batch independently.

  Args:
    batch: see `Batch`.
    key: key of the step; each sample folds in its index.
    settings: ranges of the transforms.
    spacing: voxel spacing, so that rotations are rigid in physical space.
    lateral_axes: bool [K, axes], True where a class must not be mirrored along an axis.

  Returns:
    The batch with image and mask transformed alike; voxels moved in from outside are unlabelled.
  """
  keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch.index)
  forbidden = sided(batch, lateral_axes)

  def one(image, mask, sample_key, refused):
    move_key, mirror_key, intensity_key = jax.random.split(sample_key, 3)
    if settings.rotate or settings.zoom or settings.shift:
      coordinates = _coordinates(move_key, mask.shape[:-1], settings, spacing)
      image, mask = _resample(image, mask, coordinates)
    image, mask = _mirror(mirror_key, image, mask, settings, refused)
    return _intensity(intensity_key, image, settings), mask

  image, mask = jax.vmap(one)(batch.image, batch.mask, keys, forbidden)
  return batch._replace(image=image, mask=mask)


def sided(batch: Batch, lateral_axes: jax.Array) -> jax.Array:
  """Returns the axes along which a sample must not be mirrored, bool [B, axes].

  A class that is decoded but not annotated does not restrict mirroring.
  """
  return jnp.any(lateral_axes[batch.class_id] & (batch.beta > 0)[..., None], axis=1)


def mirrored(batch: Batch, key: jax.Array, settings: Augment,
             lateral_axes: jax.Array) -> jax.Array:
  """Returns the axes along which `augment` flips a sample, bool [B, axes]; arguments as there."""
  axes = "DHW"[-lateral_axes.shape[-1]:]
  wanted = jnp.array([name in settings.mirror for name in axes])

  def coins(index):
    _, mirror_key, _ = jax.random.split(jax.random.fold_in(key, index), 3)
    return _coins(mirror_key, len(axes))
  return jax.vmap(coins)(batch.index) & wanted[None] & ~sided(batch, lateral_axes)


def rotation_matrix(angles: jax.Array, ndim: int) -> jax.Array:
  """Returns the rotation about each axis in turn, [ndim, ndim]; 3 angles in 3-D, 1 in 2-D (rad)."""
  planes = [(1, 2), (0, 2), (0, 1)] if ndim == 3 else [(0, 1)]
  matrix = jnp.eye(ndim)
  for angle, (i, j) in zip(angles, planes, strict=True):
    c, s = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.eye(ndim).at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s)
    matrix = turn @ matrix
  return matrix


def _coordinates(key, shape, settings, spacing) -> list[jax.Array]:
  """Returns the source coordinates of every output voxel, one array of `shape` per axis."""
  n = len(shape)
  rotate_key, zoom_key, shift_key = jax.random.split(key, 3)
  angles = _drawn(rotate_key, (3 if n == 3 else 1,), math.radians(settings.rotate), settings)
  log_zoom = _drawn(zoom_key, (), math.log1p(settings.zoom), settings)
  shift = _drawn(shift_key, (n,), settings.shift, settings)

  spacing = jnp.asarray(spacing, jnp.float32)
  linear = rotation_matrix(angles, n) * jnp.exp(-log_zoom)
  linear = linear * spacing[None, :] / spacing[:, None]  # voxels → mm → voxels
  centre = (jnp.asarray(shape, jnp.float32) - 1) / 2
  origin = centre + shift * jnp.asarray(shape, jnp.float32)
  ranges = [jnp.arange(size, dtype=jnp.float32) - c for size, c in zip(shape, centre, strict=True)]
  coordinates = []
  for row in range(n):
    place = jnp.broadcast_to(origin[row], shape)
    for axis, offset in enumerate(ranges):
      along = [1] * n
      along[axis] = shape[axis]
      place = place + jnp.broadcast_to((linear[row, axis] * offset).reshape(along), shape)
    coordinates.append(place)
  return coordinates


def _resample(image, mask, coordinates):
  """Resamples: image linear with edge padding, mask nearest-neighbour, unlabelled outside."""
  def linear(channel):
    return map_coordinates(channel, coordinates, order=1, mode="nearest")

  image = jax.vmap(linear, in_axes=-1, out_axes=-1)(image)
  nearest = [jnp.round(c).astype(jnp.int32) for c in coordinates]
  inside = jnp.ones(mask.shape[:-1], bool)
  for index, size in zip(nearest, mask.shape[:-1], strict=True):
    inside &= (index >= 0) & (index < size)
  clipped = tuple(jnp.clip(i, 0, n - 1) for i, n in zip(nearest, mask.shape[:-1], strict=True))
  return image, jnp.where(inside[..., None], mask[clipped], jnp.asarray(UNLABELLED, mask.dtype))


def _coins(key, axes: int):
  return jax.random.bernoulli(key, 0.5, (axes,))


def _mirror(key, image, mask, settings, refused):
  axes = "DHW"[3 - (image.ndim - 1):]
  coins = _coins(key, len(axes))
  for axis, name in enumerate(axes):
    if name in settings.mirror:
      flip = coins[axis] & ~refused[axis]
      image = jnp.where(flip, jnp.flip(image, axis), image)
      mask = jnp.where(flip, jnp.flip(mask, axis), mask)
  return image, mask


def _intensity(key, image, settings):
  split = dict(zip(_SPLIT, jax.random.split(key, len(_SPLIT)), strict=True))
  draw = lambda key, shape, limit: _drawn(key, shape, limit, settings)
  for name, change in AUGMENTATIONS.items():
    limit = getattr(settings, name) if name in _BUILT_IN else settings.extra.get(name, 0.0)
    if limit:
      own = split[name] if name in split else jax.random.fold_in(key, zlib.crc32(name.encode()))
      image = change(image, own, limit, draw)
  return image


def _drawn(key, shape, limit, settings):
  """Draws uniformly from ±limit, or 0 where the transform is randomly skipped."""
  value_key, coin_key = jax.random.split(key)
  value = jax.random.uniform(value_key, shape, jnp.float32, -limit, limit)
  return jnp.where(jax.random.bernoulli(coin_key, settings.probability), value, 0.0)
