"""Augmentation inside the jitted step: one affine resampling, then intensities.

Pure functions of a key. The key of a sample is fold_in(fold_in(key(seed), step), index), so that a
resumed run, another device count or another batch layout draws the same numbers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from condseg_jax.classes import UNLABELLED
from condseg_jax.data.batch import Batch


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Ranges; 0 switches a transformation off.

  Attributes:
    probability: with which each of the transformations is applied to a sample.
    rotate: largest rotation about every axis (in 2-D the one), in degrees, in world space.
    zoom: largest relative change of size, 0.2 for 1/1.2 … 1.2.
    shift: largest shift along each axis, as a part of the subvolume.
    scale, offset: largest relative change of contrast and absolute change of brightness, in units
      of the normalised image.
    gamma: largest change of log gamma, applied to the image mapped to 0–1 by its own range.
    noise: largest standard deviation of added noise, in units of the normalised image.
    mirror: axes ("D", "H", "W") that are flipped with probability 1/2, except for samples of a
      class that may not be mirrored along them.
  """

  probability: float = 0.5
  rotate: float = 0.0
  zoom: float = 0.0
  shift: float = 0.0
  scale: float = 0.0
  offset: float = 0.0
  gamma: float = 0.0
  noise: float = 0.0
  mirror: tuple[str, ...] = ()

  @property
  def moves(self) -> bool:
    """Whether voxels are resampled at all."""
    return bool(self.rotate or self.zoom or self.shift)


def augment(batch: Batch, key: jax.Array, config: Augmentation, spacing: tuple[float, ...],
            lateral_axes: jax.Array) -> Batch:
  """Augments every sample of a batch with numbers of its own.

  Args:
    batch: see `Batch`.
    key: of the step; each sample folds in its index.
    config: what to do.
    spacing: of the voxels, so that a rotation is one in the world and not a shear.
    may_not_mirror: bool [K, axes], True where a class must not be mirrored along an axis.

  Returns:
    The batch with image and mask changed alike; voxels moved in are unlabelled.
  """
  keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch.index)
  # A class that is decoded but not annotated here has no say.
  forbidden = jnp.any(lateral_axes[batch.class_id] & (batch.beta > 0)[..., None], axis=1)

  def one(image, mask, sample_key, refused):
    move_key, mirror_key, intensity_key = jax.random.split(sample_key, 3)
    if config.moves:
      coordinates = _coordinates(move_key, mask.shape[:-1], config, spacing)
      image, mask = _resample(image, mask, coordinates)
    image, mask = _mirror(mirror_key, image, mask, config, refused)
    return _intensity(intensity_key, image, config), mask

  image, mask = jax.vmap(one)(batch.image, batch.mask, keys, forbidden)
  return batch._replace(image=image, mask=mask)


def rotation_matrix(angles: jax.Array, ndim: int) -> jax.Array:
  """Rotation about each axis in turn, [ndim, ndim]; `angles` in radians, 3 in 3-D and 1 in 2-D."""
  planes = [(1, 2), (0, 2), (0, 1)] if ndim == 3 else [(0, 1)]
  matrix = jnp.eye(ndim)
  for angle, (i, j) in zip(angles, planes, strict=True):
    c, s = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.eye(ndim).at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s)
    matrix = turn @ matrix
  return matrix


def _coordinates(key, shape, config, spacing) -> list[jax.Array]:
  """Where every voxel of the result comes from, one array of `shape` per axis."""
  n = len(shape)
  rotate_key, zoom_key, shift_key = jax.random.split(key, 3)
  angles = _drawn(rotate_key, (3 if n == 3 else 1,), math.radians(config.rotate), config)
  log_zoom = _drawn(zoom_key, (), math.log1p(config.zoom), config)
  shift = _drawn(shift_key, (n,), config.shift, config)

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
  """Image by linear interpolation, its edge repeated; mask by nearest voxel, else unlabelled."""
  def linear(channel):
    return map_coordinates(channel, coordinates, order=1, mode="nearest")

  image = jax.vmap(linear, in_axes=-1, out_axes=-1)(image)
  nearest = [jnp.round(c).astype(jnp.int32) for c in coordinates]
  inside = jnp.ones(mask.shape[:-1], bool)
  for index, size in zip(nearest, mask.shape[:-1], strict=True):
    inside &= (index >= 0) & (index < size)
  clipped = tuple(jnp.clip(i, 0, n - 1) for i, n in zip(nearest, mask.shape[:-1], strict=True))
  return image, jnp.where(inside[..., None], mask[clipped], jnp.asarray(UNLABELLED, mask.dtype))


def _mirror(key, image, mask, config, refused):
  axes = "DHW"[3 - (image.ndim - 1):]
  coins = jax.random.bernoulli(key, 0.5, (len(axes),))
  for axis, name in enumerate(axes):
    if name in config.mirror:
      flip = coins[axis] & ~refused[axis]
      image = jnp.where(flip, jnp.flip(image, axis), image)
      mask = jnp.where(flip, jnp.flip(mask, axis), mask)
  return image, mask


def _intensity(key, image, config):
  scale_key, offset_key, gamma_key, noise_key = jax.random.split(key, 4)
  if config.gamma:
    gamma = jnp.exp(_drawn(gamma_key, (), config.gamma, config))
    low, high = image.min(), image.max()
    width = jnp.maximum(high - low, 1e-6)
    image = low + width * ((image - low) / width) ** gamma
  if config.scale:
    image = image * jnp.exp(_drawn(scale_key, (), math.log1p(config.scale), config))
  if config.offset:
    image = image + _drawn(offset_key, (), config.offset, config)
  if config.noise:
    sd_key, field_key = jax.random.split(noise_key)
    sd = jnp.abs(_drawn(sd_key, (), config.noise, config))
    image = image + sd * jax.random.normal(field_key, image.shape, image.dtype)
  return image


def _drawn(key, shape, limit, config):
  """Uniform in ±limit, or 0 where the coin says that the transformation is not applied."""
  value_key, coin_key = jax.random.split(key)
  value = jax.random.uniform(value_key, shape, jnp.float32, -limit, limit)
  return jnp.where(jax.random.bernoulli(coin_key, config.probability), value, 0.0)
