"""Trained models: bundles and checkpoints.

Both record digests of all they hold: a checkpoint that differs and loads is a find. So is a bundle,
unless the digests in its manifest were made anew. Bundles are not signed, so that other weights
cannot be known then; numbers that no training can give (NaN, two classes of one name) can.
"""

import abc
import hashlib
import json
from pathlib import Path
import tempfile

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.formats import nifti
from condseg_jax.geometry import Volume
from condseg_jax.loading import load
from condseg_jax.model_io import bundle
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.network import initial_variables
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from tools.fuzz import mutate
from tools.fuzz.content import Damaged
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.packing import member_digests
from tools.fuzz.packing import member_names
from tools.fuzz.target import Target

SETTINGS = {"data.subvolume": (4, 8, 8), "model.strides": ((2, 2, 2),),
            "model.layers_per_level": (1, 1), "model.channels": 4, "model.growth": 4,
            "model.norm": "none", "data.presets": {"all": ("ball", "box")}}


def record() -> ModelRecord:
  """Returns the record of a small network for MR with two classes."""
  table = ClassTable.create(["ball", "box"], presets={"all": ["ball", "box"]})
  return ModelRecord(Config().override(SETTINGS), table, Plan("mr", (2.0, 1.0, 1.0), (4, 8, 8)))


def variables(seed: int = 0) -> dict:
  """Returns untrained parameters."""
  made = record()
  model = build_model(made.config.model, made.config.conditioning, made.table.codes)
  return initial_variables(model, seed, (*made.plan.subvolume, made.plan.channels))


def bundle_path(home: Path) -> Path:
  """Returns the path of a bundle below `home`, written if there is none yet."""
  path = home / "model.condseg"
  if not path.exists():
    facts = {"step": 2, "datasets": [], "images": None, "held_out": None}
    bundle.write_bundle(path, bundle.Bundle(record(), variables()["params"], facts))
  return path


def describe(predictor: Predictor) -> dict:
  """Describes a model: digests of its parameters and of its record, and what cannot be."""
  arrays = {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in
            jax.tree_util.tree_flatten_with_path(dict(predictor.variables))[0]}
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(name.encode() + arrays[name].tobytes())
  described = json.dumps(
      [predictor.table.to_json(), predictor.plan.to_json(), predictor.training,
       predictor.mirror, predictor.priors, predictor.cleaning, predictor.calibration,
       predictor.quality, str(predictor.model)],
      sort_keys=True, default=str)
  content = {"parameters": digest.hexdigest(), "step": predictor.step,
             "record": hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()}
  names, plan = predictor.table.names, predictor.plan
  numbers = [*plan.spacing, *plan.subvolume, plan.low, plan.high, plan.mean, plan.sd]
  if not all(np.isfinite(array).all() for array in arrays.values()):
    content["unsound"] = "parameters that are not finite"
  elif not all(isinstance(number, int | float) and abs(number) < 1e30 for number in numbers):
    content["unsound"] = "a plan of impossible numbers"  # NaN, too, compares as false
  elif len(set(names)) < len(names):
    content["unsound"] = "two classes of one name"
  return content


class Model(Target):
  """Common to bundles and checkpoints: loading, and predicting a small image."""

  seconds = 40.0
  memory = 3 << 30

  def warm_up(self) -> None:
    """Writes the image, and loads once."""
    array = np.random.default_rng(0).normal(60, 60, (12, 10, 6)).astype(np.int16)
    image = Volume(array, np.diag([-1.0, -1.0, 2.0, 1.0]))
    nifti.write_nifti(self.home / "image.nii", image)
    load(bundle_path(self.home))

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Loads the model."""
    return 0, describe(load(self.source(folder)))

  def command(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Predicts the image."""
    from condseg_jax.cli import predict
    code = predict.main(["condseg-predict", f"--workdir={self.source(folder)}", "--nopicture",
                         f"--input={self.home / 'image.nii'}", f"--output={out}"])
    if code:
      return code, {}
    mask = nifti.read_nifti(out / "image.nii.gz").array
    return code, {"mask": hashlib.sha256(mask.tobytes()).hexdigest()}

  def subjects(self, files: Files) -> list[str]:
    """Returns the files, and the image, which another model may have to refuse."""
    return [*super().subjects(files), "image.nii"]

  @abc.abstractmethod
  def source(self, folder: Path) -> Path:
    """Returns the bundle or the folder of the run."""


class Bundle(Model):
  """A bundle: the archive as a whole, and its members with digests made anew."""

  name = "bundle"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the bundle."""
    return {"bundle": {"a.condseg": bundle_path(self.home).read_bytes()}}

  def places(self, files: Files) -> list[Place]:
    """Returns the archive, and its members by their kind."""
    name, = files
    kinds = {"json": "json", "npy": "array"}
    # The record matters more than one of many arrays.
    inside = [Place(name, kinds.get(member.rpartition(".")[2], "bytes"), (f"bundle/{member}",),
                    1 if member.endswith("npy") else 8) for member in member_names(files[name])]
    return [Place(name, "bytes", (), 10), Place(name, "zip", (), 6), *inside]

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts other contents if the digests were made anew."""
    before, after = member_digests(intact["a.condseg"]), member_digests(files["a.condseg"])
    if not after or before == after:
      raise Damaged("its members are those of the intact one")
    return "digests made anew: bundles are not signed"

  def source(self, folder: Path) -> Path:
    """Returns the bundle."""
    return folder / "a.condseg"


class Checkpoint(Model):
  """The folder of a run with its last checkpoint and an earlier, better one."""

  name = "checkpoint"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the files of a run."""
    with tempfile.TemporaryDirectory() as folder:
      checkpoints = Checkpoints(folder)
      for step, score in ((2, 0.5), (4, 0.25)):
        optimizer = make_optimizer(record().config.optimizer)
        state = TrainState.create(variables(step), optimizer, ema=False)
        checkpoints.save(state.replace(step=state.step + step), record(), score)
      checkpoints.wait()
      checkpoints.close()
      return {"run": {path.relative_to(folder).as_posix(): path.read_bytes()
                      for path in sorted(Path(folder).rglob("*")) if path.is_file()}}

  def places(self, files: Files) -> list[Place]:
    """Returns the files of the last checkpoint: their bytes, JSON, and each as a whole."""
    names = [name for name in files if "/4/" in name]
    return [*(Place(name, "bytes", (), 3) for name in names),
            *(Place(name, mutate.FILE) for name in names),
            *(Place(name, "json") for name in names if files[name].startswith(b"{"))]

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts nothing: every file of a checkpoint has a digest."""
    raise Damaged("every file of a checkpoint has a digest")

  def source(self, folder: Path) -> Path:
    """Returns the folder of the run."""
    return folder
