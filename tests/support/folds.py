"""A tiny cross-validated run of two members; its fixtures are in tests/e2e/conftest.py."""

import json

from support.tiny import overrides
from support.tiny import write_msd

NO_AUGMENTATION = [f"augment.{name}" for name in (
    "rotate", "zoom", "shift", "scale", "offset", "gamma", "noise")]  # which compiles faster


def arguments(root, workdir, *more, **changes):
  changes = {"data.cache": root / "cache", "train.steps": 3, "model.channels": 4, "model.growth": 4,
             **dict.fromkeys(NO_AUGMENTATION, 0.0),
             "augment.mirror": "('W',)"} | changes
  return ["condseg-train", "--config=base", f"--workdir={workdir}", *more,
          *overrides(root, **changes)]


def write_patients(root):
  """Four cases of the ball, of two patients, and three of the box, each of its own."""
  ball = write_msd(root / "train" / "ball", range(4), ["ball"])
  tree = json.loads((ball / "dataset.json").read_text())
  tree["patient"] = "^(case)_0[01]$"  # the others have none in their ids
  (ball / "dataset.json").write_text(json.dumps(tree))
  write_msd(root / "train" / "box", range(4, 7), ["box"])
  write_msd(root / "test", range(8, 10), ["ball", "box"])
  return root
