"""Scores of a trial as arrays, from which the tables of a study are made."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.run import evaluate
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.infer import sliding_window
from condseg_jax.loading import load
from condseg_jax.metrics import METRICS
from condseg_jax.predictor import Predictor
from condseg_jax.report.display import truth_map

COUNTED = ("tp", "fp", "fn")


def predictor_of(workdirs: Sequence) -> Predictor:
  """Returns the predictor of a trial, from the last checkpoints of its trainings."""
  members = [load(workdir, "last") for workdir in workdirs]
  return members[0] if len(members) == 1 else specialists(members)


def parameters(predictor: Predictor) -> int:
  """Returns the number of learned parameters of all members."""
  members = predictor.variables.get("members", (predictor.variables,))
  return sum(leaf.size for variables in members for leaf in jax.tree.leaves(variables["params"]))


def score(predictor: Predictor, cases: Sequence[LabelledCase], *, fusion: str,
          groups: Sequence[str] = (), keep: Callable[..., None] | None = None) -> dict:
  """Scores a network on labelled cases, with all of its classes competing.

  Args:
    predictor: the network.
    cases: cases to score on.
    fusion: see `Predictor.predict`.
    groups: group of each case, e.g. its scanner; confusions are counted per group.
    keep: called with image, truth (label map, 255 unlabelled) and prediction of the first case,
      all in canonical axes.

  Returns:
    JSON-ready dict: `cases`, `classes`, `groups`, `axes`; the fast metrics (rounded, None if
    undefined), `tp`, `fp`, `fn` (voxels), each a list over cases of lists over classes, None where
    a case does not annotate a class; `confusion`: group → see `confusion`.
  """
  groups = list(groups) or [""] * len(cases)
  group_of = dict(zip((case.id for case in cases), groups, strict=True))
  classes = [n for n in predictor.table.names if any(n in case.annotated for case in cases)]
  confusions, axes = {}, 0

  def on_case(case_id, volume, prediction, truth, _):
    nonlocal axes
    axes = volume.ndim
    counts = confusion(prediction.masks, truth, classes)
    group = group_of[case_id]
    confusions[group] = confusions.get(group, 0) + counts
    if keep is not None and case_id == cases[0].id:
      known = {name: mask for name, mask in truth.items() if name in predictor.table.names}
      shown = Volume(truth_map(known, predictor.table), volume.affine)
      keep(*(to_canonical(v) for v in (volume, shown, prediction.label)))

  rows = evaluate(predictor, cases, fast=True, fusion=fusion, on_case=on_case)
  found = {(row.case, row.class_name): row.metrics for row in rows}

  def values(key, rounded):
    return [[rounded(found[case.id, name][key]) if (case.id, name) in found else None
             for name in classes] for case in cases]

  return {"cases": [case.id for case in cases], "classes": classes, "groups": groups,
          "axes": axes, **{key: values(key, _number) for key, m in METRICS.items() if m.fast},
          **{key: values(key, int) for key in COUNTED},
          "confusion": {group: counts.tolist() for group, counts in confusions.items()}}


def confusion(masks: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray],
              classes: Sequence[str]) -> np.ndarray:
  """Counts voxels by true class (rows) and predicted class (columns).

  The last row and the last column are "no class". A voxel that is unlabelled for some class counts
  only in the rows of classes it is known to belong to; with overlapping masks a voxel counts in
  several columns.

  Returns:
    int64 [K + 1, K + 1].
  """
  table = np.zeros((len(classes) + 1,) * 2, np.int64)
  shape = next(iter(truth.values())).shape
  known, taken = np.ones(shape, bool), np.zeros(shape, bool)
  chosen = [masks[name] for name in classes]
  for mask in chosen:
    taken |= mask
  for row, name in enumerate(classes):
    if name not in truth:
      known[:] = False
      continue
    true = truth[name] == POSITIVE
    known &= ~true & (truth[name] != UNLABELLED)
    table[row] = [*(np.count_nonzero(true & mask) for mask in chosen),
                  np.count_nonzero(true & ~taken)]
  table[-1] = [*(np.count_nonzero(known & mask) for mask in chosen),
               np.count_nonzero(known & ~taken)]
  return table


def _number(value: float) -> float | None:
  return None if math.isnan(value) else float(f"{value:.6g}")


# --- Several specialist networks combined into one predictor.
def specialists(predictors: Sequence[Predictor]) -> Predictor:
  """Combines specialists into one predictor that routes each class to its network.

  The members' probabilities compete for voxels as those of a single network do. An image is encoded
  once per class.

  Args:
    predictors: members with the same plan and disjoint classes; the class order follows theirs.

  Raises:
    InputError: the plans differ, or two members share a class.
  """
  first = predictors[0]
  names = [name for p in predictors for name in p.table.names]
  for p in predictors:
    if p.plan != first.plan:
      raise InputError("specialists", f"see images differently: {p.plan} and {first.plan}",
                       "train them with the same data.root, data.spacing and data.subvolume")
  if len(set(names)) < len(names):
    raise InputError("specialists", f"two of them know a class: {', '.join(names)}",
                     "give every class to one, with data.include_classes")
  no_mirror = {c.name: c.no_mirror for p in predictors for c in p.table.classes}
  table = ClassTable.create(names, no_mirror=no_mirror, capacity=max(64, len(names)))
  places = [(p.functions or sliding_window.window_functions(p.model), number, local)
            for number, p in enumerate(predictors) for local in range(len(p.table))]

  def encode(variables, image_BDHWC, class_id_K):
    functions, number, local = places[int(class_id_K[0])]
    return functions.encode(variables["members"][number], image_BDHWC, np.array([local], np.int32))

  def decode(variables, features, class_id_K):
    functions, number, local = places[int(class_id_K[0])]
    return functions.decode(variables["members"][number], features, np.array([local], np.int32))

  # One class per call, whose network's encoder must run: as if the encoder saw the class.
  functions = sliding_window.WindowFunctions(encode, decode, True, (1,))
  return Predictor(
      first.model, {"members": tuple(p.variables for p in predictors)}, table, first.plan,
      first.step, first.training,
      tuple(a for a in first.mirror if all(a in p.mirror for p in predictors)),
      {name: prior for p in predictors for name, prior in p.priors.items()},
      {name: done for p in predictors for name, done in p.cleaning.items()}, functions)
