"""Means over cases and seeds, and bootstrap intervals of their differences.

The score of one training is T_k for class k: the mean Dice over the cases where it is defined or,
for images, IoU pooled over all cases. With case weights w_c

    T_k(w) = Σ_c w_c D_ck / Σ_c w_c     or     T_k(w) = Σ_c w_c tp_ck / Σ_c w_c (tp + fp + fn)_ck

and the mean over classes is taken over the defined T_k. T is averaged over seeds s.

The bootstrap draws cases with replacement, identically for all variants because all are scored on
the same cases (paired); within a replicate it draws seeds with replacement for every variant and
averages over them:

    θ*_v = Σ_s (m*_vs / S) T_vs(w*),   w* ~ Multinomial(C; 1/C, …),   m*_v ~ Multinomial(S; 1/S, …)

A seed is drawn for all cases together, because its network is scored on all of them (the pigeonhole
bootstrap of crossed factors: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics
1(2), 2007). Differences θ*_v - θ*_r are taken within a replicate; intervals are percentile
intervals. With few seeds (three) they still understate seed variability: the variance of a
resampled mean is (S - 1)/S of the true one. With one seed they reflect the variation over cases
only.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from condseg_jax.evaluate.bootstrap import interval
from condseg_jax.evaluate.bootstrap import mean_of_known
from condseg_jax.evaluate.bootstrap import ratio
from condseg_jax.metrics import METRICS

RESAMPLES = 10_000
_CHUNK = 500  # replicates per batch


class Group(NamedTuple):
  """All seeds of a variant.

  Attributes:
    label: label of the variant.
    top_SCK: numerators, summed over cases with weights; 0 where a case has no score.
    bottom_SCK: denominators, likewise.
  """

  label: str
  top_SCK: np.ndarray
  bottom_SCK: np.ndarray


class Difference(NamedTuple):
  """Difference of two means, its interval, and the fraction of replicates where it is positive."""

  value: float
  low: float
  high: float
  positive: float


def is_flat(record: Mapping) -> bool:
  """Returns whether a record is of 2-D images, which are scored by pooled IoU."""
  return record["scores"]["axes"] == 2


def row_scores(record: Mapping) -> dict:
  """Returns `classes` (Dice, or pooled IoU for images), `mean_dice`, `mean_iou` of a training."""
  scores = record["scores"]
  dice, _ = _weighted(*_mean_terms(scores, "dice"))
  iou, mean_iou = _weighted(*_pooled_terms(scores))
  flat = is_flat(record)
  others = {f"mean_{name}": mean_of_known(_weighted(*_mean_terms(scores, name))[0])
            for name in own_metrics(record)}
  if not flat:
    _, mean_iou = _weighted(*_mean_terms(scores, "iou"))
  return {"classes": (iou if flat else dice).tolist(), "mean_dice": mean_of_known(dice), **others,
          "mean_iou": mean_iou}


def own_metrics(record: Mapping) -> list[str]:
  """Returns the metrics of a record other than Dice and IoU, which every record has."""
  return [name for name in METRICS if name in record["scores"] and name not in ("dice", "iou")]


def groups(records: Sequence[Mapping]) -> list[Group]:
  """Groups records by variant, in order of appearance; images are scored by pooled IoU.

  Raises:
    ValueError: records with different cases or classes.
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
  """Returns mean and sd over seeds of every class and, last, of their mean, each [K + 1].

  The sd is nan with one seed.
  """
  scores_SK = _with_mean(ratio(group.top_SCK.sum(1), group.bottom_SCK.sum(1)))
  sd = np.full(scores_SK.shape[1], np.nan)
  if len(scores_SK) > 1:
    sd = scores_SK.std(axis=0, ddof=1)
  return mean_of_known(scores_SK, 0), sd


def replicates(found: Sequence[Group], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
  """Draws bootstrap replicates of the mean over seeds of every class and, last, of their mean.

  Returns:
    float64 [groups, resamples, K + 1]; each replicate uses the same cases for all groups.
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
      scores_BSK = _with_mean(ratio(top, bottom))
      valid = ~np.isnan(scores_BSK)
      part = share_BS[..., None] * valid
      out[number, start:start + size] = ratio((part * np.where(valid, scores_BSK, 0)).sum(1),
                                               part.sum(1))
  return out


def differences(points: np.ndarray, drawn: np.ndarray, reference_points: np.ndarray,
                reference_drawn: np.ndarray) -> list[Difference]:
  """Compares every class and the mean of a variant with the reference.

  Args:
    points: means of the variant, see `means`, [K + 1].
    drawn: its replicates, see `replicates`, [resamples, K + 1].
    reference_points: means of the reference, [K + 1].
    reference_drawn: replicates of the reference, [resamples, K + 1].
  """
  out = []
  for k, (point, other) in enumerate(zip(points, reference_points, strict=True)):
    d = drawn[:, k] - reference_drawn[:, k]
    d = d[~np.isnan(d)]
    positive = (np.mean(d > 0) + np.mean(d == 0) / 2) if len(d) else np.nan
    out.append(Difference(float(point - other), *interval(d), float(positive)))
  return out


def rank_probabilities(drawn_GB: np.ndarray) -> np.ndarray:
  """Returns the probability of each rank, 1 the best, [groups, ranks]; ties share their ranks.

  Args:
    drawn_GB: replicates of one score.
  """
  drawn_GB = np.where(np.isnan(drawn_GB), -np.inf, drawn_GB)
  count = len(drawn_GB)
  above = np.sum(drawn_GB[None] > drawn_GB[:, None], axis=1)  # [G, B]
  equal = np.sum(drawn_GB[None] == drawn_GB[:, None], axis=1)
  ranks = np.arange(count)[:, None, None]
  holds = (ranks >= above) & (ranks < above + equal)  # [R, G, B]
  return np.mean(holds / equal, axis=2).T


def _mean_terms(scores: Mapping, key: str) -> tuple[np.ndarray, np.ndarray]:
  values = np.array(scores[key], np.float64)  # None becomes nan
  valid = ~np.isnan(values)
  return np.where(valid, values, 0), valid.astype(np.float64)


def _pooled_terms(scores: Mapping) -> tuple[np.ndarray, np.ndarray]:
  tp, fp, fn = (np.nan_to_num(np.array(scores[key], np.float64)) for key in ("tp", "fp", "fn"))
  return tp, tp + fp + fn


def _weighted(top_CK: np.ndarray, bottom_CK: np.ndarray) -> tuple[np.ndarray, float]:
  classes = ratio(top_CK.sum(0), bottom_CK.sum(0))
  return classes, mean_of_known(classes)


def _with_mean(scores: np.ndarray) -> np.ndarray:
  return np.concatenate([scores, np.asarray(mean_of_known(scores, -1))[..., None]], axis=-1)
