"""Slices as drawings (SVG): the pixels of the image, and outlines that stay sharp at any size."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
from html import escape
import io

import numpy as np
from PIL import Image

from condseg_jax.classes import UNLABELLED
from condseg_jax.report import figures

EXTRA, MISSED, MIXED = 1, 2, 3  # values of an error map
ERRORS = {EXTRA: "predicted, not true", MISSED: "true, not predicted",
          MIXED: "taken for another structure"}
ERROR_STYLES = {EXTRA: "extra", MISSED: "missed", MIXED: "mixed"}
_WIDTH_PX, _HEIGHT_PX = 1140, 440  # of all slices of a case side by side, before any enlarging
_MAX_PIXELS = 1024  # along each axis of a picture: more than it is shown with


def draw_slices(image: np.ndarray, layers: Mapping[str, np.ndarray], names: Sequence[str],
                spacing: Sequence[float], window: tuple[float, float],
                indices: Sequence[int] = ()) -> tuple[str, ...]:
  """Draws a case: a volume in three orthogonal slices, a picture without and with its labels.

  Args:
    image: (D, H, W) in canonical order, (H, W) or (H, W, 3); of other channels the first is shown.
    layers: "prediction", and "truth" and "errors" where there is a truth: maps of the spatial
      shape; label maps hold id + 1 and 255 for unlabelled, error maps EXTRA, MISSED, MIXED.
    names: of the classes, by id.
    spacing: mm per spatial axis.
    window: intensities drawn black and white.
    indices: of a volume, the voxel that the slices go through.

  Returns:
    One `figure` element per slice, all to the same scale.
  """
  labels = layers["prediction"]
  colour = labels.ndim == 2 and image.shape[2:] == (3,)
  if image.ndim > labels.ndim and not colour:
    image = image[..., 0]
  panels = []
  if labels.ndim == 3:
    for view in figures.VIEWS:
      index, count = indices[view.axis], labels.shape[view.axis]
      order = slice(None, None, 1 if view.top_down else -1)
      cut = {name: np.take(array, index, view.axis)[order] for name, array in layers.items()}
      plane = tuple(s for axis, s in enumerate(spacing) if axis != view.axis)
      panels.append((np.take(image, index, view.axis)[order], cut, plane, view.letters,
                     f"{view.name} {index + 1} / {count}"))
  else:
    plane = tuple(spacing)
    panels = [(image, {}, plane, (), "image"), (image, layers, plane, (), "with labels")]
  extents = [np.multiply(shown.shape[:2], plane) for shown, _, plane, _, _ in panels]
  scale = min(_WIDTH_PX / sum(w for _, w in extents), _HEIGHT_PX / max(h for h, _ in extents))
  return tuple(_figure(figures.displayable(shown, window), cut, names, plane, letters, caption,
                       scale) for shown, cut, plane, letters, caption in panels)


def _figure(image, layers, names, spacing, letters, caption, scale) -> str:
  """One slice as a `figure` element; lengths within it are millimetres."""
  (h, w), (dy, dx) = image.shape[:2], spacing
  height, width = h * dy, w * dx
  groups, seen = [], []
  for layer, labels in layers.items():
    paths = []
    for value in np.unique(labels[labels > 0]).tolist():
      style, name = _meaning(layer, value, names)
      seen.append(name) if layer == "prediction" else None
      paths.append(f'<path class="{style}" d="{outline(labels == value)}">'
                   f"<title>{escape(name)}</title></path>")
    # Outlines are given in half voxels, which makes every number in them a whole one.
    groups.append(f'<g class="{layer}" transform="scale({dx / 2:.6g} {dy / 2:.6g})">'
                  f'{"".join(paths)}</g>')
  places = ((0.02, 0.5, "start", "middle"), (0.98, 0.5, "end", "middle"),
            (0.5, 0.02, "middle", "hanging"), (0.5, 0.98, "middle", "auto"))
  size = 12 / scale
  marks = "".join(
      f'<text x="{x * width:.4g}" y="{y * height:.4g}" font-size="{size:.4g}"'
      f' text-anchor="{anchor}" dominant-baseline="{baseline}">{letter}</text>'
      for letter, (x, y, anchor, baseline) in zip(letters, places, strict=False)
      # In a thin slice the letters of top and bottom would lie on one another.
      if anchor != "middle" or height > 4 * size)
  told = f"{caption}: {', '.join(seen) or 'no structure'}" if layers else caption
  kind = "slice" if layers else "slice bare"
  return (
      f'<figure class="{kind}"><button type="button" class="enlarge" title="larger, smaller">'
      f'<svg role="img" aria-label="{escape(told)}" viewBox="0 0 {width:.6g} {height:.6g}"'
      f' width="{width * scale:.0f}" height="{height * scale:.0f}">'
      f'<image width="{width:.6g}" height="{height:.6g}" preserveAspectRatio="none"'
      f' href="{_pixels(image)}"/>{"".join(groups)}<g class="letters">{marks}</g></svg></button>'
      f"<figcaption>{escape(caption)}</figcaption></figure>")


def _meaning(layer: str, value: int, names: Sequence[str]) -> tuple[str, str]:
  """The style and the name of a value in one of the maps."""
  if layer == "errors":
    return ERROR_STYLES[value], ERRORS[value]
  if layer == "truth" and value == UNLABELLED:
    return "unlabelled", "unlabelled"
  return f"k{value - 1}", names[value - 1]


def outline(mask: np.ndarray) -> str:
  """The outlines of a 2-D mask as an SVG path, in half pixels: pixel (y, x) ends at 2y+2, 2x+2.

  They run halfway between neighbouring pixel centres of which one is inside, and so cut corners
  like contour lines at one half do.
  """
  import contourpy  # comes with matplotlib

  # One pixel of background around the mask closes the lines at the border of the image.
  lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
  return "".join(_path(np.rint(2 * line).astype(int) - 1) for line in lines)


def _path(points: np.ndarray) -> str:
  """A closed line through integer points (x, y) without those that lie on straight stretches."""
  steps = np.diff(points, axis=0)
  before = np.roll(steps, 1, axis=0)
  corner = steps[:, 0] * before[:, 1] != steps[:, 1] * before[:, 0]
  points = points[:-1][corner]
  moves = np.diff(points, axis=0)
  return f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{x} {y}" for x, y in moves.tolist()) + "z"


def _pixels(image: np.ndarray) -> str:
  """Values between 0 and 1, (H, W, 3), as the address of an embedded picture."""
  grey = bool((image[..., :1] == image).all())
  values = np.rint(255 * (image[..., 0] if grey else image)).astype(np.uint8)
  picture = Image.fromarray(values)
  if max(picture.size) > _MAX_PIXELS:
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
  stream = io.BytesIO()
  # Scans keep every grey value; photographs would be several times larger that way.
  kind = "png" if grey else "jpeg"
  picture.save(stream, kind, optimize=True, **({} if grey else {"quality": 88}))
  return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
