"""Learning some classes only: the network for them, and what is said of a class that is not there.
"""

from pathlib import Path

import pytest
from tiny import overrides
from tiny import write_datasets

import condseg_jax
from condseg_jax.cli.train import main
from condseg_jax.errors import InputError
from condseg_jax.train.loop import check_kept

BASE = Path(__file__).parent.parent.parent / "experiments" / "configs" / "base.py"


@pytest.mark.parametrize("hold_out", [0.0, 0.25])
def test_specialists_see_images_as_the_network_of_all_classes_does(hold_out, tmp_path):
  """Settings may speak of classes that are left out; intensities are pooled over all datasets."""
  root = write_datasets(tmp_path)
  plans = {}
  for keep in ("()", "('Ball',)", "('box',)"):
    changes = {"data.cache": root / "cache", "data.hold_out": hold_out, "data.keep": keep,
               "train.steps": 2, "train.eval_every": 2, "conditioning.position": "none"}
    arguments = ["train", f"--config={BASE}", f"--workdir={root / keep}",
                 *overrides(root, **changes)]
    assert main(arguments) == 0
    predictor = condseg_jax.load(root / keep)
    plans[keep] = predictor.table.names, predictor.plan
  assert [names for names, _ in plans.values()] == [("ball", "box"), ("ball",), ("box",)]
  assert len({str(plan.to_json()) for _, plan in plans.values()}) == 1


def test_a_class_to_learn_must_be_annotated():
  with pytest.raises(InputError, match="data.keep: class 'lung': is annotated in no"):
    check_kept(["lung"], [])
