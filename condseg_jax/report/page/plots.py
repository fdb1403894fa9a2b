"""Plots distributions of scores as SVG for a table row."""

from collections.abc import Iterable
from collections.abc import Sequence
from html import escape
import math

import numpy as np

_WIDTH, _HEIGHT, _MARGIN = 380, 32, 8
_MIDDLE = _HEIGHT / 2


def lower_end(values: Iterable[float]) -> float:
  """Returns the start of a scale up to 1: a multiple of 0.1 below all values; nan is ignored."""
  known = [v for v in values if not math.isnan(v)]
  return min(max(0.0, math.floor(10 * min(known) - 0.2) / 10), 0.9) if known else 0.0


def box_plot(values: Sequence[float], links: Sequence[tuple[str, str]], style: str,
             low: float) -> str:
  """Draws a box plot of scores, with a linked dot for every case.

  Box: quartiles and median. Whiskers: the farthest values within 1.5 box lengths of it (Tukey).

  Args:
    values: at most 1; nan if a case has none.
    links: address and name of each case.
    style: CSS class of the colour.
    low: start of the scale, which ends at 1.
  """
  known = [(v, *link) for v, link in zip(values, links, strict=True) if not math.isnan(v)]
  lines = "".join(f"M{_x(tick, low):.1f} 2V{_HEIGHT - 2}" for tick in _ticks(low))
  parts = [f'<path class="grid" d="{lines}"/>']
  if len(known) > 2:
    numbers = np.array([v for v, _, _ in known])
    quartiles = np.percentile(numbers, [25, 50, 75])
    reach = 1.5 * (quartiles[2] - quartiles[0])
    ends = (numbers[numbers >= quartiles[0] - reach].min(),
            numbers[numbers <= quartiles[2] + reach].max())
    left, middle, right = (_x(q, low) for q in quartiles)
    first, last = (_x(end, low) for end in ends)
    parts.append(
        f'<path class="whisker" d="M{first:.1f} {_MIDDLE:g}H{left:.1f}M{right:.1f} {_MIDDLE:g}'
        f'H{last:.1f}M{first:.1f} {_MIDDLE - 4:g}v8M{last:.1f} {_MIDDLE - 4:g}v8"/>'
        f'<rect class="box" x="{left:.1f}" y="7" width="{right - left:.1f}" height="18" rx="2"/>'
        f'<path class="median" d="M{middle:.1f} 7v18"/>')
  for place, (value, address, name) in enumerate(known):
    # Quasi-random vertical positions keep equal values apart.
    y = _MIDDLE + 6 * (2 * (place * 0.618034 % 1) - 1)
    tip = escape(f"{name}: {value:.3f}")
    parts.append(f'<a href="{escape(address)}" aria-label="{tip}"><circle r="2.6"'
                 f' cx="{_x(value, low):.1f}" cy="{y:.1f}"><title>{tip}</title></circle></a>')
  return (f'<svg class="boxplot {style}" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}"'
          f' height="{_HEIGHT}" role="group" aria-label="distribution">{"".join(parts)}</svg>')


def axis(low: float) -> str:
  """Draws the scale above the box plots."""
  marks = "".join(f'<text x="{_x(tick, low):.1f}" y="11" text-anchor="middle">{tick:g}</text>'
                  for tick in _ticks(low))
  return (f'<svg class="axis" viewBox="0 0 {_WIDTH} 14" width="{_WIDTH}" height="14" role="img"'
          f' aria-label="scale from {low:g} to 1">{marks}</svg>')


def bar(value: float, style: str) -> str:
  """Draws a score between 0 and 1 as a bar."""
  if math.isnan(value):
    return ""
  return (f'<svg class="bar {style}" viewBox="0 0 40 4" width="40" height="4" aria-hidden="true">'
          f'<rect class="all" width="40" height="4" rx="2"/>'
          f'<rect class="part" width="{40 * min(max(value, 0.0), 1.0):.1f}" height="4" rx="2"/>'
          "</svg>")


def _ticks(low: float) -> list[float]:
  step = 0.2 if low < 0.5 else 0.1
  count = math.floor((1 - low) / step + 1e-9)
  return [round(1 - step * i, 6) for i in range(count, -1, -1)]


def _x(value: float, low: float) -> float:
  return _MARGIN + (_WIDTH - 2 * _MARGIN) * (value - low) / (1 - low)
