"""What a site says about its data before the first round, and what is pooled from all sites."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.config import Config
from condseg_jax.data import selection
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.plan import MODALITIES
from condseg_jax.plan import Plan
from condseg_jax.plan import same_spacing

ROUNDING = 5  # counts of cases are rounded up to a multiple
QUANTILES = 201  # of the intensities of positive voxels, from the 0th to the 100th percentile
MAX_CASES = 10_000_000
MAX_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Description:
  """All that a site says about its data.

  Attributes:
    modality: `ct`, `mr` or `rgb`.
    spacing: in mm along D H W, or pixels along H W, of the prepared data.
    cases: class → number of training cases that annotate it, rounded up to a multiple of
      `ROUNDING`.
    sides: class → axes along which it must not be mirrored, of those that have any.
    overlapping: pairs of classes whose masks overlap.
    intensities: CT only: percentiles of the intensities of positive voxels, in HU, rounded.
  """

  modality: str
  spacing: tuple[float, ...]
  cases: Mapping[str, int]
  sides: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  overlapping: tuple[tuple[str, str], ...] = ()
  intensities: tuple[float, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """Returns plain containers."""
    return {key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, tree: Any) -> "Description":
    """Restores and checks what another machine sent.

    Raises:
      ValueError: it is not a description.
    """
    try:
      numbers = [float(x) for x in (*tree["spacing"], *tree["intensities"])]
      found = cls(str(tree["modality"]), tuple(float(x) for x in tree["spacing"]),
                  {str(name): int(count) for name, count in dict(tree["cases"]).items()},
                  {str(name): tuple(map(str, axes)) for name, axes in dict(tree["sides"]).items()},
                  tuple((str(a), str(b)) for a, b in tree["overlapping"]),
                  tuple(float(x) for x in tree["intensities"]))
      for name in found.cases:
        if normal_name(name) != name:
          raise ValueError(f"the class name {name!r} is not normal")
    except (KeyError, TypeError, OverflowError, InputError) as error:
      raise ValueError(f"not a description: {error}") from error
    if found.modality not in MODALITIES or len(found.spacing) not in (2, 3) or not (
        all(map(math.isfinite, numbers)) and min(found.spacing) > 0):
      raise ValueError("not a description: modality, spacing or intensities")
    if not 0 < len(found.cases) <= MAX_CLASSES or not all(
        0 < count <= MAX_CASES for count in found.cases.values()):
      raise ValueError("not a description: classes or numbers of cases")
    if len(found.intensities) != (QUANTILES if found.modality == "ct" else 0):
      raise ValueError("not a description: number of percentiles")
    return found


def describe(stores: Sequence[Store]) -> Description:
  """Describes the training cases of a site.

  Every case counts alike in the percentiles, whatever the number of its voxels.

  Raises:
    InputError: no case has a mask, or datasets differ in modality or spacing.
  """
  first, cases = stores[0], [c for d in selection.datasets(stores) for c in d.cases]
  for store in stores[1:]:
    if store.modality != first.modality or not same_spacing(store.spacing, first.spacing):
      raise InputError(store.root, f"has {store.modality} images at {store.spacing}, "
                       f"{first.root} {first.modality} at {first.spacing}",
                       "prepare all datasets of a site in one call", usage=True)
  counts: dict[str, int] = {}
  for case in cases:
    for name in case.annotated:
      counts[name] = counts.get(name, 0) + 1
  quantiles: tuple[float, ...] = ()
  if first.modality == "ct":
    samples = [np.asarray(case.intensities, np.float64) for case in cases if case.intensities]
    if not samples:
      raise InputError(first.root, "no case has a positive voxel", "check the masks")
    at = np.linspace(0, 100, QUANTILES)
    pooled = np.percentile(np.concatenate([np.percentile(s, at) for s in samples]), at)
    quantiles = tuple(np.round(pooled).tolist())
  sides = {c.name: c.no_mirror for s in stores for c in s.table.classes
           if c.no_mirror and c.name in counts}
  overlapping = sorted({(min(pair), max(pair)) for s in stores for pair in s.overlapping})
  return Description(first.modality, tuple(map(float, first.spacing)),
                     {name: ROUNDING * math.ceil(n / ROUNDING) for name, n in counts.items()},
                     sides, tuple(overlapping), quantiles)


def pooled(config: Config, sites: Mapping[str, Description]) -> ModelRecord:
  """Returns the record of a network for all sites: classes, plan, settings.

  Args:
    config: settings of the training; `data.classes` orders and restricts the classes.
    sites: name of a site → its description.

  Raises:
    InputError: sites that do not fit together, by name.
  """
  (head, first), *others = sites.items()
  for name, site in others:
    if site.modality != first.modality or len(site.spacing) != len(first.spacing):
      raise InputError(f"site {name}", f"has {len(site.spacing)}-D {site.modality} images, {head} "
                       f"{len(first.spacing)}-D {first.modality}", "leave one of them out")
    if not same_spacing(site.spacing, first.spacing):
      raise InputError(f"site {name}", f"has images at {site.spacing} mm, {head} at "
                       f"{first.spacing}", f"prepare its data with --spacing="
                       f"{','.join(f'{s:g}' for s in first.spacing)}, or the other's alike")
  names = tuple(map(normal_name, config.data.classes)) or tuple(
      sorted({name for site in sites.values() for name in site.cases}))
  sides: dict[str, tuple[str, ...]] = {}
  for site_name, site in sites.items():
    for name in site.cases:
      if name not in names:
        raise InputError(f"site {site_name}", f"annotates {name!r}, which data.classes lacks",
                         "add it, or rename it at the site if it is one of "
                         f"{', '.join(names)}", usage=True)
      axes = tuple(site.sides.get(name, ()))
      if sides.setdefault(name, axes) != axes:
        raise InputError(f"site {site_name}", f"has other sides of {name!r} than the sites before "
                         f"it: {axes} and {sides[name]}", "prepare it alike at all sites")
  for name in names:
    if name not in sides:
      raise InputError("data.classes", f"{name!r} is annotated at no site",
                       f"annotated: {', '.join(sorted(sides))}", usage=True)
  sides |= {normal_name(name): tuple(axes) for name, axes in config.data.lateral_axes.items()}
  pairs = {pair for site in sites.values() for pair in site.overlapping if set(pair) <= {*names}}
  for a, b in (map(normal_name, pair) for pair in config.data.overlapping):
    pairs.add((min(a, b), max(a, b)))
  table = ClassTable.create(names, presets=config.data.presets, no_mirror=sides,
                            overlapping=sorted(pairs))
  # As many samples as a site has cases, so that each case counts alike.
  samples = [np.asarray(site.intensities) for site in sites.values()
             for _ in range(min(max(site.cases.values()) // ROUNDING, 1000))]
  return ModelRecord(config, table, Plan.pooled(first.modality, first.spacing,
                                                config.data.subvolume, samples))
