"""What the service tells clients of MONAI Label about itself."""

from collections.abc import Collection
from collections.abc import Mapping

import condseg_jax
from condseg_jax.classes import ClassTable
from condseg_jax.serve.monai.datastore import STRATEGIES
from condseg_jax.serve.request import HttpError

MODEL = "segmentation"  # name of the model of all classes; presets are models, too
EMPTY = {"total": 0, "completed": 0, "label_tags": {}}


def models(table: ClassTable) -> dict[str, tuple[str, ...]]:
  """Returns model → its classes: one model of all classes, and one for each preset."""
  return {MODEL: tuple(table.names), **{name: tuple(ids) for name, ids in table.presets.items()}}


def info(table: ClassTable, fusions: Collection[str], status: Mapping) -> dict:
  """Returns the answer to GET /info/.

  Args:
    table: classes of the network.
    fusions: supported values of `fusion`.
    status: of the datastore, `EMPTY` without one.
  """
  values = {name: i + 1 for i, name in enumerate(table.names)}
  # Programs show these as a form, and send them back as parameters; a list is a choice.
  config = {"classes": "", "threshold": 0.5, "force": False,
            "fusion": [name for name in fusions if name != "independent"]}
  described = {
      name: {"type": "segmentation", "dimension": 3, "config": config,
             "labels": {one: values[one] for one in classes},
             "description": f"condseg_jax {condseg_jax.__version__}: {len(classes)} classes"}
      for name, classes in models(table).items()}
  return {"name": "condseg_jax", "version": condseg_jax.__version__,
          "description": "class-conditional segmentation", "labels": list(table.names),
          "models": described, "trainers": {}, "scoring": {}, "train_stats": {},
          "strategies": {name: {"description": text} for name, (text, _) in STRATEGIES.items()},
          "datastore": dict(status), "config": {}}


def training_error() -> HttpError:
  """Returns the error for requests to train."""
  return HttpError(501, "train", "training is a command, not a request",
                   "run condseg-init RAW --modality=… and the condseg-train command that it names")
