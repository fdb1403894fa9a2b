"""Augmentation: a pure function of key and index that moves image and mask alike, in the world."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest
from scipy import linalg
from scipy import ndimage

from condseg_jax.config import Augment
from condseg_jax.data.batch import Batch
from condseg_jax.train import augment as augment_lib
from condseg_jax.train.augment import augment
from condseg_jax.train.augment import rotation_matrix

KEY = jax.random.key(5)
SHAPES = {2: (20, 28), 3: (12, 20, 16)}
SPACINGS = {2: (1.0, 0.7), 3: (2.5, 1.0, 0.8)}
OFF = dict(rotate=0.0, zoom=0.0, shift=0.0, scale=0.0, offset=0.0, gamma=0.0, noise=0.0)


def ranges(**changes):
  """Nothing but what is asked for."""
  return Augment(**OFF | changes)


ALL = ranges(probability=0.8, rotate=30.0, zoom=0.3, shift=0.2, scale=0.2, offset=0.3,
                   gamma=0.4, noise=0.2, mirror=("D", "H", "W"))
MOVES = ranges(probability=1.0, rotate=30.0, zoom=0.3, shift=0.2)


def compile_anew():
  return jax.jit(lambda *args, **kwargs: augment(*args, **kwargs),
                 static_argnames=("settings", "spacing"))


# Most of the time goes into compiling: tests share shapes and configs where they can.
compiled = compile_anew()


def smooth(shape, seed):
  """A smooth field of mean 0 and standard deviation 1."""
  field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
  return ((field - field.mean()) / field.std()).astype(np.float32)


def make(ndim=3, size=6, classes=2, channels=1, seed=0):
  """Smooth images; each mask says where the first channel is above a threshold of its own."""
  image = np.stack([np.stack([smooth(SHAPES[ndim], (seed, b, c)) for c in range(channels)], -1)
                    for b in range(size)])
  mask = np.stack([(image[..., 0] > 0.3 * n).astype(np.uint8) for n in range(classes)], -1)
  ids = np.stack([(np.arange(classes) + b) % 4 for b in range(size)]).astype(np.int32)
  return Batch(image, ids, mask, np.ones(ids.shape, np.float32), np.arange(size, dtype=np.int32),
               np.zeros(size, np.int32))


def free(ndim):
  return jnp.zeros((4, ndim), bool)


def run(batch, config, key=KEY, spacing=None, refused=None, function=compiled):
  ndim = batch.image.ndim - 2
  out = function(batch, key, settings=config, spacing=spacing or SPACINGS[ndim],
                 lateral_axes=free(ndim) if refused is None else jnp.asarray(refused))
  return Batch(*map(np.asarray, out))


def assert_equal(a, b):
  for name, x, y in zip(Batch._fields, a, b, strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y, err_msg=name)


def rows(batch, index):
  return Batch(*(leaf[index] for leaf in batch))


@pytest.fixture
def at_the_limit(monkeypatch):
  """Every draw gives the largest value allowed."""
  monkeypatch.setattr(augment_lib, "_drawn",
                      lambda key, shape, limit, settings: jnp.full(shape, limit, jnp.float32))


# --- a pure function ----------------------------------------------------------------------------
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("config", [
    ranges(), ranges(probability=1.0),
    dataclasses.replace(ALL, probability=0.0, gamma=0.0, mirror=())], ids=["off", "zero", "never"])
def test_nothing_changes_bit_for_bit(config, ndim):
  batch = make(ndim)
  batch.mask[:, :2] = 255
  assert_equal(run(batch, config), batch)


@pytest.mark.parametrize("ndim", [2, 3])
def test_only_image_and_mask_change(ndim):
  batch = make(ndim)
  out = run(batch, ALL)
  assert out.image.dtype == np.float32 and out.image.shape == batch.image.shape
  assert out.mask.dtype == np.uint8 and out.mask.shape == batch.mask.shape
  assert (out.image != batch.image).any() and (out.mask != batch.mask).any()
  assert_equal(out._replace(image=batch.image, mask=batch.mask), batch)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sample_depends_on_key_and_index_alone(ndim):
  """Neither on its place in the batch nor on its neighbours: devices may share it as they like."""
  batch = make(ndim)
  whole = run(batch, ALL)
  order = np.array([4, 0, 5, 2, 1, 3])
  assert_equal(run(rows(batch, order), ALL), rows(whole, order))
  for half in (slice(0, 3), slice(3, 6), slice(0, None, 2)):
    assert_equal(run(rows(batch, half), ALL), rows(whole, half))


def test_sharded_over_devices_it_is_the_same():
  batch = make()
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
  key, refused = jax.device_put((KEY, free(3)), NamedSharding(mesh, PartitionSpec()))
  out = run(placed, ALL, key, refused=refused)
  assert_equal(out, run(batch, ALL))


def test_index_and_key_count():
  batch = Batch(*(np.repeat(leaf[:1], 6, 0) for leaf in make()))._replace(
      index=np.array([0, 1, 2, 0, 7, 8], np.int32))
  first, second = run(batch, ALL), run(batch, ALL, jax.random.key(6))
  np.testing.assert_array_equal(first.image[0], first.image[3])
  for a, b in ((0, 1), (1, 2), (0, 2)):
    assert (first.image[a] != first.image[b]).any() and (first.mask[a] != first.mask[b]).any()
  assert all((a != b).any() for a, b in zip(first.image, second.image, strict=True))


@pytest.mark.slow
def test_compiled_or_not_it_is_the_same():
  batch = make()
  # Without compilation every operation takes its time.
  config = ranges(probability=0.8, rotate=30.0, scale=0.2, mirror=("W",))
  a, b = run(batch, config), run(batch, config, function=augment)
  np.testing.assert_allclose(a.image, b.image, atol=1e-4)
  # A voxel half way between two may be rounded to either.
  assert (a.mask != b.mask).mean() < 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_masks_hold_three_values(ndim, seed):
  batch = make(ndim, seed=seed)
  batch.mask[:, :, :3] = 255
  out = run(batch, ALL, jax.random.key(seed))
  assert set(np.unique(out.mask)) == {0, 1, 255} and np.isfinite(out.image).all()


# --- geometry -----------------------------------------------------------------------------------
def expected_rotation(angle, ndim):
  """The same angle about each axis in turn, by matrix exponentials of the planes' generators."""
  out = np.eye(ndim)
  for i, j in [(1, 2), (0, 2), (0, 1)] if ndim == 3 else [(0, 1)]:
    generator = np.zeros((ndim, ndim))
    generator[i, j], generator[j, i] = -angle, angle
    out = linalg.expm(generator) @ out
  return out


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotation_matrix(ndim):
  angles = np.full(3 if ndim == 3 else 1, 0.4, np.float32)
  matrix = np.asarray(rotation_matrix(jnp.asarray(angles), ndim))
  np.testing.assert_allclose(matrix, expected_rotation(0.4, ndim), atol=1e-6)
  np.testing.assert_allclose(matrix @ matrix.T, np.eye(ndim), atol=1e-6)
  assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-6)
  for axis in range(len(angles)):
    single = np.where(np.arange(len(angles)) == axis, angles, np.float32(0))
    single = np.asarray(rotation_matrix(jnp.asarray(single), ndim))
    if ndim == 3:
      np.testing.assert_allclose(single[axis], np.eye(3)[axis], atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("config", [
    ranges(rotate=25.0), ranges(zoom=0.4),
    ranges(rotate=17.0, zoom=0.4, shift=0.13)], ids=["rotate", "zoom", "all"])
def test_against_scipy_on_the_same_coordinates(config, ndim, at_the_limit):
  batch = make(ndim, size=1, channels=2)
  out = run(batch, config, function=compile_anew())
  shape, spacing = np.array(SHAPES[ndim]), np.diag(SPACINGS[ndim])
  turn = expected_rotation(math.radians(config.rotate), ndim)
  matrix = np.linalg.inv(spacing) @ turn @ spacing / (1 + config.zoom)
  centre = (shape - 1) / 2
  offset = centre + config.shift * shape - matrix @ centre
  for channel in range(2):
    expected = ndimage.affine_transform(
        batch.image[0, ..., channel].astype(np.float64), matrix, offset, order=1, mode="nearest")
    np.testing.assert_allclose(out.image[0, ..., channel], expected, atol=1e-4)
  expected = ndimage.affine_transform(batch.mask[0, ..., 0], matrix, offset, order=0,
                                      mode="grid-constant", cval=255)
  index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ matrix.T + offset
  tie = (abs(index - np.floor(index) - 0.5) < 1e-3).any(-1)
  assert tie.mean() < 0.1
  np.testing.assert_array_equal(out.mask[0, ..., 0][~tie], expected[~tie])


def test_a_quarter_turn(at_the_limit):
  image = np.arange(81, dtype=np.float32).reshape(1, 9, 9, 1)
  batch = Batch(image, np.zeros((1, 1), np.int32), (image % 2).astype(np.uint8),
                np.ones((1, 1), np.float32), np.zeros(1, np.int32), np.zeros(1, np.int32))
  out = run(batch, ranges(rotate=90.0), spacing=(1.0, 1.0), function=compile_anew())
  turns = [np.rot90(image[0], k) for k in (1, 3)]
  match = [np.allclose(out.image[0], turn, atol=1e-3) for turn in turns]
  assert sum(match) == 1
  np.testing.assert_array_equal(out.mask[0], np.rot90(batch.mask[0], 1 if match[0] else 3))


@pytest.mark.parametrize("ndim", [2, 3])
def test_voxels_moved_in_are_unlabelled_and_repeat_the_edge(ndim, at_the_limit):
  """A shift by a quarter: 4 voxels of 16 along every axis."""
  shape = (16,) * ndim
  image = np.random.default_rng(0).normal(size=(1, *shape, 1)).astype(np.float32)
  mask = (image > 0).astype(np.uint8)
  batch = Batch(image, np.zeros((1, 1), np.int32), mask, np.ones((1, 1), np.float32),
                np.zeros(1, np.int32), np.zeros(1, np.int32))
  out = run(batch, ranges(shift=0.25), spacing=(1.0,) * ndim, function=compile_anew())
  source = np.meshgrid(*[np.minimum(np.arange(16) + 4, 15)] * ndim, indexing="ij")
  inside = np.all(np.meshgrid(*[np.arange(16) < 12] * ndim, indexing="ij"), axis=0)
  np.testing.assert_array_equal(out.image[0, ..., 0], image[0, ..., 0][tuple(source)])
  np.testing.assert_array_equal(out.mask[0, ..., 0],
                                np.where(inside, mask[0, ..., 0][tuple(source)], 255))


@pytest.mark.parametrize("ndim", [2, 3])
def test_image_and_mask_move_alike(ndim):
  """The mask stays where the image is above its threshold, whatever was drawn."""
  batch = make(ndim, size=8)
  config = dataclasses.replace(MOVES, mirror=("D", "H", "W"))
  out = run(batch, config)
  assert (out.mask != batch.mask).mean() > 0.2
  for n in range(2):
    above = out.image[..., 0] - 0.3 * n
    # The nearest voxel may be half a voxel off along every axis.
    clear = (abs(above) > 0.6) & (out.mask[..., n] != 255)
    assert clear.mean() > 0.3
    assert ((out.mask[..., n] == 1) == (above > 0))[clear].mean() > 0.999
  # What is moved in is so for every class.
  assert ((out.mask == 255).all(-1) == (out.mask == 255).any(-1)).all()


def moments(mask, spacing):
  """Volume and principal standard deviations of a mask, in mm."""
  points = np.argwhere(mask == 1) * np.asarray(spacing)
  return len(points) * np.prod(spacing), np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 0.8), (1.0, 2.0)])
def test_a_sphere_stays_a_sphere(spacing):
  """In millimetres: rotating voxel indices would shear whatever has long voxels."""
  ndim, radius = len(spacing), 10.0
  shape = tuple(int(40 / s) for s in spacing)
  grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(
      shape, spacing, strict=True)], indexing="ij"), -1)
  mask = np.broadcast_to((grid ** 2).sum(-1) < radius ** 2, (4, *shape))[..., None].astype(np.uint8)
  batch = Batch(mask.astype(np.float32), np.zeros((4, 1), np.int32), mask,
                np.ones((4, 1), np.float32), np.arange(4, dtype=np.int32),
                np.zeros(4, np.int32))
  config = ranges(probability=1.0, rotate=45.0)
  volume = {2: math.pi * radius ** 2, 3: 4 / 3 * math.pi * radius ** 3}[ndim]
  sd = radius / math.sqrt(ndim + 2)  # of a uniform ball along any axis
  for turned in run(batch, config, spacing=spacing).mask[..., 0]:
    measured, principal = moments(turned, spacing)
    assert measured == pytest.approx(volume, rel=0.06)
    np.testing.assert_allclose(principal, sd, rtol=0.06)


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_is_drawn(ndim):
  """Rotation times zoom in the world, within the limits, each for its share of the samples."""
  config = ranges(probability=0.6, rotate=20.0, zoom=0.3, shift=0.1)
  shape, spacing, count = (5, 6, 7)[-ndim:], SPACINGS[ndim], 400

  def place(key):
    return jnp.stack(augment_lib._coordinates(key, shape, config, spacing), -1)
  coordinates = np.asarray(jax.jit(jax.vmap(place))(jax.random.split(KEY, count)), np.float64)
  first = coordinates[(slice(None),) + (0,) * ndim]
  steps = [coordinates[(slice(None), *np.eye(ndim, dtype=int)[a])] - first for a in range(ndim)]
  world = np.stack(steps, -1) * np.reshape(spacing, (-1, 1)) / np.array(spacing)
  zoom = np.linalg.det(world) ** (-1 / ndim)
  np.testing.assert_allclose(
      world.swapaxes(1, 2) @ world * zoom[:, None, None] ** 2,
      np.broadcast_to(np.eye(ndim), (count, ndim, ndim)), atol=1e-5)
  assert zoom.min() > 1 / 1.301 and zoom.max() < 1.301
  centre = (np.array(shape) - 1) / 2
  shift = (first + np.einsum("bij,j->bi", np.stack(steps, -1), centre) - centre) / shape
  assert abs(shift).max() < 0.1 + 1e-5 and abs(shift).max() > 0.09
  cosine = world[:, 0, 0] * zoom
  if ndim == 2:
    assert cosine.min() > math.cos(math.radians(20.01))
  rotated = (abs(world * zoom[:, None, None] - np.eye(ndim)) > 1e-5).any((1, 2))
  three_sd = 3 * math.sqrt(0.6 * 0.4 / count)
  for applied in (rotated, abs(zoom - 1) > 1e-6, (abs(shift) > 1e-6).any(1)):
    assert abs(applied.mean() - 0.6) < three_sd
  assert abs(np.log(zoom).mean()) < 3 * math.log(1.3) / math.sqrt(3 * count)


# --- mirror -------------------------------------------------------------------------------------
def flips(batch, out):
  """The set of axes along which each sample was flipped, exactly."""
  ndim = batch.image.ndim - 2
  found = []
  for i in range(len(batch.index)):
    for code in range(2 ** ndim):
      axes = tuple(a for a in range(ndim) if code >> a & 1)
      if (np.array_equal(np.flip(batch.image[i], axes), out.image[i])
          and np.array_equal(np.flip(batch.mask[i], axes), out.mask[i])):
        found.append(axes)
        break
    else:
      raise AssertionError(f"sample {i} is no mirror image")
  return found


@pytest.mark.parametrize("ndim", [2, 3])
def test_mirror_is_an_exact_flip(ndim):
  batch = make(ndim, size=40, classes=2)
  found = flips(batch, run(batch, ranges(probability=0.0, mirror=("D", "H", "W"))))
  assert len(set(found)) == 2 ** ndim
  for axis in range(ndim):
    assert abs(np.mean([axis in axes for axes in found]) - 0.5) < 4 * 0.5 / math.sqrt(40)


@pytest.mark.parametrize(("ndim", "mirror", "axes"), [
    (2, ("W",), {1}), (2, ("H",), {0}), (2, ("D",), set()),
    (3, ("W",), {2}), (3, ("D", "H"), {0, 1}), (3, (), set())])
def test_only_the_axes_named_are_mirrored(ndim, mirror, axes):
  batch = make(ndim, size=16)
  found = flips(batch, run(batch, ranges(mirror=mirror)))
  assert {axis for flipped in found for axis in flipped} == axes


@pytest.mark.parametrize("ndim", [2, 3])
def test_classes_with_sides_are_not_mirrored(ndim):
  """Class 1 has sides along the last axis, class 2 along the one before."""
  batch = make(ndim, size=64, classes=1)
  refused = np.zeros((4, ndim), bool)
  refused[1, -1] = refused[2, -2] = True
  found = flips(batch, run(batch, ranges(mirror=("D", "H", "W")), refused=refused))
  for class_id in range(4):
    axes = {a for i, f in zip(batch.class_id[:, 0], found, strict=True) if i == class_id for a in f}
    assert axes == {a for a in range(ndim) if not refused[class_id, a]}


def test_one_class_with_sides_is_enough_and_a_filler_has_no_say():
  batch = make(size=32, classes=2)
  batch = batch._replace(class_id=np.tile(np.array([[0, 1]], np.int32), (32, 1)),
                         beta=np.tile(np.array([[1, 1], [1, 0]], np.float32), (16, 1)))
  refused = np.zeros((4, 3), bool)
  refused[1, 2] = True
  found = flips(batch, run(batch, ranges(mirror=("W",)), refused=refused))
  assert not any(found[::2]) and any(found[1::2])


# --- intensities --------------------------------------------------------------------------------
def test_gamma_keeps_range_and_order():
  batch = make(2, size=12, channels=3)
  out = run(batch, ranges(probability=1.0, gamma=0.5))
  axes = (1, 2, 3)
  np.testing.assert_allclose(out.image.min(axes), batch.image.min(axes), atol=1e-5)
  np.testing.assert_allclose(out.image.max(axes), batch.image.max(axes), atol=1e-5)
  low, width = (f(batch.image, axis=axes, keepdims=True) for f in (np.min, np.ptp))
  before, after = (batch.image - low) / width, (out.image - low) / width
  steeper = []
  for a, b in zip(before, after, strict=True):
    middle = (a > 0.05) & (a < 0.95)
    exponent = np.log(b[middle]) / np.log(a[middle])
    assert np.ptp(exponent) < 1e-3  # one for the whole sample
    assert math.exp(-0.5) - 1e-3 < exponent.mean() < math.exp(0.5) + 1e-3
    steeper.append(exponent.mean() > 1)
  assert any(steeper) and not all(steeper)


def test_gamma_on_a_constant_image():
  batch = make(2, size=12, channels=3)
  batch = batch._replace(image=np.full_like(batch.image, -1.5))
  out = run(batch, ranges(probability=1.0, gamma=0.5))
  np.testing.assert_allclose(out.image, -1.5, atol=1e-5)


def test_gamma_that_is_not_drawn_changes_nothing():
  batch = make(2)
  out = run(batch, ranges(probability=0.0, gamma=0.5))
  np.testing.assert_allclose(out.image, batch.image, atol=1e-5)


def test_contrast_and_brightness():
  batch = make(3, size=40)
  out = run(batch, ranges(probability=0.7, scale=0.25, offset=0.4))
  lines = [np.polyfit(a.ravel().astype(np.float64), b.ravel(), 1, full=True)[:2]
           for a, b in zip(batch.image, out.image, strict=True)]
  assert max(float(residual[0]) for _, residual in lines) < 1e-6
  slope, offset = np.array([line for line, _ in lines]).T
  assert slope.min() > 1 / 1.2501 and slope.max() < 1.2501 and abs(offset).max() < 0.4001
  assert slope.min() < 0.9 and slope.max() > 1.1 and np.ptp(offset) > 0.4
  for unchanged in (abs(slope - 1) < 1e-5, abs(offset) < 1e-5):
    assert abs(unchanged.mean() - 0.3) < 4 * math.sqrt(0.21 / 40)


def test_noise():
  batch = make(3, size=24)
  out = run(batch, ranges(probability=1.0, noise=0.2))
  added = (out.image - batch.image).reshape(24, -1)
  sd = added.std(1)
  assert sd.max() < 0.21 and sd.max() > 0.12 and sd.min() < 0.08
  assert (abs(added.mean(1)) < 5 * sd / math.sqrt(added.shape[1])).all()
  assert abs(np.corrcoef(added)[np.triu_indices(24, 1)]).max() < 0.1


@pytest.mark.parametrize("ndim", [2, 3])
def test_blur_is_a_gaussian_with_repeated_edges(ndim, at_the_limit):
  batch = make(ndim, size=2, channels=2)
  out = run(batch, ranges(probability=1.0, blur=1.5), function=compile_anew())
  sd = math.sqrt(1.5 ** 2 + 1 / 12)  # ours is integrated over each voxel, scipy's is sampled
  expected = ndimage.gaussian_filter(batch.image, (0, *(sd,) * ndim, 0), mode="nearest",
                                     truncate=6)
  np.testing.assert_allclose(out.image, expected, atol=2e-3)
  flat = batch._replace(image=np.full_like(batch.image, 3.0))
  np.testing.assert_allclose(run(flat, ranges(probability=1.0, blur=1.5)).image, 3.0, rtol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_low_resolution_keeps_every_second_voxel_and_interpolates(ndim, at_the_limit):
  batch = make(ndim, size=2)
  out = run(batch, ranges(probability=1.0, low_resolution=1.0), function=compile_anew())
  kept = (slice(None), *(slice(None, None, 2),) * ndim)
  np.testing.assert_allclose(out.image[kept], batch.image[kept], atol=1e-6)
  rows = out.image[(slice(None), *(slice(None, None, 2),) * (ndim - 1))]
  between = (rows[..., 0:-2:2, :] + rows[..., 2::2, :]) / 2
  np.testing.assert_allclose(rows[..., 1:-1:2, :], between, atol=1e-6)


def test_intensities_leave_masks_alone():
  batch = make(2)
  config = dataclasses.replace(ALL, probability=1.0, rotate=0.0, zoom=0.0, shift=0.0, mirror=())
  out = run(batch, config)
  np.testing.assert_array_equal(out.mask, batch.mask)
  assert (out.image != batch.image).mean() > 0.9
