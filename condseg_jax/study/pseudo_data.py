"""Datasets of studies with pseudo-masks: by cross-validated networks that are trained on first use.

The same networks label the data for all seeds of a study.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

from condseg_jax.config import Config
from condseg_jax.configs import phantom
from condseg_jax.data.store import open_prepared
from condseg_jax.data.store import Store
from condseg_jax.datasets.synthetic.anatomy import ORGANS
from condseg_jax.pseudo.rules import Rules
from condseg_jax.pseudo.write import make_teacher
from condseg_jax.pseudo.write import write_store
from condseg_jax.train.folds import train_folds


@dataclasses.dataclass(frozen=True)
class Teaching:
  """How a dataset gets its pseudo-masks.

  Attributes:
    dataset: the dataset without them.
    settings: of the networks, in addition to the config `phantom`: dotted field → value.
    folds: number of networks.
    rules: thresholds of the masks.
  """

  dataset: str
  settings: Mapping[str, object]
  folds: int = 2
  rules: Rules = Rules()


TEACHINGS = {
    "phantom_five_pseudo": Teaching("phantom_five", {
        "data.classes": ORGANS, "data.presets": {}, "train.steps": 800,
        "model.channels": 8, "model.growth": 8, "model.dtype": "float32"}),
}


def write_pseudo_masks(teaching: Teaching, root: Path, workdir: Path, out: Path) -> list[Store]:
  """Writes stores again with pseudo-masks; resumes.

  Args:
    teaching: networks and thresholds.
    root: folder of the prepared stores.
    workdir: folder for the networks.
    out: folder for the new stores.

  Raises:
    InputError: see `train.folds.train_folds` and `pseudo.write`.
    KeyboardInterrupt: after a SIGTERM during the training.
  """
  stores = open_prepared(root)
  config = Config.from_dict(phantom.get_config().to_dict()).override(
      {**teaching.settings, "data.root": str(root)})
  if train_folds(config, stores, workdir, teaching.folds) is None:
    raise KeyboardInterrupt
  teacher = make_teacher(workdir, stores, teaching.rules)
  return [write_store(teacher, store, out / Path(store.root).relative_to(root))
          for store in stores]
