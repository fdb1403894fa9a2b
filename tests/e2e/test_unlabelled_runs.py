"""Whole runs with all that is known of unlabelled voxels, and images without any mask."""

import json
import shutil

import jax
import numpy as np
import pytest

from condseg_jax.cli import prepare as prepare_command
from condseg_jax.cli import verify as verify_command
from condseg_jax.cli.train import main
from condseg_jax.data.store import Store
from condseg_jax.train.checkpoint import Checkpoints
from support.tiny import overrides
from support.tiny import write_datasets

KNOWN = {"loss.exclusion_classes": 1, "augment.cutmix": 0.7, "data.bare": 1.0,
         "augment.mirror": '("W",)', "data.batch_size": 4, "train.driver": "pmap",
         "data.hold_out": 0.0, "model.channels": 4, "model.growth": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """ROOT/train: two annotated datasets, and a store of the images of the test set alone."""
  root = write_datasets(tmp_path_factory.mktemp("data"))
  shutil.copytree(root / "test" / "imagesTr", root / "plain" / "images")
  assert prepare(root / "plain", root / "train" / "bare") == 0
  return root


def prepare(source, out, *flags, modality="ct"):
  return prepare_command.main(["condseg-prepare", "--format=folder", "--unlabelled",
                               f"--modality={modality}", f"--source={source}", f"--out={out}",
                               "--spacing=2,1,1", *flags])


def arguments(root, workdir, **changes):
  changes = {"data.cache": root / "cache"} | KNOWN | changes
  return ["condseg-train", "--config=base", f"--workdir={workdir}", *overrides(root, **changes)]


def parameters(workdir):
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    return jax.device_get(checkpoints.restore_variables(checkpoints.pick("last")))["params"]
  finally:
    checkpoints.close()


def test_a_store_of_images_without_masks(root, capsys):
  store = Store.open(root / "train" / "bare")
  assert store.table.names == () and len(store.cases) == 2
  assert all(case.annotated == () and case.split == "train" for case in store.cases)
  assert store.provenance["unlabelled"] is True
  assert verify_command.main(["condseg-verify", str(root / "train" / "bare")]) == 0
  assert prepare(root / "plain", root / "train" / "bare") == 0  # nothing is left to do
  assert "no masks" in capsys.readouterr().out


@pytest.mark.slow
def test_stop_and_resume_is_bit_for_bit_the_same(root, tmp_path):
  assert main(arguments(root, tmp_path / "whole")) == 0
  half, calls = arguments(root, tmp_path / "parts"), []

  def stop(*_, **__):
    calls.append(None)
    return len(calls) == 3

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("condseg_jax.train.timing.Interrupt.everywhere", stop)
    assert main(half) == 0
  assert json.loads((tmp_path / "parts" / "run.json").read_text())["step"] == 3
  assert main([*half, "--resume=must"]) == 0
  whole, parts = (jax.tree.leaves(parameters(tmp_path / name)) for name in ("whole", "parts"))
  assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
  plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
  assert plan["decodes_per_image"] == 2


def test_bad_input_is_one_line(root, tmp_path, capsys):
  def says(code):
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("condseg-") for line in lines) == 1  # the others are bars
    return lines[-1]

  shutil.copytree(root / "train", tmp_path / "train")
  shutil.rmtree(tmp_path / "train" / "bare")
  assert prepare(root / "plain", tmp_path / "train" / "bare", modality="mr") == 0
  capsys.readouterr()
  line = says(main(arguments(tmp_path, tmp_path / "run")))
  assert "has the modality" in line and "one network per modality" in line
  line = says(main(arguments(root, tmp_path / "run", **{
      "data.overlapping": '(("ball", "cone"),)'})))
  assert "data.overlapping: 'cone' is not a class" in line
  line = says(main(arguments(root, tmp_path / "run", **{"augment.cutmix": 0.0})))
  assert "data.bare: has no effect alone" in line
  line = says(prepare_command.main(["condseg-prepare", "--format=msd", "--unlabelled",
                                    f"--source={root / 'test'}", f"--out={tmp_path / 'x'}"]))
  assert "--unlabelled: does not know the layout 'msd'" in line
