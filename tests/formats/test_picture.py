"""PNG pictures: indices stay indices, depth stays depth, and damage is named."""

import os
from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from condseg_jax.errors import InputError
from condseg_jax.formats.files import read_label
from condseg_jax.formats.picture import picture_shape
from condseg_jax.formats.picture import read_picture
from condseg_jax.formats.picture import write_png

DATA = os.environ.get("CONDSEG_TEST_DATA")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
def test_eight_bit_pictures_come_back(tmp_path, shape):
  array = RNG.integers(0, 256, shape).astype(np.uint8)
  write_png(tmp_path / "a.png", array)
  volume = read_picture(tmp_path / "a.png")
  assert volume.array.dtype == np.uint8 and volume.array.flags.writeable
  np.testing.assert_array_equal(volume.array, array)
  np.testing.assert_array_equal(volume.affine, np.eye(3))
  assert volume.ndim == 2 and volume.geometry.shape == shape[:2]
  assert volume.spacing == (1.0, 1.0)


def test_sixteen_bit_grey_comes_back(tmp_path):
  array = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
  write_png(tmp_path / "a.png", array)
  volume = read_picture(tmp_path / "a.png")
  assert volume.array.dtype == np.uint16
  np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize(("array", "dtype"), [
  (np.eye(4, dtype=bool), np.uint8),
  (np.full((4, 4), 255, np.int64), np.uint8),
  (np.full((4, 4), 256, np.int64), np.uint16),
  (np.full((4, 4), 3, np.uint16), np.uint16),
  (np.arange(48).reshape(4, 4, 3)[::-1, ::-1], np.uint8),
])
def test_other_integers_take_the_depth_they_need(tmp_path, array, dtype):
  write_png(tmp_path / "a.png", array)
  volume = read_picture(tmp_path / "a.png")
  assert volume.array.dtype == dtype
  np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize("array", [
  np.zeros((4, 4), np.float32), np.full((4, 4), -1), np.full((4, 4), 65536),
  np.full((4, 4, 3), 256), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 4), np.uint8),
  np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8),
])
def test_arrays_that_are_no_picture_are_refused(tmp_path, array):
  with pytest.raises(InputError):
    write_png(tmp_path / "a.png", array)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("colors", [2, 4, 12, 200])
def test_palette_pictures_give_indices(tmp_path, colors):
  index = (np.arange(200) % colors).astype(np.uint8).reshape(10, 20)
  picture = Image.frombytes("P", (20, 10), index.tobytes())
  picture.putpalette([value for i in range(colors) for value in (255 - i, i, 77)])
  picture.save(tmp_path / "a.png")  # Pillow stores 1, 2, 4 or 8 bits per pixel here
  np.testing.assert_array_equal(read_picture(tmp_path / "a.png").array, index)


def test_a_palette_with_transparency_still_gives_indices(tmp_path):
  index = np.arange(12, dtype=np.uint8).reshape(3, 4)
  picture = Image.frombytes("P", (4, 3), index.tobytes())
  picture.putpalette(list(range(36)))
  picture.save(tmp_path / "a.png", transparency=0)
  np.testing.assert_array_equal(read_picture(tmp_path / "a.png").array, index)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_and_colour_kept(tmp_path, channels):
  array = RNG.integers(0, 256, (5, 7, channels)).astype(np.uint8)
  Image.fromarray(array).save(tmp_path / "a.png")
  expected = array[..., 0] if channels == 2 else array[..., :3]
  np.testing.assert_array_equal(read_picture(tmp_path / "a.png").array, expected)


def test_one_bit_pictures_are_zero_and_one(tmp_path):
  array = RNG.integers(0, 2, (5, 7)).astype(bool)
  Image.fromarray(array).save(tmp_path / "a.png")
  volume = read_picture(tmp_path / "a.png")
  assert volume.array.dtype == np.uint8
  np.testing.assert_array_equal(volume.array, array)


def test_sixteen_bit_colour_is_refused_instead_of_halved(tmp_path):
  write_png(tmp_path / "a.png", np.zeros((4, 4), np.uint16))
  data = bytearray((tmp_path / "a.png").read_bytes())
  for color in (2, 4, 6):
    data[25] = color
    (tmp_path / "b.png").write_bytes(data)
    with pytest.raises(InputError, match="16 bits"):
      read_picture(tmp_path / "b.png")


def test_animations_are_refused(tmp_path):
  frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 200)]
  frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
  with pytest.raises(InputError, match="2 frames"):
    read_picture(tmp_path / "a.png")


def test_files_that_are_no_png_say_why(tmp_path):
  write_png(tmp_path / "whole.png", RNG.integers(0, 256, (40, 40)).astype(np.uint8))
  whole = (tmp_path / "whole.png").read_bytes()
  cases = {"empty": (b"", "empty"), "text": (b"hello" * 30, "not a PNG"),
           "head": (whole[:20], "truncated"), "cut": (whole[: len(whole) // 2], "damaged"),
           "noise": (whole[:60] + bytes(200) + whole[260:], "damaged"),
           "headless": (whole[:16] + bytes(4) + whole[20:], "damaged")}
  for name, (content, reason) in cases.items():
    path = tmp_path / f"{name}.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
      read_picture(path)
    assert caught.value.subject == str(path) and caught.value.cure
  with pytest.raises(InputError, match="does not exist"):
    read_picture(tmp_path / "missing.png")
  with pytest.raises(InputError, match="folder"):
    read_picture(tmp_path)


def test_a_picture_too_large_to_decode_is_an_input_error(tmp_path, monkeypatch):
  write_png(tmp_path / "a.png", np.zeros((40, 40), np.uint8))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  with pytest.raises(InputError, match="too large"):
    read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
  path = tmp_path / "a.png"
  write_png(path, np.zeros((4, 4), np.uint8))
  before = path.read_bytes()

  def half(self, name, **options):
    Path(name).write_bytes(b"half")
    raise failure

  monkeypatch.setattr(Image.Image, "save", half)
  expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
  with pytest.raises(expected):
    write_png(path, np.ones((4, 4), np.uint8))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_unusable_target_is_an_input_error(tmp_path):
  (tmp_path / "file").write_bytes(b"")
  for path in (tmp_path / "no/a.png", tmp_path / "file/a.png"):
    with pytest.raises(InputError, match="cannot be written"):
      write_png(path, np.zeros((4, 4), np.uint8))
  with pytest.raises(InputError, match="not named"):
    write_png(tmp_path / "a.jpg", np.zeros((4, 4), np.uint8))


@pytest.mark.skipif(not DATA, reason="CONDSEG_TEST_DATA is not set")
def test_street_scenes_and_their_labels():
  root = Path(DATA) / "camvid"
  for path in sorted((root / "train").glob("*.png"))[:3]:
    image = read_picture(path)
    label = read_picture(root / "trainannot" / path.name)
    assert image.array.shape == (180, 240, 3) and image.array.dtype == np.uint8
    assert label.array.shape == (180, 240) and label.array.dtype == np.uint8
    assert label.array.max() <= 11


# --- TIFF and JPEG ------------------------------------------------------------------------------
@pytest.mark.parametrize(("array", "dtype"), [
  (RNG.integers(0, 256, (5, 7)).astype(np.uint8), np.uint8),
  (RNG.integers(0, 65536, (5, 7)).astype(np.uint16), np.uint16),
  (RNG.normal(size=(5, 7)).astype(np.float32), np.float32),
  (RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8), np.uint8),
])
@pytest.mark.parametrize("name", ["a.tif", "A.TIFF"])
def test_tiff_comes_back(tmp_path, array, dtype, name):
  Image.fromarray(array).save(tmp_path / name, format="TIFF")
  volume = read_picture(tmp_path / name)
  assert volume.array.dtype == dtype
  np.testing.assert_array_equal(volume.array, array)
  assert picture_shape(tmp_path / name) == (5, 7)


def test_jpeg_is_an_image_and_no_label(tmp_path):
  array = np.full((16, 24, 3), (200, 100, 50), np.uint8)
  Image.fromarray(array).save(tmp_path / "a.jpg", quality=95)
  assert np.abs(read_picture(tmp_path / "a.jpg").array - array.astype(int)).max() < 8
  with pytest.raises(InputError, match="does not preserve label values"):
    read_label(tmp_path / "a.jpg")


def test_tiff_of_several_pages_or_other_colours_is_refused(tmp_path):
  pages = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(3)]
  pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
  with pytest.raises(InputError, match="3 frames"):
    read_picture(tmp_path / "pages.tif")
  Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.tif")
  with pytest.raises(InputError, match="CMYK"):
    read_picture(tmp_path / "cmyk.tif")


@pytest.mark.parametrize("options", [{}, {"tiffinfo": {278: 2}}, {"tiffinfo": {278: 100}}])
@pytest.mark.parametrize("shape", [(20, 32), (20, 32, 3)])
@pytest.mark.parametrize(("tag", "value"), [(256, 30), (257, 18), (256, 33), (257, 21)])
def test_tiff_of_another_size_than_declared(tmp_path, options, shape, tag, value):
  """Pillow gives rows that are shifted against each other, or a part of the image."""
  path = tmp_path / "a.tif"
  Image.fromarray(RNG.integers(0, 256, shape).astype(np.uint8)).save(path, **options)
  assert read_picture(path).array.shape == shape
  data = bytearray(path.read_bytes())
  count, = struct.unpack_from("<H", data, struct.unpack_from("<I", data, 4)[0])
  entries = [struct.unpack_from("<I", data, 4)[0] + 2 + 12 * i for i in range(count)]
  place, = (entry for entry in entries if struct.unpack_from("<H", data, entry)[0] == tag)
  assert struct.unpack_from("<H", data, place + 2)[0] in (3, 4)
  struct.pack_into("<I", data, place + 8, value)
  path.write_bytes(data)
  with pytest.raises(InputError):
    read_picture(path)


def test_tiff_with_tiles_and_one_bit(tmp_path):
  """Pillow writes neither tiles nor planes: a picture of 20 x 32 in tiles of 16 x 16, by hand."""
  index = RNG.integers(0, 256, (32, 32)).astype(np.uint8)
  tiles = [index[i:i + 16, j:j + 16].tobytes() for i in (0, 16) for j in (0, 16)]
  tags = {256: [32], 257: [20], 258: [8], 259: [1], 262: [1], 277: [1], 322: [16], 323: [16],
          324: [8 + 256 * i for i in range(4)], 325: [256] * 4}
  start = 8 + 1024
  values = start + 2 + 12 * len(tags) + 4
  entries, extra = b"", b""
  for tag, numbers in tags.items():
    packed = struct.pack(f"<{len(numbers)}I", *numbers)
    place = packed if len(numbers) == 1 else struct.pack("<I", values + len(extra))
    extra += b"" if len(numbers) == 1 else packed
    entries += struct.pack("<HHI", tag, 4, len(numbers)) + place
  (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", start) + b"".join(tiles)
                                   + struct.pack("<H", len(tags)) + entries + bytes(4) + extra)
  np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").array, index[:20])
  Image.fromarray(RNG.integers(0, 2, (5, 13)).astype(bool)).save(tmp_path / "b.tif")
  assert read_picture(tmp_path / "b.tif").array.shape == (5, 13)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "color", "row"), [(8, 0, 8), (1, 0, 2), (8, 2, 22), (16, 0, 15)])
def test_png_of_another_size_than_declared(tmp_path, interlaced, depth, color, row):
  """With every checksum right; Pillow leaves the pixels that are missing at 0."""
  def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(
        ">I", zlib.crc32(name + content))

  def png(height, size):
    head = struct.pack(">2I5B", 7, height, depth, color, 0, 0, interlaced)
    data = zlib.compress(bytes(size))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data[:5])
        + chunk(b"IDAT", b"") + chunk(b"IDAT", data[5:]) + chunk(b"IEND", b""))
    return tmp_path / "a.png"

  sizes = {5: 5 * row, 6: 6 * row}
  if interlaced:  # columns and rows of the seven passes of 7 x 5 and of 7 x 6 pixels
    passes = {5: [(1, 1), (1, 1), (2, 1), (2, 2), (4, 1), (3, 3), (7, 2)],
              6: [(1, 1), (1, 1), (2, 1), (2, 2), (4, 1), (3, 3), (7, 3)]}
    bits = depth * (3 if color == 2 else 1)
    sizes = {height: sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in passes[height])
             for height in passes}
  for height, size in sizes.items():
    assert read_picture(png(height, size)).array.shape[:2] == (height, 7)
  for height, size, kind in ((6, sizes[5], "truncated"), (5, sizes[6], "size")):
    with pytest.raises(InputError, match="bytes of pixels") as caught:
      read_picture(png(height, size))
    assert caught.value.kind == kind


def test_tiff_with_nan_is_refused(tmp_path):
  Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tif")
  with pytest.raises(InputError, match="NaN"):
    read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
@pytest.mark.parametrize("content", [b"", b"text", None])
def test_damaged_tiff_and_jpeg(tmp_path, name, content):
  Image.fromarray(RNG.integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / name)
  data = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(data[:len(data) // 2] if content is None else content)
  with pytest.raises(InputError):
    read_picture(tmp_path / name)
