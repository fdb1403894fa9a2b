"""The anatomy of the abdominal CT phantoms: a random patient as a map of tissues.

Structures are drawn in reference millimetres, x towards the patient's left, y posterior, z
superior, on a grid of canonical order (D, H, W) = (superior, posterior, left). A smooth random
deformation, jitter of every structure and rough surfaces make every patient different.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline

from condseg_jax.datasets.synthetic.random_field import smooth_field

ORGANS = ("liver", "spleen", "pancreas", "left_kidney", "right_kidney")


@dataclass(frozen=True)
class Tissue:
  """A tissue.

  Attributes:
    name: unique.
    hu: mean intensity in HU.
    sd: standard deviation of the mean between cases, in HU.
    gain: HU added at full contrast phase.
    organ: the organ of which it is a part.
  """

  name: str
  hu: float
  sd: float = 0.0
  gain: float = 0.0
  organ: str | None = None


# Soft tissues differ by 10-30 HU, and the sd between cases changes their order: no intensity window
# can separate an organ from its neighbours.
TISSUES = (
  Tissue("air", -1000), Tissue("gas", -950), Tissue("lung", -830, 30), Tissue("fat", -105, 6),
  Tissue("muscle", 60, 4, 8), Tissue("bone", 260, 50), Tissue("disc", 85, 10),
  Tissue("cord", 35, 5), Tissue("blood", 62, 6, 55), Tissue("gut", 56, 8, 22),
  Tissue("stool", 50, 15), Tissue("food", 52, 15), Tissue("bile", 15, 8),
  Tissue("liver", 61, 5, 15, "liver"), Tissue("liver_vein", 68, 5, 36, "liver"),
  Tissue("spleen", 68, 5, 32, "spleen"), Tissue("pancreas", 52, 5, 22, "pancreas"),
  Tissue("left_cortex", 68, 5, 44, "left_kidney"),
  Tissue("left_medulla", 58, 5, 30, "left_kidney"),
  Tissue("right_cortex", 68, 5, 44, "right_kidney"),
  Tissue("right_medulla", 58, 5, 30, "right_kidney"), Tissue("couch", -350, 40),
)
TISSUE_ID = {tissue.name: i for i, tissue in enumerate(TISSUES)}


class _Canvas:
  """The tissue map of one case and its coordinates in reference millimetres."""

  def __init__(self, rng: np.random.Generator, shape_DHW: Sequence[int],
               spacing_DHW: Sequence[float], centre_DHW: Sequence[float],
               size_DHW: Sequence[float]) -> None:
    self.rng, self.spacing = rng, spacing_DHW
    self.tissue = np.zeros(shape_DHW, np.uint8)
    self.axes = []
    for n, s, c, k in zip(shape_DHW, spacing_DHW, centre_DHW, size_DHW, strict=True):
      self.axes.append((((np.arange(n) - (n - 1) / 2) * s - c) / k).astype(np.float32))
    grids = np.meshgrid(*self.axes, indexing="ij", sparse=True)
    self.z, self.y, self.x = (g + self.field(80, 3.0) for g in grids)

  def field(self, scale_mm: float, sd: float) -> np.ndarray:
    """Returns a smooth random field with knots `scale_mm` apart."""
    step = [scale_mm / s for s in self.spacing]
    return smooth_field(self.rng, self.tissue.shape, step) * np.float32(sd)

  def near(self, xyz: Sequence[float], sd: float) -> np.ndarray:
    """Returns a random point around a point."""
    return np.asarray(xyz, np.float32) + self.rng.normal(0, sd, 3)

  def box(self, centre: Sequence[float], reach: Sequence[float]) -> tuple[slice, ...]:
    """Returns slices with every voxel closer than `reach` (x, y, z), deformation included."""
    slices = []
    for axis, c, r in zip(self.axes, centre[::-1], reach[::-1], strict=True):
      slices.append(slice(*np.searchsorted(axis, (c - r - 16, c + r + 16))))
    return tuple(slices)

  def blob(self, centre: Sequence[float], radii: Sequence[float],
           lean: Sequence[float] = (0.0, 0.0), rough: float = 0.0) -> np.ndarray:
    """Returns the approximate depth in mm inside an ellipsoid, sheared by (dx/dz, dy/dz)."""
    depth = np.full(self.tissue.shape, -99, np.float32)
    sway = (abs(lean[0]) * radii[2], abs(lean[1]) * radii[2], 0)
    b = self.box(centre, [r + s + 8 for r, s in zip(radii, sway, strict=True)])
    z = self.z[b] - centre[2]
    q = ((self.x[b] - centre[0] - lean[0] * z) / radii[0]) ** 2
    q += ((self.y[b] - centre[1] - lean[1] * z) / radii[1]) ** 2
    depth[b] = (1 - np.sqrt(q + (z / radii[2]) ** 2)) * np.float32(min(radii))
    return depth + self.field(32, rough) if rough else depth

  def tube(self, points_xyzr: Sequence[Sequence[float]], jitter: float = 3.0,
           rough: float = 0.0) -> np.ndarray:
    """Returns the approximate depth in mm inside a tube through points (x, y, z, radius)."""
    points = np.asarray(points_xyzr, np.float32)
    points[:, :3] += self.rng.normal(0, jitter, (len(points), 3))
    curve = make_interp_spline(np.arange(len(points)), points, k=min(3, len(points) - 1))
    depth = np.full(self.tissue.shape, -99, np.float32)
    for *c, r in curve(np.linspace(0, len(points) - 1, 5 * len(points) - 4)).astype(np.float32):
      b = self.box(c, (r + 6,) * 3)
      q = (self.x[b] - c[0]) ** 2 + (self.y[b] - c[1]) ** 2 + (self.z[b] - c[2]) ** 2
      depth[b] = np.maximum(depth[b], r - np.sqrt(q))
    return depth + self.field(25, rough) if rough else depth

  def paint(self, tissue: str, mask: np.ndarray) -> None:
    """Sets the tissue of the voxels in a mask."""
    self.tissue[mask] = TISSUE_ID[tissue]


def draw_anatomy(
  rng: np.random.Generator,
  shape_DHW: Sequence[int],
  spacing_DHW: Sequence[float],
  centre_DHW: Sequence[float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
  """Draws one random patient.

  Args:
    rng: source of all random numbers.
    shape_DHW: voxels towards superior, posterior and left.
    spacing_DHW: voxel size in mm.
    centre_DHW: offset of the patient's reference point (L1, mid-body) from the grid centre, in mm.

  Returns:
    uint8 tissue map, an index into `TISSUES` for every voxel; later structures replace earlier
    ones, so organs touch and never overlap.
  """
  size = rng.uniform((0.94, 0.9, 0.9), (1.06, 1.1, 1.08))
  c = _Canvas(rng, shape_DHW, spacing_DHW, centre_DHW, size)
  cavity = _trunk(c)
  _bowel(c, cavity)
  _organs(c, cavity)
  _spine(c)
  return c.tissue


def _trunk(c: _Canvas) -> np.ndarray:
  """Draws skin, fat, muscle, ribs, lungs, heart; returns the depth in mm inside the cavity."""
  fat = c.rng.uniform(6, 26)
  px, py, pb = (np.abs(v) ** 2 * np.sqrt(np.abs(v)) for v in (c.x, c.y, c.y - 6))
  shell = lambda a, b, p: px * a**-2.5 + p * b**-2.5  # noqa: E731
  cavity = (1 - shell(128, 88, py) ** 0.4) * 100
  c.paint("fat", shell(146 + 1.2 * fat, 104 + fat, pb) < 1)
  c.paint("muscle", shell(145, 103, pb) < 1)
  rib = (cavity < -2) & (cavity > -11) & (np.abs(c.x) > 22)
  slope = c.z - 0.4 * c.y + c.rng.uniform(0, 32)
  c.paint("bone", rib & (slope % 32 < 10) & (slope > 5))
  c.paint("fat", cavity > 0)
  low = np.clip(-c.z, 0, 60) * 0.12
  for side in (-1, 1):
    c.paint("muscle", c.blob((side * 33, 88, 0), (28, 20, 400)) > 0)
    c.paint("muscle", c.blob((side * 62, 76, -60), (20, 9, 60)) > 0)
    c.paint("muscle", c.blob((side * 36, 52, -80), (16, 17, 90), rough=1) + low > 0)
    c.paint("muscle", c.blob((side * 15, 34, 30), (7, 13, 50)) > 0)
  dome = np.full(c.tissue.shape, 40, np.float32)
  for x, top in ((-58, 76), (62, 66)):
    top += c.rng.normal(0, 4)
    dome = np.maximum(dome, top - ((c.x - x) ** 2 + c.y**2) / 190)
  c.paint("lung", (c.z > dome) & (cavity > 2))
  c.paint("blood", c.blob(c.near((22, -36, 92), 4), (56, 42, 30), rough=2) > 0)
  return np.minimum(cavity, dome - c.z)


def _bowel(c: _Canvas, cavity: np.ndarray) -> None:
  """Draws stomach, duodenum, colon, jejunal loops: wall, contents, gas above an air-fluid level."""
  full = c.rng.uniform(0.75, 1.15)
  gut = c.rng.uniform
  colon = [(-96, 8, -110, 20), (-98, 4, -50, 20), (-82, -46, -44, 18), (-30, -70, -62, 17),
           (40, -68, -56, 17), (88, -38, -16, 17), (102, 22, -30, 16), (100, 30, -110, 16)]
  _hollow(c, cavity, c.tube(colon, 6, rough=2), "stool", gut(-64, 10), 3)
  for _ in range(10):
    start = gut((-60, -60, -105), (80, 15, -40))
    walk = start + np.cumsum(c.rng.normal(0, (26, 18, 12), (5, 3)), axis=0)
    walk = np.clip(walk, (-75, -66, -110), (88, 22, -34))
    loop = c.tube(np.c_[walk, np.full(5, gut(10, 16))], 0)
    _hollow(c, cavity, loop, "food", -70 if gut() < 0.7 else gut(-60, -20), gut(2, 6))
  stomach = [(66, 28, 50, 27 * full), (74, -8, 36, 30 * full), (60, -42, 12, 27 * full),
             (26, -56, -6, 20 * full), (-12, -46, -6, 14), (-30, -38, -6, 10)]
  _hollow(c, cavity, c.tube(stomach, 4, rough=2), "food", gut(-70, -25), 5)
  duodenum = [(-30, -38, -6, 11), (-54, -22, -12, 12), (-60, -2, -42, 12), (-28, 12, -60, 11),
              (24, 6, -52, 10)]
  _hollow(c, cavity, c.tube(duodenum, 2), "food", -80, 4)


def _hollow(c: _Canvas, cavity: np.ndarray, depth: np.ndarray, content: str, gas_y: float,
            wall_mm: float) -> None:
  depth = np.minimum(depth, cavity - 2)
  c.paint("gut", depth > 0)
  c.paint(content, depth > wall_mm)
  c.paint("gas", (depth > wall_mm) & (c.y < gas_y))


def _organs(c: _Canvas, cavity: np.ndarray) -> None:
  """Draws spleen, liver, kidneys, pancreas and great vessels."""
  grow = lambda radii: np.asarray(radii) * c.rng.uniform(0.9, 1.12, 3)  # noqa: E731
  inside = cavity - c.rng.uniform(1.5, 6)  # fat between the organs and the wall
  centre, radii = c.near((94, 36, 30), 4), grow((30, 44, 46))
  spleen = c.blob(centre, radii, c.rng.normal((0.0, 0.2), 0.1), rough=2.5)
  c.paint("spleen", np.minimum(spleen, inside) > 0)
  slope = c.z + 66 - c.rng.uniform(0.36, 0.56) * (c.x + 108) + c.field(45, 4)
  right = c.blob(c.near((-66, 4, 16), 4), grow((64, 82, 70)), rough=2.5)
  left = c.blob(c.near((6, -46, 34), 5), grow((60, 34, 30)), rough=2.5)
  liver = np.minimum(np.minimum(np.maximum(right, left), inside), slope)
  c.paint("liver", liver > 0)
  veins = [(-20, 16, 62, 5), (-50, 4, 48, 5), (-76, -14, 24, 4)]
  portal = [(-34, -6, 8, 7), (-52, -4, 22, 6), (-78, 10, 22, 5), (-92, 24, 8, 4)]
  for branch in (c.tube(veins), c.tube(portal)):
    c.paint("liver_vein", (branch > 0) & (liver > 4))
  c.paint("bile", (c.blob(c.near((-52, -46, -16), 5), grow((13, 20, 17))) > 0) & (inside > 0))
  for side, name, z in ((-1, "right", -32), (1, "left", -18)):
    x, y, z = c.near((side * 66, 46, z), 4)
    radii, lean = grow((25, 26, 53)), (side * -0.2, -0.1)
    kidney = np.minimum(c.blob((x, y, z), radii, lean, rough=2), inside)
    c.paint("fat", (kidney > -c.rng.uniform(0, 4)) & (c.tissue != TISSUE_ID["muscle"]))
    c.paint(name + "_cortex", kidney > 0)
    c.paint(name + "_medulla", kidney > 8)
    c.paint("fat", c.blob((x - side * 20, y - 8, z), (13, 11, 20), lean) > 0)
  pancreas = [(-38, -8, -38, 15), (-34, -20, -16, 17), (-10, -32, -4, 12), (18, -24, 4, 12),
              (46, -4, 12, 13), (74, 17, 22, 11)]
  pancreas = np.minimum(c.tube(pancreas, 2, rough=1), inside)
  c.paint("fat", (pancreas > -c.rng.uniform(3, 7)) & ~np.isin(c.tissue, _SOLID))
  c.paint("pancreas", pancreas > 0)
  vessels = ([(8, 26, -150, 10), (8, 24, -20, 11), (6, 28, 100, 12)],  # aorta
             [(-24, 24, -150, 11), (-24, 20, -10, 12), (-22, 16, 100, 13)],  # inferior vena cava
             [(-8, -8, -110, 6), (-8, -10, -20, 6), (-16, -8, -2, 7), (-36, -6, 10, 7)],
             [(-12, -8, -2, 5), (20, -6, 6, 5), (48, 16, 14, 5), (82, 32, 24, 4)],  # splenic vein
             [(7, 20, -12, 5), (6, 6, -20, 4), (4, -2, -100, 4)])
  for points in vessels:
    c.paint("blood", (c.tube(points, 1.5) > 0) & ~np.isin(c.tissue, _SOLID[:2]))


_SOLID = [TISSUE_ID[n] for n in ("liver", "liver_vein", "spleen", "left_cortex", "left_medulla",
                                 "right_cortex", "right_medulla")]


def _spine(c: _Canvas) -> None:
  """Draws vertebrae, discs, canal, spinous and transverse processes, over everything else."""
  level = (c.z + c.rng.uniform(0, 34)) % 34
  body = c.blob((0, 52, 0), (23, 17, 900))
  c.paint("bone", body > 0)
  c.paint("disc", (body > 0) & (level < 8))
  arch = level > 14
  c.paint("bone", arch & (c.blob((0, 76, 0), (16, 13, 900)) > 0))
  c.paint("bone", arch & (np.abs(c.x) < 4.5) & (np.abs(c.y - 92) < 13))
  c.paint("bone", arch & (level < 24) & (np.abs(c.x) < 36) & (np.abs(c.y - 75) < 5))
  c.paint("cord", c.blob((0, 76, 0), (10, 8, 900)) > 0)


def label_map(tissue_DHW: np.ndarray, organs: Sequence[str]) -> np.ndarray:
  """Returns the uint8 label map of a tissue map: i + 1 for organs[i], 0 for everything else."""
  value = {organ: i + 1 for i, organ in enumerate(organs)}
  return np.array([value.get(t.organ, 0) for t in TISSUES], np.uint8)[tissue_DHW]
