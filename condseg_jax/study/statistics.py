"""Means over cases and seeds, and how far their differences can be trusted.

The score of one training is T_k, of class k: the mean Dice over the cases that have one, or, for
images, the intersections over the unions summed over all of them. With weights w_c of the cases

    T_k(w) = Σ_c w_c D_ck / Σ_c w_c     or     T_k(w) = Σ_c w_c tp_ck / Σ_c w_c (tp + fp + fn)_ck

and the mean over classes is that of the T_k that have a value. Over seeds s the T are averaged.

The bootstrap draws cases with replacement, the same for all variants, since all are scored on the
same ones (paired); within that, for every variant, seeds with replacement, and averages over them:

    θ*_v = Σ_s (m*_vs / S) T_vs(w*),   w* ~ Multinomial(C; 1/C, …),   m*_v ~ Multinomial(S; 1/S, …)

A seed is drawn for all cases together, because its network saw all of them (the pigeonhole
bootstrap of crossed factors: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics
1(2), 2007). Differences θ*_v - θ*_r are those within a replicate; the interval is that of the
percentiles. With few seeds (three) it still understates what another seed may change: the variance
of a resampled mean is (S - 1)/S of what it should be. With one seed it speaks of cases alone.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from condseg_jax.metrics import METRICS

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 500  # replicates at once


class Group(NamedTuple):
  """All seeds of a variant.

  Attributes:
    label: of the variant.
    top_SCK: whose weighted sums over cases are divided; 0 in both where a case has no
      score.
    bottom_SCK: see `top_SCK`.
  """

  label: str
  top_SCK: np.ndarray
  bottom_SCK: np.ndarray


class Difference(NamedTuple):
  """Of two means, with its interval and the part of the replicates in which it is positive."""

  value: float
  low: float
  high: float
  positive: float


def is_flat(record: Mapping) -> bool:
  """Whether a record is of images (2-D), which are scored by pooled IoU."""
  return record["scores"]["axes"] == 2


def row_scores(record: Mapping) -> dict:
  """Of one training: `classes` (Dice, or pooled IoU of images), `mean_dice`, `mean_iou`."""
  scores = record["scores"]
  dice, _ = _weighted(*_mean_terms(scores, "dice"))
  iou, mean_iou = _weighted(*_pooled_terms(scores))
  flat = is_flat(record)
  others = {f"mean_{name}": nan_mean(_weighted(*_mean_terms(scores, name))[0])
            for name in own_metrics(record)}
  return {"classes": (iou if flat else dice).tolist(), "mean_dice": nan_mean(dice), **others,
          "mean_iou": mean_iou if flat else nan_mean(_weighted(*_mean_terms(scores, "iou"))[0])}


def own_metrics(record: Mapping) -> list[str]:
  """The metrics of a record besides Dice and IoU, which are in every one."""
  return [name for name in METRICS if name in record["scores"] and name not in ("dice", "iou")]


def groups(records: Sequence[Mapping]) -> list[Group]:
  """Records by variant, in order of appearance; images are scored by pooled IoU.

  Raises:
    ValueError: records of other cases or classes.
  """
  first = records[0]["scores"]
  by_label: dict[str, list] = {}
  for record in records:
    scores = record["scores"]
    if scores["cases"] != first["cases"] or set(scores["classes"]) != set(first["classes"]):
      raise ValueError(f"{record['label']} was scored on other cases or classes than "
                       f"{records[0]['label']}")
    order = [scores["classes"].index(name) for name in first["classes"]]
    terms = _pooled_terms(scores) if is_flat(record) else _mean_terms(scores, "dice")
    by_label.setdefault(record["label"], []).append([term[:, order] for term in terms])
  return [Group(label, *map(np.stack, zip(*seeds, strict=True)))
          for label, seeds in by_label.items()]


def means(group: Group) -> tuple[np.ndarray, np.ndarray]:
  """Mean and sd over seeds of every class and, last, of their mean: each [K + 1].

  The sd is nan with one seed.
  """
  scores_SK = _with_mean(_ratio(group.top_SCK.sum(1), group.bottom_SCK.sum(1)))
  sd = np.full(scores_SK.shape[1], np.nan)
  if len(scores_SK) > 1:
    sd = scores_SK.std(axis=0, ddof=1)
  return nan_mean(scores_SK, 0), sd


def replicates(found: Sequence[Group], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
  """Bootstrap replicates of the mean over seeds of every class and, last, of their mean.

  Returns:
    float64 [groups, resamples, K + 1]; the cases of a replicate are the same for all groups.
  """
  rng = np.random.default_rng(seed)
  cases = found[0].top_SCK.shape[1]
  out = np.empty((len(found), resamples, found[0].top_SCK.shape[2] + 1))
  for start in range(0, resamples, _CHUNK):
    size = min(_CHUNK, resamples - start)
    weights_BC = rng.multinomial(cases, np.full(cases, 1 / cases), size).astype(np.float64)
    for number, group in enumerate(found):
      seeds = len(group.top_SCK)
      share_BS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size) / seeds
      top, bottom = (np.einsum("bc,sck->bsk", weights_BC, term, optimize=True)
                     for term in (group.top_SCK, group.bottom_SCK))
      scores_BSK = _with_mean(_ratio(top, bottom))
      valid = ~np.isnan(scores_BSK)
      part = share_BS[..., None] * valid
      out[number, start:start + size] = _ratio((part * np.where(valid, scores_BSK, 0)).sum(1),
                                               part.sum(1))
  return out


def interval(values: np.ndarray) -> tuple[float, float]:
  """Percentile interval of replicates; nan where no replicate has a value."""
  values = values[~np.isnan(values)]
  if not len(values):
    return float("nan"), float("nan")
  low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
  return float(low), float(high)


def differences(points: np.ndarray, drawn: np.ndarray, reference_points: np.ndarray,
                reference_drawn: np.ndarray) -> list[Difference]:
  """Every class and the mean of a variant against the reference.

  Args:
    points: of `means`, [K + 1].
    reference_points: see `points`.
    drawn: of `replicates`, [resamples, K + 1].
    reference_drawn: see `drawn`.
  """
  out = []
  for k, (point, other) in enumerate(zip(points, reference_points, strict=True)):
    d = drawn[:, k] - reference_drawn[:, k]
    d = d[~np.isnan(d)]
    positive = (np.mean(d > 0) + np.mean(d == 0) / 2) if len(d) else np.nan
    out.append(Difference(float(point - other), *interval(d), float(positive)))
  return out


def rank_probabilities(drawn_GB: np.ndarray) -> np.ndarray:
  """How often each variant has each rank, 1 the best: [groups, ranks]; equal ones share theirs.

  Args:
    drawn_GB: replicates of one number.
  """
  drawn_GB = np.where(np.isnan(drawn_GB), -np.inf, drawn_GB)
  count = len(drawn_GB)
  above = np.sum(drawn_GB[None] > drawn_GB[:, None], axis=1)  # [G, B]
  equal = np.sum(drawn_GB[None] == drawn_GB[:, None], axis=1)
  ranks = np.arange(count)[:, None, None]
  holds = (ranks >= above) & (ranks < above + equal)  # [R, G, B]
  return np.mean(holds / equal, axis=2).T


def nan_mean(values, axis=None):
  """Mean of what is not nan; nan where there is nothing."""
  values = np.asarray(values, np.float64)
  valid = ~np.isnan(values)
  mean = _ratio(np.where(valid, values, 0).sum(axis), valid.sum(axis))
  return float(mean) if np.ndim(mean) == 0 else mean


def _mean_terms(scores: Mapping, key: str) -> tuple[np.ndarray, np.ndarray]:
  values = np.array(scores[key], np.float64)  # None is nan
  valid = ~np.isnan(values)
  return np.where(valid, values, 0), valid.astype(np.float64)


def _pooled_terms(scores: Mapping) -> tuple[np.ndarray, np.ndarray]:
  tp, fp, fn = (np.nan_to_num(np.array(scores[key], np.float64)) for key in ("tp", "fp", "fn"))
  return tp, tp + fp + fn


def _weighted(top_CK: np.ndarray, bottom_CK: np.ndarray) -> tuple[np.ndarray, float]:
  classes = _ratio(top_CK.sum(0), bottom_CK.sum(0))
  return classes, nan_mean(classes)


def _with_mean(scores: np.ndarray) -> np.ndarray:
  return np.concatenate([scores, np.asarray(nan_mean(scores, -1))[..., None]], axis=-1)


def _ratio(top, bottom) -> np.ndarray:
  top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
  return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)
