"""Whose predictions become the pseudo-masks of a case: never those of a network that trained on it.

The source of a case is the number of a member, or None for the mean of all members.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import tempfile
from typing import Any

import numpy as np

from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.fingerprint import same_fingerprint
from condseg_jax.data.patients import patient_of_case
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.infer.probability_store import read_probability
from condseg_jax.loading import load
from condseg_jax.losses import RIVALS
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.load import read_model
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.plan import same_spacing
from condseg_jax.predictor import Predictor

# (class, box) → its probability, float32
Reader = Callable[[str, Sequence[slice]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class OneNetwork:
  """A network that has seen none of the images, and predicts all of them.

  Attributes:
    predictor: the network.
    digest: of its parameters.
  """

  predictor: Predictor
  digest: str


def origin(run: FoldRun | OneNetwork) -> dict[str, Any]:
  """Returns what a record says of the networks, JSON-compatible."""
  if isinstance(run, OneNetwork):
    return {"run": "", "network": run.digest}
  return {"run": str(run.folder), "seed": run.seed, "folds": run.count, "dice": run.scores["dice"]}


def sources(run: FoldRun | OneNetwork, store: Store) -> dict[str, int | None]:
  """Returns the id of every training case of a store → its source.

  That of a case of a cross-validated run is the member that did not train on it, and that of
  another image of one of its patients is the same. All members predict what none of them has seen.
  """
  training = [case for case in store.cases if case.split == "train"]
  if isinstance(run, OneNetwork):
    return dict.fromkeys(case.id for case in training)
  known = [(case, run.places[case.key].fold) for case in training if case.key in run.places]
  fold_of = {patient_of_case(case): fold for case, fold in known if patient_of_case(case)}
  own = {case.id: fold for case, fold in known}
  return {case.id: own.get(case.id, fold_of.get(patient_of_case(case))) for case in training}


def check_data(run: FoldRun, stores: Sequence[Store]) -> ModelRecord:
  """Returns the record of a run's first member, if it fits the data.

  Raises:
    InputError: the run has not finished, or with an objective without probabilities; data of
      another kind, without cases of the run, or changed since; classes that the run does not know.
  """
  if not run.scores:
    raise InputError(run.folder, "has not finished", "run the training again, which resumes",
                     usage=True)
  record = read_model(run.folder, members=1).record
  if record.config.loss.objective in RIVALS:
    raise InputError(run.folder, f"was trained with the objective {record.config.loss.objective!r},"
                     " in which the probability of a class alone has no meaning",
                     "train with 'dice_bce'", usage=True)
  for store in stores:
    store.check_overlaps()
    if store.modality != record.plan.modality or not same_spacing(store.spacing,
                                                                  record.plan.spacing):
      raise InputError(store.root, f"has the modality {store.modality} and spacing "
                       f"{store.spacing}, the run {record.plan.modality} and {record.plan.spacing}",
                       "prepare it as the data of the run", usage=True)
    for case in store.cases:
      for name in case.annotated:
        if case.split == "train" and name not in record.table.names:
          raise InputError(store.root, f"annotates {name!r}, which {run.folder} does not know",
                           f"its classes: {', '.join(record.table.names)}; train it with all data",
                           usage=True)
  cases = [case for store in stores for case in store.cases
           if case.split == "train" and case.key in run.places]
  missing = sorted(set(run.places) - {case.key for case in cases})
  if missing:  # the range of true volumes is that of all data
    raise InputError("data", f"lacks {len(missing)} cases of {run.folder}, such as {missing[0]}",
                     "give all data that it was trained on", usage=True)
  if record.training and not same_fingerprint(record.training, fingerprint(cases)["pooled"]):
    raise InputError(run.folder, "is older than the data, which have changed since",
                     "train it again in another folder", usage=True)
  return record


@contextlib.contextmanager
def probabilities(run: FoldRun | OneNetwork, store: Store, case: Case, source: int | None,
                  predictor: Callable[[int | None], Predictor]) -> Iterator[Reader]:
  """Yields the probabilities of the classes of a case: those that the run kept, or predicted anew.

  Args:
    run: the run.
    store: store of the case.
    case: the case.
    source: its source.
    predictor: loads a source.

  Raises:
    InputError: kept probabilities are damaged, or of an image of another shape.
  """
  with contextlib.ExitStack() as stack:
    folder = None
    if isinstance(run, FoldRun) and case.key in run.places:
      folder = run.out_of_fold(case.key, case.shape).probabilities
    if folder is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="condseg-"))
      predictor(source).predict(store.read_volume(case), clean=False, probabilities=str(folder))
    yield lambda name, box: read_probability(folder, name, box)


def load_source(run: FoldRun | OneNetwork, source: int | None) -> Predictor:
  """Loads a member, or all of them as an ensemble."""
  if isinstance(run, OneNetwork):
    return run.predictor
  return load(run.folder if source is None else run.member(source))

