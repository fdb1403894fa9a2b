"""Descriptions of datasets, which users write, and dataset.json, which comes with a download.

They have no checksum, and every valid value is meant: what is judged is that each of them is
refused in one line or works, that no part is passed over in silence, and that a dataset.json reads
nothing outside of its folder.
"""

import gzip
import json
from pathlib import Path
import tempfile

import numpy as np

from condseg_jax.datasets.discover import reader
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import validated
from condseg_jax.datasets.verify.raw_checks import verify
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target

AFFINE = np.array([[0, 0, -1.0, 20], [0, -1.0, 0, 30], [2.0, 0, 0, -10], [0, 0, 0, 1]])
YAML = b"""modality: ct
images: "images/{id}.nii.gz"
labels: "labels/{id}.nii.gz"
classes: {1: ball, 2: box}
annotated: [ball, box]
void: [255]
splits: {train: ["a*"], val: [b1]}
patient: "^([^-]+)"
no_mirror: {ball: [W]}
unlabelled: skip
"""
MSD = {"name": "d", "modality": {"0": "CT"},
       "labels": {"0": "background", "1": "ball", "2": "box"},
       "training": [{"image": f"./images/{i}.nii.gz", "label": f"./labels/{i}.nii.gz"}
                    for i in ("a1", "a2", "b1")]}
SPLITS = {"train": ["a1", "a2"], "val": ["b1"]}
NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1, "box": 2},
          "numTraining": 3, "file_ending": ".nii.gz"}


def cases() -> dict[str, tuple[bytes, bytes]]:
  """Returns id → image and label file of three small cases."""
  made = {}
  with tempfile.TemporaryDirectory() as folder:
    for number, case_id in enumerate(("a1", "a2", "b1")):
      rng = np.random.default_rng(number)
      label = np.zeros((8, 12, 12), np.uint8)
      label[2:5, 2:6, 2:6], label[2:5, 7:11, 7:11] = 1, 2
      image = (100.0 * (label > 0) + rng.normal(0, 20, label.shape)).astype(np.int16)
      parts = []
      for array in (image, label):
        write_nifti(f"{folder}/x.nii", Volume(array, AFFINE), label=array is label)
        parts.append(gzip.compress(Path(folder, "x.nii").read_bytes(), mtime=0))
      made[case_id] = parts[0], parts[1]
  return made


def msd_folder() -> dict[str, bytes]:
  """Returns a dataset in MSD layout."""
  files = {"dataset.json": json.dumps(MSD, indent=1).encode(),
           "splits.json": json.dumps(SPLITS, indent=1).encode()}
  for case_id, (image, label) in cases().items():
    files |= {f"images/{case_id}.nii.gz": image, f"labels/{case_id}.nii.gz": label}
  return files


class Description(Target):
  """Descriptions in YAML, dataset.json of MSD with splits.json, and that of nnU-Net."""

  name = "description"
  command_name = "prepare"
  codes = (1, 2)
  seconds = 30.0
  every = 20

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the datasets."""
    msd = msd_folder()
    described = {name: content for name, content in msd.items() if name.endswith(".gz")}
    nnunet = {"dataset.json": json.dumps(NNUNET, indent=1).encode()}
    for case_id, (image, label) in cases().items():
      nnunet |= {f"imagesTr/{case_id}_0000.nii.gz": image, f"labelsTr/{case_id}.nii.gz": label}
    return {"description": described | {"mine.yaml": YAML}, "msd": msd, "nnunet": nnunet}

  def places(self, files: Files) -> list[Place]:
    """Returns the texts: their values, and their bytes."""
    places = []
    for name in ("mine.yaml", "dataset.json", "splits.json"):
      if name in files:
        kind = "yaml" if name == "mine.yaml" else "json"
        places += [Place(name, kind, (), 5), Place(name)]
    return places

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Reads the dataset as condseg-prepare and condseg-verify do."""
    source = self._source(variant, folder)
    verify(source, reader(variant), progress=False)  # its findings are no failure of the reader
    read = validated(reader(variant)(source))
    content = _described(read, folder)
    inside = [path for case in read.cases for path in (case.image, *(x.path for x in case.labels))]
    strange = [name for name in read.classes if not name.isprintable() or len(name) > 1000]
    if variant != "description" and not all(folder.resolve() in path.resolve().parents
                                            for path in inside):
      content["unsound"] = "reads a file outside of the dataset"
    elif strange:
      content["unsound"] = f"takes the class name {strange[0][:40]!r}"
    return 0, content

  def command(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Prepares the dataset."""
    from condseg_jax.cli import prepare
    code = prepare.main(["condseg-prepare", f"--format={variant}", f"--out={out / 'store'}",
                         f"--source={self._source(variant, folder)}", "--spacing=2,1,1"])
    if code:
      return code, {}
    manifest = json.loads((out / "store" / "manifest.json").read_text())
    return code, {"cases": [case["sha256"] for case in manifest["cases"]]}

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts every dataset that was read: the text is the only statement of its meaning."""
    return "a description of another dataset"

  def subjects(self, files: Files) -> list[str]:
    """Returns the files, the folder, and the classes, which have errors of their own."""
    return [*super().subjects(files), "class "]

  def _source(self, variant: str, folder: Path) -> Path:
    return folder / "mine.yaml" if variant == "description" else folder


def _described(read: RawFolder, folder: Path) -> dict:
  return {"modality": read.modality, "classes": list(read.classes),
          "no_mirror": {k: list(v) for k, v in read.no_mirror.items()},
          "cases": [[c.id, str(c.image.relative_to(folder)) if folder in c.image.parents else
                     str(c.image), c.dataset, c.split, c.group, c.series,
                     [x.annotation.to_json() for x in c.labels]] for c in read.cases]}
