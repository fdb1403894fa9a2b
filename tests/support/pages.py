"""Helpers for tests of the page: small cases, and an HTML parser."""

from html.parser import HTMLParser

import numpy as np

from condseg_jax import metrics
from condseg_jax.classes import ClassTable
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.geometry import Volume
from condseg_jax.report.page.case import draw_case
from condseg_jax.report.page.case import structure_sizes
from support.tiny import AFFINE
from support.tiny import case as organs

TABLE = ClassTable.create(["ball", "box"], colors={"ball": (230, 40, 40), "box": (40, 80, 230)})
VALUES = {"ball": 1, "box": 2}


class Document(HTMLParser):
  """The elements of a page: (tag, attributes), tables as rows of cells, texts, scripts."""

  def __init__(self, text: str):
    super().__init__()
    self.elements, self.tables, self.text, self.scripts, self.styles = [], [], [], [], []
    self._open, self._cell = [], None
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.elements.append((tag, attributes))
    if tag == "table":
      self.tables.append((attributes.get("class", ""), []))
    if tag == "tr":
      self.tables[-1][1].append([])
    if tag in ("td", "th"):
      self._cell = [attributes.get("data-value"), ""]
      self.tables[-1][1][-1].append(self._cell)
    if tag in ("script", "style"):
      self._open.append((tag, attributes, []))

  def handle_data(self, data):
    if self._open:
      self._open[-1][2].append(data)
      return
    self.text.append(data)
    if self._cell:
      self._cell[1] += data

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self._cell = None
    if self._open and tag == self._open[-1][0]:
      _, attributes, parts = self._open.pop()
      found = self.scripts if tag == "script" else self.styles
      found.append((attributes, "".join(parts)))

  def table(self, style: str, number: int = 0) -> list[list[tuple[str | None, str]]]:
    """The rows of a table, without its heading: (data-value, text) of each cell."""
    found = [rows for name, rows in self.tables if style in name.split()]
    return [[(value, text.strip()) for value, text in row] for row in found[number][1:]]


def volume(seed: int = 0) -> tuple[Volume, Volume]:
  """Image and label map of a small case on canonical axes."""
  image, label = organs(np.random.default_rng(seed))
  return Volume(image, AFFINE), Volume(label, AFFINE)


def segmented(name: str = "case 1", seed: int = 0, **changes):
  image, label = volume(seed)
  measures = structure_sizes(label, VALUES)
  return draw_case(name, image, label, TABLE, measures, modality="mr", **changes)


def scored(name: str, seed: int, shift: int):
  """A case whose prediction is the truth moved by some voxels, and its scores."""
  image, label = volume(seed)
  found = Volume(np.roll(label.array, shift, axis=1), label.affine)
  truth = {c: (label.array == value).astype(np.uint8) for c, value in VALUES.items()}
  rows = [CaseScore(name, c, metrics.score_case(found.array == VALUES[c], mask, image.spacing, 2.0))
          for c, mask in truth.items()]
  measures = {row.class_name: {key: row.metrics[key] for key in ("dice", "hd95", "volume_ml")}
              for row in rows}
  return draw_case(name, image, found, TABLE, measures, modality="mr", truth=truth), rows
