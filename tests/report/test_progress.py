"""The picture of a run: curves of its metrics, and a slice of a held-out case of each class."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.geometry import Volume
from condseg_jax.report.progress import Progress


def write_metrics(workdir, classes=("liver",)):
  lines = [{"step": step, "loss": 1 / step, "learning_rate": 0.1, "held_out/mean_dice": 0.5,
            **{f"dice/{name}": 0.4 for name in classes},
            **{f"held_out/dice/{name}": None for name in classes}} for step in (1, 2, 3)]
  (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def show(progress, case_id="a", shape=(4, 20, 24), name="liver", mark=np.s_[2, 5:9, 6:12]):
  """Evaluates a case whose truth is a box in one slice, predicted one voxel off."""
  truth = np.zeros(shape, np.uint8)
  truth[mark] = 1
  affine = np.diag([1.0, 1.0, 5.0, 1.0])[:, [2, 1, 0, 3]]
  volume = Volume(np.arange(truth.size, dtype=np.float32).reshape(shape), affine)
  prediction = SimpleNamespace(masks={name: np.roll(truth, 1, -1).astype(bool)})
  progress.on_case(case_id, volume, prediction, {name: truth},
                   [CaseScore(case_id, name, {"dice": 0.8})])


def test_the_picture_of_a_run_is_renewed(tmp_path):
  write_metrics(tmp_path)
  progress = Progress(tmp_path)
  alone = progress.draw()
  show(progress)
  with_case = progress.draw()
  assert with_case.dtype == np.uint8 and with_case.shape[2] == 3
  assert with_case.shape[0] > 1.5 * alone.shape[0]  # a row of cases below the curves
  assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_a_slice_across_the_largest_voxels_with_most_of_the_class(tmp_path):
  progress = Progress(tmp_path)
  show(progress)
  (example,) = progress._examples.values()
  assert example.image.shape == (20, 24) and example.truth.sum() == 24 == example.prediction.sum()
  assert example.title == "liver: Dice 0.800\na" and example.aspect == pytest.approx(1.0)


def test_the_first_case_of_each_class_is_shown_at_every_evaluation(tmp_path):
  progress = Progress(tmp_path)
  for case_id in ("a", "b", "a"):
    for name in ("liver", "a$\\frac{x$"):
      show(progress, case_id, name=name)
  assert list(progress._examples) == [("a", "liver"), ("a", "a$\\frac{x$")]
  show(progress, "c", name="spleen", mark=np.s_[:0])  # nothing to show
  assert len(progress._examples) == 2
  write_metrics(tmp_path, ("liver", "a$\\frac{x$"))
  progress.draw()
