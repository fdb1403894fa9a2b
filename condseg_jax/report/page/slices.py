"""Renders slices as SVG: the pixels of the image with outlines that stay sharp at any size."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
from html import escape
import io

import numpy as np
from PIL import Image

from condseg_jax.classes import UNLABELLED
from condseg_jax.report import display

EXTRA, MISSED, MIXED = 1, 2, 3  # values of an error map
ERRORS = {EXTRA: "false positive", MISSED: "false negative", MIXED: "wrong structure"}
ERROR_STYLES = {EXTRA: "extra", MISSED: "missed", MIXED: "mixed"}
_WIDTH_PX, _HEIGHT_PX = 1140, 440  # largest size of the slices of a case, side by side
_MAX_PIXELS = 1024  # of an embedded image along each axis, beyond any displayed size


def draw_slices(image: np.ndarray, layers: Mapping[str, np.ndarray], names: Sequence[str],
                spacing: Sequence[float], window: tuple[float, float],
                indices: Sequence[int] = ()) -> tuple[str, ...]:
  """Draws a volume as three orthogonal slices, a 2-D image without and with its labels.

  Args:
    image: (D, H, W) in canonical order, (H, W) or (H, W, 3); of other channels the first is shown.
    layers: "prediction", and with a truth also "truth" and "errors" → map of the spatial shape;
      label maps hold class id + 1, and 255 for unlabelled; error maps EXTRA, MISSED, MIXED.
    names: of the classes, by id.
    spacing: mm per spatial axis.
    window: intensities shown as black and white.
    indices: of a volume, the voxel at which the slices intersect.

  Returns:
    One `figure` element per slice, all of one size and at the same scale in mm.
  """
  labels = layers["prediction"]
  colour = labels.ndim == 2 and image.shape[2:] == (3,)
  if image.ndim > labels.ndim and not colour:
    image = image[..., 0]
  panels = []
  if labels.ndim == 3:
    for view in display.VIEWS:
      index, count = indices[view.axis], labels.shape[view.axis]
      order = slice(None, None, 1 if view.top_down else -1)
      cut = {name: np.take(array, index, view.axis)[order] for name, array in layers.items()}
      plane = tuple(s for axis, s in enumerate(spacing) if axis != view.axis)
      panels.append((np.take(image, index, view.axis)[order], cut, plane, view.letters,
                     f"{view.name} {index + 1} / {count}"))
  else:
    plane = tuple(spacing)
    panels = [(image, {}, plane, (), "image"), (image, layers, plane, (), "with labels")]
  extents = [np.multiply(array.shape[:2], plane) for array, _, plane, _, _ in panels]
  box = np.max(extents, axis=0)
  scale = min(_WIDTH_PX / (len(panels) * box[1]), _HEIGHT_PX / box[0])
  return tuple(_figure(display.displayable(array, window), cut, names, plane, letters, caption, box,
                       scale) for array, cut, plane, letters, caption in panels)


def _figure(image, layers, names, spacing, letters, caption, box, scale) -> str:
  """Renders one slice, centred in a box (height, width); lengths in the SVG are in mm."""
  (h, w), (dy, dx) = image.shape[:2], spacing
  height, width = box
  groups, predicted = [], []
  for layer, labels in layers.items():
    paths = []
    for value in np.unique(labels[labels > 0]).tolist():
      style, name = _meaning(layer, value, names)
      if layer == "prediction":
        predicted.append(name)
      paths.append(f'<path class="{style}" d="{outline(labels == value)}">'
                   f"<title>{escape(name)}</title></path>")
    # Outlines are in half voxels, so that all their coordinates are integers.
    groups.append(f'<g class="{layer}" transform="scale({dx / 2:.6g} {dy / 2:.6g})">'
                  f'{"".join(paths)}</g>')
  label = f"{caption}: {', '.join(predicted) or 'no structure'}" if layers else caption
  style = "slice" if layers else "slice bare"
  return (
      f'<figure class="{style}"><button type="button" class="enlarge" title="enlarge or shrink">'
      f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.6g} {height:.6g}"'
      f' width="{width * scale:.0f}" height="{height * scale:.0f}">'
      f'<g transform="translate({(width - w * dx) / 2:.6g} {(height - h * dy) / 2:.6g})">'
      f'<image width="{w * dx:.6g}" height="{h * dy:.6g}" preserveAspectRatio="none"'
      f' href="{_pixels(image)}"/>{"".join(groups)}</g>'
      f'<g class="letters">{_letters(letters, height, width, 12 / scale)}</g></svg></button>'
      f"<figcaption>{escape(caption)}</figcaption></figure>")


def _letters(letters: Sequence[str], height: float, width: float, size: float) -> str:
  """Renders the letters at the sides of a box; pairs that would overlap are left out."""
  places = ((0.02, 0.5, "start", "middle", width), (0.98, 0.5, "end", "middle", width),
            (0.5, 0.02, "middle", "hanging", height), (0.5, 0.98, "middle", "auto", height))
  return "".join(
      f'<text x="{x * width:.4g}" y="{y * height:.4g}" font-size="{size:.4g}"'
      f' text-anchor="{anchor}" dominant-baseline="{baseline}">{letter}</text>'
      for letter, (x, y, anchor, baseline, side) in zip(letters, places, strict=False)
      if side > 4 * size)


def _meaning(layer: str, value: int, names: Sequence[str]) -> tuple[str, str]:
  """Returns the CSS class and the name of a value in one of the maps."""
  if layer == "errors":
    return ERROR_STYLES[value], ERRORS[value]
  if layer == "truth" and value == UNLABELLED:
    return "unlabelled", "unlabelled"
  return f"k{value - 1}", names[value - 1]


def outline(mask: np.ndarray) -> str:
  """Traces the outlines of a 2-D mask as an SVG path.

  Coordinates are in half pixels: pixel (y, x) ends at 2y + 2, 2x + 2. Outlines are contour lines
  at 0.5: they run halfway between pixel centres and cut corners.
  """
  import contourpy  # comes with matplotlib

  # A margin of background closes the lines at the border of the image.
  lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
  return "".join(_path(np.rint(2 * line).astype(int) - 1) for line in lines)


def _path(points: np.ndarray) -> str:
  """Formats a closed line through integer points (x, y), without collinear points."""
  steps = np.diff(points, axis=0)
  before = np.roll(steps, 1, axis=0)
  corner = steps[:, 0] * before[:, 1] != steps[:, 1] * before[:, 0]
  points = points[:-1][corner]
  moves = np.diff(points, axis=0)
  return f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{x} {y}" for x, y in moves.tolist()) + "z"


def _pixels(image: np.ndarray) -> str:
  """Encodes an RGB image between 0 and 1, (H, W, 3), as a data URL."""
  grey = bool((image[..., :1] == image).all())
  values = np.rint(255 * (image[..., 0] if grey else image)).astype(np.uint8)
  picture = Image.fromarray(values)
  if max(picture.size) > _MAX_PIXELS:
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
  stream = io.BytesIO()
  # Lossless for scans; photographs would be several times larger that way.
  encoding = "png" if grey else "jpeg"
  picture.save(stream, encoding, optimize=True, **({} if grey else {"quality": 88}))
  return f"data:image/{encoding};base64,{base64.b64encode(stream.getvalue()).decode()}"
