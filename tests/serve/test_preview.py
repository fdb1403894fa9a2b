"""The images for the page contain the volume, slice by slice."""

import io

import numpy as np
from PIL import Image
import pytest

from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.serve.preview import draw_view
from condseg_jax.serve.preview import MAX_SIDE

AFFINE = np.array([[-1.0, 0, 0, 9], [0, 0, -1.5, 7], [0, 2.0, 0, -5], [0, 0, 0, 1]])  # coronal


def pixels(png):
  return np.asarray(Image.open(io.BytesIO(png)))


def slices(sheet, layout):
  depth, height, width = layout["shape"]
  cut = [sheet[height * (i // layout["columns"]):, width * (i % layout["columns"]):]
         for i in range(depth)]
  return np.stack([piece[:height, :width] for piece in cut])


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (4, 60, 9), (40, 3, 2)])
def test_slices_come_back(shape):
  rng = np.random.default_rng(0)
  image = Volume(rng.integers(-160, 241, shape).astype(np.int16), AFFINE)
  label = Volume(rng.integers(0, 300, shape).astype(np.uint16), AFFINE)
  grey, painted, layout = draw_view(image, label, "ct")
  expected = (to_canonical(image).array + 160.0) * 255 / 400
  np.testing.assert_allclose(slices(pixels(grey), layout), expected, atol=1)
  red, green, blue = np.moveaxis(slices(pixels(painted), layout).astype(int), -1, 0)
  np.testing.assert_array_equal(red + 256 * green, to_canonical(label).array)
  assert layout["spacing"] == [2.0, 1.5, 1.0] and not blue.any()


def test_large_volumes_are_thinned_and_keep_their_size():
  shape = (3, 2, 5 * MAX_SIDE[3])
  image = Volume(np.broadcast_to(np.arange(shape[2], dtype=np.int16), shape), AFFINE)
  grey, _, layout = draw_view(image, Volume(np.zeros(shape, np.uint8), AFFINE), "mr")
  assert layout["shape"] == [2, MAX_SIDE[3], 3]
  assert layout["spacing"][1] * MAX_SIDE[3] == 1.5 * shape[2]
  shown = slices(pixels(grey), layout)
  assert shown.min() == 0 and shown.max() == 255  # both ends of the axis


@pytest.mark.parametrize("colors", [(), (3,)])
def test_pictures_are_shown_as_they_are(colors):
  rng = np.random.default_rng(0)
  image = Volume(rng.integers(0, 256, (5, 9, *colors), np.uint8), np.eye(3))
  label = Volume(rng.integers(0, 300, (5, 9)).astype(np.uint16), np.eye(3))
  shown, painted, layout = draw_view(image, label, "rgb")
  np.testing.assert_array_equal(pixels(shown), image.array)
  assert layout == {"axes": 2, "shape": [1, 5, 9], "columns": 1, "spacing": [1.0, 1.0, 1.0]}
  np.testing.assert_array_equal(pixels(painted)[..., 0] + 256 * pixels(painted)[..., 1].astype(int),
                                label.array)
