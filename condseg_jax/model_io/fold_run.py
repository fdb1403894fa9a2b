"""A cross-validated run: its members, what each has seen, and its out-of-fold predictions.

    RUN/folds.json                               split, scores, component filters, calibration and
                                                 quality
    RUN/fold_0 … RUN/fold_4                      the members, each a run
    RUN/out_of_fold/DATASET/ID.npz               label map of a case by the member that did not see
                                                 it, on the grid of the store; written last
    RUN/out_of_fold/DATASET/ID_probabilities.zarr  if requested

    run = FoldRun.open("RUN")
    for key in run.places:
      found = run.out_of_fold(key)
      found.member, found.mask("liver"), found.probability("liver")
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import json
from typing import Any
from typing import NamedTuple
from urllib.parse import quote
import zipfile

from etils import epath
import numpy as np

from condseg_jax.data import folds
from condseg_jax.data.folds import Place
from condseg_jax.data.selection import Fold
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.infer.prediction import Masks
from condseg_jax.infer.prediction import Prediction
from condseg_jax.infer.probability_store import read_probability
from condseg_jax.system.atomic import replacing
from condseg_jax.system.atomic import write_text

RECORD = "folds.json"
VERSION = 1  # of RECORD and of the predictions
_RESULTS = ("scores", "cleaning", "calibration", "quality")


class Voxels(NamedTuple):
  """Voxels of a class near its border, for calibration.

  Attributes:
    logit: of the probability, before the classes compete; float32 [N].
    positive: whether the voxel is in the mask; bool [N].
    weight: float32 [N]; 1 in sum over a case.
  """

  logit: np.ndarray
  positive: np.ndarray
  weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class OutOfFold:
  """What the member that did not see a training case finds in it.

  No component filter and no prior was applied.

  Attributes:
    case: see `data.store.Case.key`.
    member: number of the member.
    step: its checkpoint.
    label: label map on the grid of the store, 0 for background.
    names: class → its value in the label map; all classes of the network.
    soft_dice: class → soft Dice confidence (see `infer.prediction`), for classes that were found.
    voxels: annotated class → its voxels near the border, for classes that the case has.
    probabilities: folder of the probabilities; None if they were not kept.
  """

  case: str
  member: int
  step: int
  label: Volume
  names: Mapping[str, int]
  soft_dice: Mapping[str, float] = dataclasses.field(default_factory=dict)
  voxels: Mapping[str, Voxels] = dataclasses.field(default_factory=dict)
  probabilities: epath.Path | None = None

  def mask(self, name: str) -> np.ndarray:
    """Returns the mask of a class, bool [*shape]; masks do not overlap."""
    return self.label.array == self.names[name]

  def probability(self, name: str, box: Sequence[slice] = ()) -> np.ndarray:
    """Returns the probability of a class before the classes compete, or the part in a box.

    Returns:
      float32 [*shape], with the precision of float16.

    Raises:
      InputError: probabilities were not kept.
    """
    if self.probabilities is None:
      raise InputError(self.case, "has no out-of-fold probabilities",
                       "train with `probabilities`; a finished run only predicts again", usage=True)
    return read_probability(self.probabilities, name, box)

  @property
  def prediction(self) -> Prediction:
    """The same as a prediction, without confidence."""
    return Prediction(self.label, self.names, Masks(tuple(self.names), self.mask),
                      dict.fromkeys(self.names))


@dataclasses.dataclass(frozen=True)
class FoldRun:
  """A cross-validated run.

  Attributes:
    folder: its folder.
    seed: seed of the split.
    count: number of members.
    places: training case → the member that did not see it, and its patient.
    scores: cross-validated scores, see `evaluate.cross_validation`; {} until all have finished.
    cleaning: class → fields of `infer.postprocess.ComponentFilter`, tuned on the out-of-fold
      predictions.
    calibration: class → see `evaluate.calibration.calibrate`.
    quality: class → fields of `infer.prediction.DiceMap`, for classes with enough cases.
  """

  folder: epath.Path
  seed: int
  count: int
  places: Mapping[str, Place]
  scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  cleaning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  quality: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def open(cls, folder) -> "FoldRun":
    """Opens a cross-validated run.

    Raises:
      InputError: the folder holds none, or a record that is damaged or of another version.
    """
    path = epath.Path(folder) / RECORD
    try:
      tree = json.loads(path.read_text(encoding="utf-8"))
      if tree["version"] != VERSION:
        raise InputError(path, f"is of version {tree['version']}, known is {VERSION}",
                         "update condseg_jax, or train again")
      places = {key: Place(int(fold), str(patient))
                for key, (fold, patient) in tree["cases"].items()}
      return cls(epath.Path(folder), int(tree["seed"]), int(tree["folds"]), places,
                 *(dict(tree.get(key, {})) for key in _RESULTS))
    except InputError:
      raise
    except FileNotFoundError as error:
      raise InputError(folder, f"is not a cross-validated run: {RECORD} is missing",
                       "train it with `folds`", usage=True) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(path, f"is damaged ({error!r})", "train again in another folder") from error

  def write(self) -> None:
    """Writes the record."""
    tree = {"version": VERSION, "seed": self.seed, "folds": self.count,
            **{key: getattr(self, key) for key in _RESULTS},
            "cases": {key: list(place) for key, place in self.places.items()}}
    write_text(self.folder / RECORD, json.dumps(tree, indent=1))

  @property
  def scalings(self) -> dict[str, dict[str, float]]:
    """Class → scaling, as in `ModelRecord.calibration`; without classes left as they are."""
    return {name: {key: entry[key] for key in ("slope", "intercept")}
            for name, entry in self.calibration.items() if "slope" in entry}

  def member(self, number: int) -> epath.Path:
    """Returns the folder of a member, which is a run."""
    return self.folder / f"fold_{number}"

  def fold(self, number: int) -> Fold:
    """Returns the cases that a member trained on, and those that it did not see."""
    return folds.fold(self.places, number)

  def out_of_fold(self, case: str, shape: Sequence[int] = ()) -> OutOfFold:
    """Reads the prediction of a training case.

    Args:
      case: the case.
      shape: of its prepared image, to be compared with the prediction's; unchecked when empty.

    Raises:
      InputError: it is missing, damaged, or of an image of another shape.
    """
    found = self._read(case)
    if shape and found.label.array.shape != tuple(shape):
      raise InputError(self.folder, f"is older than the data: {case} has changed since",
                       "train it again in another folder", usage=True)
    return found

  def _read(self, case: str) -> OutOfFold:
    path, probabilities = self._path(case), self.probabilities_folder(case)
    try:
      with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
        names = {str(name): int(value) for name, value in
                 zip(content["classes"], content["values"], strict=True)}
        classes = [str(name) for name in content["classes"]]
        parts = [content[f"border_{key}"] for key in Voxels._fields]
        owners = content["border_class"]
        return OutOfFold(case, self.places[case].fold, int(content["step"]),
                         Volume(content["label"], content["affine"]), names,
                         {name: float(value) for name, value in
                          zip(classes, content["soft_dice"], strict=True) if not np.isnan(value)},
                         {classes[k]: Voxels(*(part[owners == k] for part in parts))
                          for k in np.unique(owners)},
                         probabilities if bool(content["probabilities"]) else None)
    except FileNotFoundError as error:
      raise InputError(path, "is missing", "run the training again, which resumes") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise InputError(path, f"is damaged ({error!r})",
                       "remove it and run the training again, which resumes") from error

  def write_out_of_fold(self, case: str, prediction: Prediction, step: int, *,
                        probabilities: bool, voxels: Mapping[str, Voxels] | None = None) -> None:
    """Writes the prediction of a training case.

    Args:
      case: the case.
      prediction: of the member that did not see it.
      step: checkpoint of the member.
      probabilities: whether they are complete in `probabilities_folder`.
      voxels: annotated class → its voxels near the border.
    """
    content, names = io.BytesIO(), list(prediction.names)
    drawn = voxels or {}
    none = Voxels(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.float32))
    arrays = {f"border_{key}": np.concatenate(parts) for key, parts in
              zip(Voxels._fields, zip(none, *drawn.values(), strict=True), strict=True)}
    owners = np.repeat([names.index(name) for name in drawn],
                       [len(one.logit) for one in drawn.values()]).astype(np.int32)
    soft_dice = [prediction.quality.get(name, {}).get("soft_dice", np.nan) for name in names]
    arrays |= {"label": prediction.label.array, "affine": prediction.label.affine,
               "classes": np.array(names), "values": np.array(list(prediction.names.values())),
               "soft_dice": np.array(soft_dice, np.float64), "border_class": owners,
               "step": np.array(step), "probabilities": np.array(probabilities)}
    np.savez_compressed(content, allow_pickle=False, **arrays)
    self._path(case).parent.mkdir(parents=True, exist_ok=True)
    with replacing(self._path(case)) as temporary:
      temporary.write_bytes(content.getvalue())

  def probabilities_folder(self, case: str) -> epath.Path:
    """Returns where the probabilities of a training case are, if they are kept."""
    return self._path(case, "_probabilities.zarr")

  def _path(self, case: str, ending: str = ".npz") -> epath.Path:
    dataset, _, case_id = case.rpartition("/")
    return self.folder / "out_of_fold" / quote(dataset, safe=" ") / f"{case_id}{ending}"


def is_fold_run(folder) -> bool:
  """Returns whether a folder is that of a cross-validated run."""
  return (epath.Path(folder) / RECORD).exists()
