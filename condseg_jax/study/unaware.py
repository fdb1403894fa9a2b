"""A network that is scored on a class that it does not know: it never finds it."""

from collections.abc import Iterable
import dataclasses
from typing import Any

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.geometry import Volume
from condseg_jax.infer.prediction import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.train.new_classes import grown


class Unaware:
  """A predictor whose table has further classes, with empty masks; all else is that of `predictor`.

  Args:
    predictor: the network.
    names: the further classes.
  """

  def __init__(self, predictor: Predictor, names: Iterable[str]):
    self._predictor, self._names = predictor, tuple(names)
    self.table = grown(ClassTable.create(self._names), predictor.table)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._predictor, name)

  def predict(self, volume: Volume, **how: Any) -> Prediction:
    """Predicts; see `Predictor.predict`."""
    found = self._predictor.predict(volume, **how)
    empty = np.zeros(found.label.array.shape, bool)
    masks = {name: found.masks[name] for name in found.names}
    return dataclasses.replace(found, masks={**masks, **dict.fromkeys(self._names, empty)})


def aware(predictor: Predictor, cases: Iterable[LabelledCase]) -> Predictor:
  """Returns a predictor that can be scored on every class that the cases annotate."""
  annotated = dict.fromkeys(name for case in cases for name in case.annotated)
  missing = [name for name in annotated if name not in predictor.table.names]
  return Unaware(predictor, missing) if missing else predictor  # type: ignore[return-value]
