"""The objects of a street scene and the camera that draws them, for `street`.

World coordinates are in metres, x to the right, y up, z along the street. Everything is drawn
twice: with its colours into the image and with its class into the label picture.
"""

from collections.abc import Iterable
import math

import numpy as np
from PIL import Image
from PIL import ImageDraw

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
           "pedestrian", "bicyclist")
VOID = len(CLASSES)  # bins, the bonnet of the car, distant objects
ID = {name: i for i, name in enumerate((*CLASSES, "void"))}

BLOCK_M = 24.0
AHEAD = 5  # number of visible blocks
HAZE_M = 130.0  # distance at which contrast drops to 1/e
NEAR_M = 0.8  # minimal distance of objects from the camera
SCALE = 2  # supersampling: pixels are drawn as SCALE x SCALE and averaged

Point = tuple[float, float, float]  # x, y, z

WALLS = ((148, 92, 72), (196, 182, 158), (128, 128, 130), (168, 148, 118), (88, 80, 76),
         (206, 206, 204), (112, 104, 92))
PAINTS = ((30, 32, 36), (176, 180, 184), (130, 24, 26), (36, 60, 120), (226, 226, 222),
          (84, 88, 90), (150, 140, 110), (40, 80, 56))
PLATES = ((190, 30, 30), (30, 70, 170), (220, 220, 214), (210, 180, 40), (40, 120, 60))


class Camera:
  """Projects objects and draws them into an image and its label picture."""

  def __init__(self, shape_HW: tuple[int, int], x: float, z: float, turn: float,
               light: np.ndarray, haze: np.ndarray) -> None:
    self.height, self.width = (n * SCALE for n in shape_HW)
    self.x, self.y, self.z = x, 1.5, z
    self.focal = 0.85 * self.width
    self.u0, self.v0 = self.width * (0.5 + turn), self.height * 0.46
    self.light, self.haze = light.tolist(), haze.tolist()
    self.image = Image.new("RGB", (self.width, self.height))
    self.label = Image.new("L", (self.width, self.height), ID["sky"])
    self.brush, self.pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)

  def tone(self, color: Iterable[float], depth: float) -> tuple[int, ...]:
    """Returns a colour in the light of the scene, faded into the haze."""
    clear = math.exp(-depth / HAZE_M)
    return tuple(min(255, max(0, int(c * gain * clear + far * (1 - clear))))
                 for c, gain, far in zip(color, self.light, self.haze, strict=True))

  def project(self, points: Iterable[Point]) -> tuple[list[tuple[float, float]], float]:
    """Returns pixels (u, v) of world points and their smallest distance, at least `NEAR_M`."""
    pixels, nearest = [], math.inf
    for x, y, z in points:
      depth = max(z - self.z, NEAR_M)
      nearest = min(nearest, depth)
      pixels.append((self.u0 + self.focal * (x - self.x) / depth,
                     self.v0 - self.focal * (y - self.y) / depth))
    return pixels, nearest

  def behind(self, z: float) -> bool:
    """Returns whether an object at z is behind the camera, or too close."""
    return z < self.z + NEAR_M

  def quad(self, points: Iterable[Point], color: Iterable[float], name: str | None = None) -> None:
    """Draws a polygon of world points; without a class name the label is unchanged."""
    pixels, depth = self.project(points)
    self.brush.polygon(pixels, fill=self.tone(color, depth))
    if name is not None:
      self.pen.polygon(pixels, fill=ID[name])

  def front(self, x: float, y: float, z: float, width: float, height: float,
            color: Iterable[float], name: str | None = None) -> None:
    """Draws an upright rectangle that faces the camera; (x, y) is the middle of its lower edge."""
    left, right = x - width / 2, x + width / 2
    top = y + height
    self.quad([(left, y, z), (right, y, z), (right, top, z), (left, top, z)], color, name)

  def disc(self, x: float, y: float, z: float, radius: float, color: Iterable[float],
           name: str | None = None) -> None:
    """Draws an upright disc that faces the camera."""
    ((u, v),), depth = self.project([(x, y, z)])
    r = self.focal * radius / depth
    box = (u - r, v - r, u + r, v + r)
    self.brush.ellipse(box, fill=self.tone(color, depth))
    if name is not None:
      self.pen.ellipse(box, fill=ID[name])


def _building(cam, rng, side, wall, z0, z1, tall):
  """Draws a facade with windows and a shop front, and the end wall that faces the camera."""
  color = np.array(WALLS[rng.integers(len(WALLS))]) + rng.normal(0, 10, 3)
  shade = 1.1 if side < 0 else 0.8  # the sun is on the right
  glass = np.array((70, 80, 95)) * rng.uniform(0.6, 2.2)
  floors, bays = int(tall // 3.2), max(2, int((z1 - z0) // 3))
  shop = PAINTS[rng.integers(len(PAINTS))]
  near = max(z0, cam.z + NEAR_M)
  x = side * wall
  if not cam.behind(z0):
    cam.front(x + side * 6, 0, z0, 12, tall, color * 0.75, "building")
  plane = lambda za, zb, ya, yb: [(x, ya, za), (x, ya, zb), (x, yb, zb), (x, yb, za)]
  cam.quad(plane(near, z1, 0, tall), color * shade, "building")
  cam.quad(plane(near, z1, tall - 0.5, tall), color * shade * 0.7)
  cam.quad(plane(near, z1, 2.7, 3.1), np.array(shop) * shade)
  step = (z1 - z0) / bays
  for i in range(bays):
    za, zb = z0 + step * (i + 0.25), z0 + step * (i + 0.75)
    if cam.behind(za) or za - cam.z > 70:
      continue
    for k in range(floors):
      base = 0.4 if k == 0 else 3.2 * k + 1.0
      cam.quad(plane(za, zb, base, base + (2.1 if k == 0 else 1.5)), glass * shade)


def _fence(cam, rng, x, z0, z1):
  color = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.5, 1.0)
  solid, tall = rng.random() < 0.4, rng.uniform(1.0, 1.7)
  near = max(z0, cam.z + NEAR_M)
  behind = color if solid else color * 0.4 + np.array((60, 66, 58)) * 0.6
  cam.quad([(x, 0, near), (x, 0, z1), (x, tall, z1), (x, tall, near)], behind, "fence")
  for z in np.arange(z0, z1, 0.5):
    if not cam.behind(z) and z - cam.z < 40:
      cam.quad([(x, 0, z), (x, 0, z + 0.15), (x, tall, z + 0.15), (x, tall, z)], color * 0.85)
  cam.quad([(x, tall - 0.15, near), (x, tall - 0.15, z1), (x, tall, z1), (x, tall, near)], color)


def _tree(cam, rng, x, z, season):
  tall, wide = rng.uniform(4.5, 9), rng.uniform(1.3, 2.4)
  cam.front(x, 0, z, 0.35, tall * 0.6, (72, 60, 48), "tree")
  green = np.array((66, 92, 44)) * (1 - season) + np.array((122, 96, 60)) * season
  for _ in range(26):
    dx, dy = rng.normal(0, 0.45, 2)
    color = green * rng.uniform(0.45, 1.25)
    cam.disc(x + dx * wide, tall * 0.72 + dy * wide * 1.3, z, rng.uniform(0.35, 0.8), color, "tree")


def _pole(cam, rng, x, z):
  tall, grey = rng.uniform(5, 8), rng.uniform(50, 150)
  color = (grey, grey, grey * 0.95)
  cam.front(x, 0, z, 0.2, tall, color, "pole")
  cam.front(x - np.sign(x) * 0.8, tall - 0.2, z, 1.6, 0.2, color, "pole")


def _sign(cam, rng, x, z):
  """Draws a plate or a traffic light on a pole."""
  cam.front(x, 0, z, 0.14, 2.6, (110, 110, 108), "pole")
  if rng.random() < 0.35:
    cam.front(x, 2.3, z, 0.45, 1.2, (34, 34, 36), "sign")
    cam.disc(x, 3.2, z, 0.13, (230, 60, 40))
  elif rng.random() < 0.5:
    cam.disc(x, 2.7, z, 0.5, PLATES[rng.integers(len(PLATES))], "sign")
    cam.disc(x, 2.7, z, 0.3, (220, 220, 216))
  else:
    plate = PLATES[rng.integers(len(PLATES))]
    cam.front(x, 2.1, z, rng.uniform(0.8, 1.6), rng.uniform(0.6, 1.0), plate, "sign")


def car(cam: Camera, rng: np.random.Generator, x: float, z: float, towards: bool) -> None:
  """Draws a car whose near end is at z; `towards` the camera, or away from it."""
  color = np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.8, 1.2)
  long, wide, roof = rng.uniform(3.8, 4.6), 1.75, rng.uniform(1.4, 1.75)
  half = wide / 2
  cam.quad([(x - half, 0.02, z), (x + half, 0.02, z), (x + half, 0.02, z + long),
            (x - half, 0.02, z + long)], (24, 24, 26))
  cam.front(x, 0.25, z + long, wide, 0.65, color * 0.7, "car")
  side = x - half if x > cam.x else x + half
  cam.quad([(side, 0.25, z), (side, 0.25, z + long), (side, 0.9, z + long), (side, 0.95, z)],
           color * 0.85, "car")
  cam.quad([(side, 0.9, z + 0.3), (side, 0.9, z + long - 0.9), (side, roof, z + long - 1.5),
            (side, roof, z + 0.7)], (46, 52, 60), "car")
  for axle in (0.8, long - 0.8):
    cam.disc(side, 0.32, z + axle, 0.32, (26, 26, 28), "car")
  top = half * 0.8
  cam.quad([(x - half, 0.9, z), (x + half, 0.9, z), (x + top, roof, z + 0.5),
            (x - top, roof, z + 0.5)], (58, 66, 76), "car")
  cam.quad([(x - top, roof - 0.06, z + 0.45), (x + top, roof - 0.06, z + 0.45),
            (x + top, roof, z + 1.6), (x - top, roof, z + 1.6)], color * 1.1, "car")
  cam.front(x, 0.25, z, wide, 0.7, color, "car")
  for at in (-0.62, 0.62):
    cam.front(x + at, 0.62, z, 0.32, 0.18, (236, 232, 210) if towards else (190, 30, 26))
    cam.front(x + at, 0.0, z, 0.24, 0.3, (22, 22, 24), "car")


def _person(cam, rng, x, z, name="pedestrian", lift=0.0):
  coat, legs = (np.array(PAINTS[rng.integers(len(PAINTS))]) for _ in range(2))
  tall = rng.uniform(0.93, 1.07)
  for at in (-0.12, 0.12):
    cam.front(x + at, lift, z, 0.2, 0.85 * tall, legs * 0.6, name)
  cam.front(x, lift + 0.75 * tall, z, 0.5, 0.72 * tall, coat, name)
  cam.disc(x, lift + 1.62 * tall, z, 0.15, (186, 144, 120), name)


def _bicyclist(cam, rng, x, z):
  cam.disc(x, 0.36, z + 1.0, 0.34, (40, 40, 42), "bicyclist")
  cam.front(x, 0.0, z, 0.16, 0.75, (30, 30, 32), "bicyclist")
  cam.front(x, 0.9, z + 0.4, 0.6, 0.08, (30, 30, 32), "bicyclist")
  _person(cam, rng, x, z + 0.1, "bicyclist", 0.22)


def _bin(cam, rng, x, z):
  cam.front(x, 0, z, 0.6, rng.uniform(0.9, 1.4), PAINTS[rng.integers(len(PAINTS))], "void")


def block_of_street(rng: np.random.Generator, road: float, wall: float, z: float, time: float,
                    season: float) -> list[tuple]:
  """Returns the objects in one block: [(layer, far end, drawing function, arguments)].

  Layers are: behind the walls (-1), walls (0), pavement (1), kerb (2), road (3). The camera is
  above the road, so an object of a lower layer never occludes one of a higher layer.
  """
  things, u = [], rng.uniform
  for side in (-1, 1):
    kerb, split = side * (road + 0.5), u(8, 16)
    for z0, z1 in ((0, split), (split, BLOCK_M)):
      if u() < 0.75:
        things.append((0, z + z1, _building, (side, wall, z + z0, z + z1 - 0.4, u(6, 15))))
      else:
        things.append((0, z + z1, _fence, (side * wall, z + z0, z + z1)))
        things += [(-1, z + t, _tree, (side * (wall + u(1, 4)), z + t, season))
                   for t in np.arange(z0 + 1, z1, 3)]
    if u() < 0.35:
      end = z + u(8, 14)
      things.append((2, end, _fence, (kerb, z + 2, end)))
    spots = u(0, BLOCK_M, 8) + z
    things.append((2, spots[0], _tree, (kerb + side * 0.6, spots[0], season)))
    things.append((2, spots[1], _pole, (kerb, spots[1])))
    things.append((2, spots[2], _sign, (kerb, spots[2])))
    if u() < 0.4:
      things.append((2, spots[3], _bin, (kerb + side * 0.4, spots[3])))
    for spot in spots[4:6]:
      at = spot + time * u(-1.2, 1.2)
      things.append((1, at, _person, (side * u(road + 0.7, wall - 0.5), at)))
    if u() < 0.45:
      at = spots[6] + time * 0.35 * side
      things.append((3, at, _bicyclist, (side * (road - 1.5), at)))
    elif u() < 0.75:
      things.append((3, spots[7], car, (side * (road - 1.0), spots[7], side < 0)))
  return things
