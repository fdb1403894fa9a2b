"""Synthetic street scenes for the 2-D configurations: frames of a drive down a random street.

The street is generated block by block from (seed, split, sequence, block), so a frame does not
depend on the number of frames. Colours of the classes overlap, light and season vary between
sequences, and consecutive frames are near duplicates, as in the CamVid videos, whose layout is
used.
"""

import json
import os
from pathlib import Path
import zlib

import numpy as np
from PIL import Image

from condseg_jax.datasets.synthetic.random_field import smooth_field
from condseg_jax.datasets.synthetic.street_scene import AHEAD
from condseg_jax.datasets.synthetic.street_scene import BLOCK_M
from condseg_jax.datasets.synthetic.street_scene import block_of_street
from condseg_jax.datasets.synthetic.street_scene import Camera
from condseg_jax.datasets.synthetic.street_scene import car
from condseg_jax.datasets.synthetic.street_scene import CLASSES
from condseg_jax.datasets.synthetic.street_scene import HAZE_M
from condseg_jax.datasets.synthetic.street_scene import ID
from condseg_jax.datasets.synthetic.street_scene import SCALE
from condseg_jax.datasets.synthetic.street_scene import VOID
from condseg_jax.formats.picture import write_png
from condseg_jax.system.atomic import write_text


def _ground(cam: Camera, rng: np.random.Generator, road: float, wall: float,
            sunny: bool) -> None:
  """Draws road with markings, pavements, the area behind the walls, and the sky with clouds."""
  rows = np.arange(cam.height)[:, None] + 0.5
  depth = cam.focal * cam.y / np.maximum(rows - cam.v0, 0.5)
  x = cam.x + (np.arange(cam.width) + 0.5 - cam.u0) / cam.focal * depth
  z = depth + cam.z
  grey = rng.uniform(70, 120) * np.array((1, 1, rng.uniform(0.96, 1.05)))
  slab = rng.uniform(95, 150) * np.array((1, rng.uniform(0.95, 1), rng.uniform(0.88, 1)))
  grain = rng.normal(0, 0.06, (256, 256)), rng.normal(0, 0.08, (64, 64))
  off = np.abs(x)
  zones = [(off < wall + 40, np.array((70, 84, 48)), "tree"), (off < wall, slab, "pavement"),
           (off < road + 0.2, slab * 1.15, "pavement"), (off < road, grey, "road"),
           ((off < 0.09) & (z % 6 < 3), grey + 90, "road"),
           (np.abs(off - road + 0.5) < 0.06, grey + 90, "road")]
  color, label = np.zeros((cam.height, cam.width, 3)), np.full(off.shape, ID["void"])
  for zone, tone, name in zones:
    color[zone], label[zone] = tone, ID[name]
  for tile, per_m in zip(grain, (7, 1.3), strict=True):
    n = len(tile)
    spot = tile[(z * per_m).astype(int) % n, (x * per_m).astype(int) % n]
    color *= 1 + (spot * np.clip(18 / depth, 0, 1))[..., None]
  shadow = x > wall - 5 - 3 * np.sin(z / 9) - 2 * np.sin(z / 3.7)
  color *= np.where(shadow & sunny, 0.62, 1)[..., None]
  clear = np.exp(-depth / HAZE_M)[..., None]
  color = color * np.array(cam.light) * clear + np.array(cam.haze) * (1 - clear)
  clouds = smooth_field(rng, off.shape, (cam.height / 10, cam.width / 5))
  above = np.array(cam.haze) * (1.06 - 0.2 * (1 - rows / cam.v0) + 0.05 * clouds)[..., None]
  is_sky = np.broadcast_to(rows < cam.v0, off.shape)
  color[is_sky], label[is_sky] = above[is_sky], ID["sky"]
  cam.image.paste(Image.fromarray(np.clip(color, 0, 255).astype(np.uint8)))
  cam.label.paste(Image.fromarray(label.astype(np.uint8)))


def draw_frame(
  split: str, sequence: int, frame: int, *, shape_HW: tuple[int, int] = (96, 128), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one frame of one drive; the result depends on the arguments only.

  Args:
    split: every combination is another street in another light.
    sequence: see `split`.
    seed: see `split`.
    frame: position along the street, in steps of 0.5 to 0.9 m.
    shape_HW: rows and columns.

  Returns:
    uint8 image_HWC (RGB) and uint8 label_HW: indices into `CLASSES`, `VOID` for ambiguous pixels.
  """
  # Keys of other random streams append numbers from 1: numpy pads short keys with zeros.
  key = [seed, zlib.crc32(split.encode()), sequence]
  rng = np.random.default_rng(key)
  road, pavement, season = rng.uniform(4.2, 5.6), rng.uniform(2.4, 3.8), rng.uniform(0, 1)
  haze = np.array(((196, 200, 204), (128, 164, 212), (150, 150, 166))[rng.integers(3)])
  haze = haze * rng.uniform(0.7, 1.1)
  light = rng.uniform(0.55, 1.15) * (1 + rng.normal(0, 0.04, 3))
  sunny, bonnet, convoy = rng.random() < 0.6, rng.random() < 0.5, rng.random() < 0.6
  speed, sway, gap = rng.uniform(0.5, 0.9), rng.uniform(0.01, 0.03), rng.uniform(9, 18)
  z = speed * frame
  cam = Camera(shape_HW, 1.7 + 0.15 * np.sin(frame / 9), z, sway * np.sin(frame / 11), light, haze)
  _ground(cam, rng, road, road + pavement, sunny)
  cam.front(0, 0, z + BLOCK_M * (AHEAD - 0.5), 40, 7, haze * 0.7, "void")
  things = []
  for block in range(int(z // BLOCK_M), int(z // BLOCK_M) + AHEAD):
    rng = np.random.default_rng([*key, 1, block])
    layout = block_of_street(rng, road, road + pavement, block * BLOCK_M, frame * 0.1, season)
    things += [(*thing, [*key, 2, block, i]) for i, thing in enumerate(layout)]
  if convoy:
    ahead = z + gap + 2 * np.sin(frame / 13)
    things.append((3, ahead, car, (1.7, ahead, False), [*key, 3]))
  for _, far_end, paint, arguments, words in sorted(things, key=lambda t: (t[0], -t[1])):
    if not cam.behind(far_end):
      paint(cam, np.random.default_rng(words), *arguments)
  if bonnet:
    box = (0.15 * cam.width, 0.95 * cam.height, 0.85 * cam.width, 1.2 * cam.height)
    cam.brush.ellipse(box, fill=cam.tone((40, 44, 60), 0))
    cam.pen.ellipse(box, fill=ID["void"])
  label_HW = np.array(cam.label)[1::SCALE, 1::SCALE]
  return _exposed(cam, np.random.default_rng([*key, 4, frame])), label_HW


def _exposed(cam: Camera, rng: np.random.Generator) -> np.ndarray:
  """Simulates the sensor: averaging, vignette, exposure, noise."""
  height, width = cam.height // SCALE, cam.width // SCALE
  image = np.asarray(cam.image, np.float32).reshape(height, SCALE, width, SCALE, 3).mean((1, 3))
  v, u = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
  image *= (1 - 0.12 * (u**2 + v**2) / 2)[..., None] * rng.normal(1, 0.02)
  return np.clip(np.rint(image + rng.normal(0, 3, image.shape)), 0, 255).astype(np.uint8)


def write_street(
  out: str | os.PathLike,
  *,
  shape_HW: tuple[int, int] = (96, 128),
  train_sequences: int = 6,
  val_sequences: int = 2,
  frames: int = 33,
  seed: int = 0,
) -> None:
  """Writes `train`, `trainannot`, `val`, `valannot` and `classes.json` in the CamVid layout.

  Args:
    out: folder; created if it is missing; files of the same name are replaced.
    shape_HW: rows and columns.
    train_sequences: number of drives, each down another street in another light.
    val_sequences: see `train_sequences`.
    frames: number of consecutive frames in each drive.
    seed: non-negative; it determines all streets.

  Raises:
    InputError: a folder that cannot be written.
  """
  out = Path(out)
  for split, sequences in (("train", train_sequences), ("val", val_sequences)):
    for name in (split, split + "annot"):
      (out / name).mkdir(parents=True, exist_ok=True)
    for sequence in range(sequences):
      for frame in range(frames):
        name = f"{sequence:02d}_{frame:05d}.png"
        image, label = draw_frame(split, sequence, frame, shape_HW=shape_HW, seed=seed)
        write_png(out / split / name, image)
        write_png(out / (split + "annot") / name, label)
  index = {"ignore": VOID, "classes": list(CLASSES)}
  write_text(out / "classes.json", json.dumps(index, indent=1) + "\n")
