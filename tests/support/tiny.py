"""A tiny dataset and config that train in seconds; shared by the tests of whole runs."""

import json
from pathlib import Path

import numpy as np

from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume

# Index → RAS+ world of canonical axes (S, P, L) with 2 mm slices.
AFFINE = np.array([[0, 0, -1.0, 20], [0, -1.0, 0, 30], [2.0, 0, 0, -10], [0, 0, 0, 1]])
SHAPE = (8, 20, 18)
ORGANS = {"ball": 1, "box": 2}


def case(rng) -> tuple[np.ndarray, np.ndarray]:
  """A bright ball at the left and a bright box at the right, in noise: image, label map."""
  d, h, w = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
  label = np.zeros(SHAPE, np.uint8)
  centre = (4 + rng.integers(-1, 2), 10 + rng.integers(-3, 4), 5)
  label[((d - centre[0]) * 2) ** 2 + (h - centre[1]) ** 2 + (w - centre[2]) ** 2 < 16] = 1
  y = rng.integers(3, 12)
  label[2:6, y:y + 6, 11:16] = 2
  image = 100.0 * (label > 0) + rng.normal(0, 20, SHAPE)
  return np.rint(image).astype(np.int16), label


def write_msd(folder: Path, ids, labels, seed=0) -> Path:
  """A folder in MSD layout whose labels hold the named classes only."""
  (folder / "imagesTr").mkdir(parents=True)
  (folder / "labelsTr").mkdir()
  training = []
  for number in ids:
    image, label = case(np.random.default_rng((seed, number)))
    shown = np.isin(label, [ORGANS[name] for name in labels]) * label
    values = {ORGANS[name]: i + 1 for i, name in enumerate(labels)}
    stored = sum((shown == old) * np.uint8(new) for old, new in values.items()).astype(np.uint8)
    name = f"case_{number:02d}.nii.gz"
    write_nifti(folder / "imagesTr" / name, Volume(image, AFFINE))
    write_nifti(folder / "labelsTr" / name, Volume(stored, AFFINE), label=True)
    training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
  names = {"0": "background", **{str(i + 1): name for i, name in enumerate(labels)}}
  (folder / "dataset.json").write_text(json.dumps(
      {"name": folder.name, "modality": {"0": "CT"}, "labels": names, "training": training}))
  return folder


def write_datasets(root: Path) -> Path:
  """ROOT/train/{ball,box} annotate one class each, ROOT/test both."""
  write_msd(root / "train" / "ball", range(4), ["ball"])
  write_msd(root / "train" / "box", range(4, 8), ["box"])
  write_msd(root / "test", range(8, 10), ["ball", "box"])
  return root


def overrides(root: Path, **changes) -> list[str]:
  """Flags that make a small run of the base config on these data."""
  settings = {
      "data.root": root / "train", "data.subvolume": "(8,16,16)", "data.hold_out": 0.25,
      "model.strides": "((1,2,2),)", "model.layers_per_level": "(1,1)", "model.channels": 8,
      "model.growth": 8, "model.dtype": "float32",  # as rounded with one device as with two
      "train.steps": 6, "train.log_every": 2, "train.eval_every": 3,
      "optimizer.warmup": 2, "optimizer.learning_rate": 0.01, "data.presets.all": None,
      **changes}
  return [f"--config.{key}={value}" for key, value in settings.items() if value is not None]
