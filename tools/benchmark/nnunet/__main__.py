"""python -m tools.benchmark.nnunet --data=DIR --config=NAME --minutes=10 --out=FOLDER --json=FILE

Trains condseg_jax and nnU-Net for equal minutes on the same single-class datasets, one after the
other on all cores, and scores both on the same cases. nnU-Net has no training on partial labels:
it gets a network for each of the K classes, of 1/K of the minutes each, whose foreground
probabilities compete; and, as a bound, one network on all labels of all images. It is run by its
own commands, which have to be on the PATH (nnunetv2 2.8), on CPU, without mirroring on either side
and with a schedule that ends with its minutes (`trainers/minutes.py`). Two sizes of it are trained:
that of its own plan, and a small one of a quarter of the channels and batches of two.

Minutes of condseg_jax are those of the whole command with imports and compilation; those of nnU-Net
begin with its training. Its planning is stated apart. Running it again goes on.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

import numpy as np

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.datasets.carve import annotate_in_full
from condseg_jax.datasets.discover import discover
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from condseg_jax.metrics import dice
from tools.benchmark import __main__ as suites

TRAINER = "nnUNetTrainerMinutes"
PLANS, OWN, SMALL = "nnUNetPlans", "3d_fullres", "3d_small"
ALL = 99  # number of the dataset of all labels
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
CHANNEL = {"ct": "CT", "mr": "MRI"}


def main(argv: Sequence[str] | None = None) -> int:
  """Trains, scores and writes the rows."""
  parser = argparse.ArgumentParser(prog="tools.benchmark.nnunet", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", required=True, help="raw single-class datasets, as for a training")
  parser.add_argument("--test", default="", help="labelled cases to score; `val` of data if empty")
  parser.add_argument("--config", required=True, help="of condseg-train")
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--out", type=Path, required=True, help="folder for everything")
  parser.add_argument("--json", required=True, help="file for the rows")
  given = parser.parse_args(argv)
  if shutil.which("nnUNetv2_train") is None:
    parser.error("nnU-Net is not on the PATH: pip install nnunetv2==2.8.1")
  given.out.mkdir(parents=True, exist_ok=True)
  ours = train_ours(given.data, given.test or given.data, given.config, given.minutes, given.out)
  peer = Peer(given.out.resolve(), given.minutes)
  names, truths = peer.write_datasets(discover(given.data), discover(given.test or given.data))
  planning = peer.plan(len(names))
  rows = [_row("one network per class, small", ours, peer.score(names, truths, SMALL)),
          _row("one network per class, its own plan", ours, peer.score(names, truths, OWN)),
          _row("one network on all labels, small", ours, peer.bound(names, truths, SMALL))]
  for row in rows:
    row["name"] = f"mean Dice, {given.config}, {given.minutes:g} minutes: {row['name']}"
    row["planning_seconds"] = planning
  tree = {"device": suites.device(), "versions": suites.versions(),
          "settings": {**suites.settings(), "nnunetv2": _version()}, "rows": rows}
  Path(given.json).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
  print(json.dumps(rows, indent=1))
  return 0


def train_ours(data: str, test: str, config: str, minutes: float, out: Path) -> dict[str, float]:
  """Returns class → mean Dice of a run of condseg-train."""
  _call("condseg_jax.cli.train", f"--config={config}", f"--config.data.root={data}",
        f"--config.train.minutes={minutes}", f"--workdir={out / 'ours'}")
  _call("condseg_jax.cli.evaluate", f"--workdir={out / 'ours'}", f"--data={test}",
        f"--out={out / 'scores'}")
  summary = json.loads((out / "scores" / "summary.json").read_text(encoding="utf-8"))
  return {name: found["dice"]["mean"] for name, found in summary["classes"].items()}


class Peer:
  """nnU-Net in a folder, as its commands see it."""

  def __init__(self, folder: Path, minutes: float):
    self.folder, self.minutes = folder, minutes
    places = {name: str(folder / name) for name in FOLDERS}
    self.environment = {**os.environ, **places, "nnUNet_n_proc_DA": "1",
                        "nnUNet_extTrainer": str(Path(__file__).parent / "trainers")}
    for place in places.values():
      Path(place).mkdir(exist_ok=True)

  def write_datasets(self, data: Sequence[RawFolder], test: Sequence[RawFolder],
                     ) -> tuple[list[str], dict[str, Mapping[str, np.ndarray]]]:
    """Writes raw datasets of one class each, one of all classes, and the images to score.

    Returns:
      The classes, and the true masks of the cases to score: id → class → mask.
    """
    training: dict[str, list[tuple[RawFolder, RawCase]]] = {}
    for folder in data:
      for case in folder.cases:
        if case.split == "train":
          (name,) = case.classes
          training.setdefault(name, []).append((folder, case))
    names = list(training)
    for number, name in enumerate(names, 1):
      self._write_dataset(number, [name], training[name])
    own = {folder.root for cases in training.values() for folder, _ in cases}
    with contextlib.suppress(InputError):  # the data do not say what else their images show
      full = [annotate_in_full(folder) for folder in data]
      self._write_dataset(ALL, names, [(folder, case) for folder in full for case in folder.cases
                                       if case.split == "train"])
    truths, images = {}, self.folder / "test"
    images.mkdir(exist_ok=True)
    for folder in test:
      for case in folder.cases:
        if case.split == "train" and folder.root in own:
          continue
        image, masks = case.read()
        write_nifti(images / f"{case.id}_0000.nii.gz", image)
        truths[case.id] = dict(zip(case.classes, masks, strict=True))
    return names, truths

  def _write_dataset(self, number: int, names: Sequence[str],
                     cases: Sequence[tuple[RawFolder, RawCase]]) -> None:
    folder = self.folder / "nnUNet_raw" / f"Dataset{number:03}_{'_'.join(names)}"
    for part in ("imagesTr", "labelsTr"):
      (folder / part).mkdir(parents=True, exist_ok=True)
    for _, case in cases:
      image, masks = case.read()
      assert UNLABELLED not in masks, "nnU-Net gets whole masks"
      label = np.zeros(masks.shape[1:], np.uint8)
      for name, mask in zip(case.classes, masks, strict=True):
        label[mask == POSITIVE] = names.index(name) + 1
      write_nifti(folder / "imagesTr" / f"{case.id}_0000.nii.gz", image)
      write_nifti(folder / "labelsTr" / f"{case.id}.nii.gz", Volume(label, image.affine),
                  label=True)
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": CHANNEL[cases[0][0].modality]}, "numTraining": len(cases),
        "labels": {"background": 0, **{name: i for i, name in enumerate(names, 1)}},
        "file_ending": ".nii.gz"}), encoding="utf-8")

  def plan(self, classes: int) -> float:
    """Plans and preprocesses all datasets; returns the seconds it took."""
    numbers = [number for number in (*range(1, classes + 1), ALL) if self._dataset(number)]
    finished = self.folder / "planning.json"
    if finished.exists():
      return json.loads(finished.read_text(encoding="utf-8"))
    start = time.monotonic()
    self._run("nnUNetv2_plan_and_preprocess", "-d", *numbers, "-c", OWN, "-npfp", 2, "-np", 2)
    for number in numbers:
      path = self._preprocessed(number) / f"{PLANS}.json"
      plans = json.loads(path.read_text(encoding="utf-8"))
      architecture = plans["configurations"][OWN]["architecture"]
      features = [n // 4 for n in architecture["arch_kwargs"]["features_per_stage"]]
      plans["configurations"][SMALL] = {
          "inherits_from": OWN, "batch_size": 2, "architecture": {
              **architecture, "arch_kwargs": {**architecture["arch_kwargs"],
                                              "features_per_stage": features}}}
      path.write_text(json.dumps(plans, indent=1), encoding="utf-8")
    seconds = time.monotonic() - start
    finished.write_text(json.dumps(seconds), encoding="utf-8")
    return seconds

  def score(self, names: Sequence[str], truths: Mapping, configuration: str) -> dict:
    """Trains a network for each class and scores what they find together."""
    steps, found = [], {case: [] for case in truths}
    for number in range(1, len(names) + 1):
      steps.append(self._train(number, configuration, self.minutes / len(names)))
      folder = self._predict(number, configuration)
      for case in truths:
        with np.load(folder / f"{case}.npz") as stored:
          found[case].append(stored["probabilities"][1].transpose())  # z y x → x y z
    labels = {}
    for case, probabilities in found.items():
      best = np.max(probabilities, axis=0)
      labels[case] = np.where(best > 0.5, np.argmax(probabilities, axis=0) + 1, 0)
    return {"dice": _dice(names, truths, labels), "steps": steps}

  def bound(self, names: Sequence[str], truths: Mapping, configuration: str) -> dict | None:
    """Trains one network on all labels of all images; None if there are none."""
    if not self._dataset(ALL):
      return None
    steps, labels = [self._train(ALL, configuration, self.minutes)], {}
    folder = self._predict(ALL, configuration)
    for case in truths:
      with np.load(folder / f"{case}.npz") as stored:
        labels[case] = np.argmax(stored["probabilities"], axis=0).transpose()
    return {"dice": _dice(names, truths, labels), "steps": steps}

  def _train(self, number: int, configuration: str, minutes: float) -> int:
    """Trains a network; returns the number of its steps."""
    folder = (self.folder / "nnUNet_results" / self._dataset(number).name /
              f"{TRAINER}__{PLANS}__{configuration}" / "fold_all")
    if not (folder / "checkpoint_final.pth").exists():
      self._run("nnUNetv2_train", number, configuration, "all", "-tr", TRAINER, "-device", "cpu",
                CONDSEG_NNUNET_MINUTES=str(minutes))
    log = max(folder.glob("training_log_*.txt")).read_text(encoding="utf-8")
    (line,) = (line for line in log.splitlines() if " steps of " in line)
    return int(line.partition(" steps of ")[0].split()[-1])

  def _predict(self, number: int, configuration: str) -> Path:
    """Predicts the cases to score; returns the folder of the probabilities."""
    out = self.folder / "predictions" / f"{number}_{configuration}"
    self._run("nnUNetv2_predict", "-i", self.folder / "test", "-o", out, "-d", number, "-c",
              configuration, "-tr", TRAINER, "-f", "all", "-device", "cpu", "-npp", 1, "-nps", 1,
              "--save_probabilities", "--disable_tta", "--continue_prediction")
    return out

  def _dataset(self, number: int) -> Path | None:
    return next((self.folder / "nnUNet_raw").glob(f"Dataset{number:03}_*"), None)

  def _preprocessed(self, number: int) -> Path:
    return self.folder / "nnUNet_preprocessed" / self._dataset(number).name

  def _run(self, *command: object, **environment: str) -> None:
    with (self.folder / "log.txt").open("a") as log:
      subprocess.run([str(part) for part in command], check=True, stdout=log, stderr=log,
                     env={**self.environment, **environment})


def _dice(names: Sequence[str], truths: Mapping, labels: Mapping) -> dict[str, float]:
  """Returns class → mean Dice over the cases that annotate it."""
  return {name: float(np.mean([dice(labels[case] == value, masks[name])
                               for case, masks in truths.items() if name in masks]))
          for value, name in enumerate(names, 1)}


def _row(name: str, ours: Mapping[str, float], peer: Mapping | None) -> dict:
  """Returns a row; the ratio is above 1 where condseg_jax is ahead."""
  mean = float(np.mean(list(ours.values())))
  row = {"name": name, "ours": mean, "unit": "Dice", "ours_by_class": ours}
  if peer is None:
    return row | {"peer": None, "ratio": None, "note": "not all structures are annotated"}
  theirs = float(np.mean(list(peer["dice"].values())))
  return row | {"peer": theirs, "ratio": mean / theirs, "peer_by_class": peer["dice"],
                "peer_kind": f"nnU-Net, {' + '.join(map(str, peer['steps']))} steps"}


def _version() -> str:
  """Returns the version of nnU-Net, which may have an environment of its own."""
  python = Path(shutil.which("nnUNetv2_train") or "").parent / "python"
  code = "import importlib.metadata; print(importlib.metadata.version('nnunetv2'))"
  return subprocess.run([python, "-c", code], capture_output=True, check=True,
                        encoding="utf-8").stdout.strip()


def _call(module: str, *arguments: str) -> None:
  subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
  sys.exit(main())
