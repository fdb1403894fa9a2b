"""Learning some classes only: the network for them, and what is said of a class that is not there.
"""


import pytest

import condseg_jax
from condseg_jax.cli.train import main
from condseg_jax.errors import InputError
from condseg_jax.train.loop import check_kept
from condseg_jax.train.setup import make_plan
from support.tiny import overrides
from support.tiny import write_datasets


class Planned(Exception):
  """A training that has come to its plan, and goes no further."""


@pytest.mark.parametrize("hold_out", [0.0, 0.25])
def test_specialists_see_images_as_the_network_of_all_classes_does(hold_out, tmp_path,
                                                                   monkeypatch):
  """Settings may speak of classes that are left out; intensities are pooled over all datasets."""
  root = write_datasets(tmp_path)
  plans = {}

  def arguments(keep):
    changes = {"data.cache": root / "cache", "data.hold_out": hold_out,
               "data.include_classes": keep, "train.steps": 2, "train.eval_every": 2,
               "conditioning.position": "none"}
    return ["train", "--config=base", f"--workdir={root / keep}", *overrides(root, **changes)]

  def planned(config, training, table, seen):
    raise Planned(table.names, make_plan(config, training, table, seen)[1])

  for keep in ("()", "('Ball',)", "('box',)"):
    with monkeypatch.context() as patch, pytest.raises(Planned) as told:
      patch.setattr("condseg_jax.train.loop.make_plan", planned)
      main(arguments(keep))
    plans[keep] = told.value.args
  assert [tuple(names) for names, _ in plans.values()] == [("ball", "box"), ("ball",), ("box",)]
  assert len({str(plan.to_json()) for _, plan in plans.values()}) == 1
  if hold_out:
    assert main(arguments("('box',)")) == 0
    predictor = condseg_jax.load(root / "('box',)")
    assert (predictor.table.names, predictor.plan) == plans["('box',)"]


def test_a_class_to_learn_must_be_annotated():
  with pytest.raises(InputError, match="data.include_classes: class 'lung': is annotated in no"):
    check_kept(["lung"], [])
