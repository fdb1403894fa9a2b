"""What a run is made of: classes, decisions at its beginning, and whether it can go on."""

import dataclasses
import json

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.data.store import open_prepared
from condseg_jax.datasets import discover
from condseg_jax.errors import InputError
from condseg_jax.train.resume import check_same_model
from condseg_jax.train.resume import resumed_config
from condseg_jax.train.setup import alphas
from condseg_jax.train.setup import check_config
from condseg_jax.train.setup import further_labels
from condseg_jax.train.setup import lateral_axes
from condseg_jax.train.setup import make_setup
from condseg_jax.train.setup import make_step_and_state
from support.tiny import write_datasets

SMALL = Config().override({
    "data.subvolume": (8, 16, 16), "model.strides": ((1, 2, 2),), "model.layers_per_level": (1, 1),
    "model.channels": 4, "model.growth": 4})


# --- classes ------------------------------------------------------------------------------------
@pytest.mark.parametrize("ndim, expected", [(3, [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
                                            (2, [[0, 1], [0, 0], [0, 0]])])
def test_axes_along_which_a_class_has_sides(ndim, expected):
  table = ClassTable.create(["left kidney", "liver", "head"],
                            no_mirror={"left kidney": ["W"], "head": ["D"]})
  np.testing.assert_array_equal(lateral_axes(table, ndim), expected)


def test_weights_of_classes():
  table = ClassTable.create(["left kidney", "liver"])
  np.testing.assert_array_equal(alphas(table, {"Liver": 3.0}), [1, 3])


# --- what needs no data -------------------------------------------------------------------------
def test_a_config_that_can_be_trained():
  check_config(SMALL)
  check_config(SMALL.override({"conditioning.vector": "text",
                               "conditioning.text_vectors": "later.json"}))


@pytest.mark.parametrize("changes, fault", [
    ({"loss.objective": "points"}, "loss.objective"),
    ({"augment.extra": {"blurr": 1.0}}, "augment.extra.blurr"),
    ({"augment.extra": {"noise": 1.0}}, "augment.extra.noise"),
    ({"conditioning.mechanism": "tint"}, "mechanism 'tint'"),
    ({"model.network": "swin"}, "model.network"),
    ({"conditioning.position": "encoder", "conditioning.mechanism": "spade"}, "does not act"),
    ({"conditioning.mechanism": "batch_norm", "train.grad_accum_steps": 2}, "grad_accum_steps")])
def test_a_config_that_cannot_be_trained(changes, fault):
  with pytest.raises(InputError, match=fault) as caught:
    check_config(SMALL.override(changes))
  assert caught.value.usage


# --- the beginning of a run ---------------------------------------------------------------------
@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  root = write_datasets(tmp_path_factory.mktemp("data"))
  return discover.open_stores(root / "train", cache=root / "cache", progress=False)


def test_prepared_stores_need_no_importer(stores, tmp_path):
  root = stores[0].root.parent
  assert [s.root for s in open_prepared(root)] == [s.root for s in stores]
  assert [s.root for s in open_prepared(stores[0].root)] == [stores[0].root]
  assert open_prepared(root, (9.0, 9.0, 9.0)) == []  # the importers say what does not fit
  (tmp_path / "other").mkdir()
  assert open_prepared(tmp_path) == open_prepared(tmp_path / "none") == open_prepared("") == []


def test_a_new_run_decides_and_a_resumed_one_keeps(stores):
  """With another default memory budget, the subvolume of a resumed run stays."""
  auto = SMALL.override({"data.plan": "auto", "data.memory_gb": 0.05})
  begun = make_setup(auto, stores, None, "run")
  assert begun.config.data.subvolume == begun.record.plan.subvolume != SMALL.data.subvolume
  assert begun.config.model.strides != SMALL.model.strides
  assert len(begun.config.model.layers_per_level) == len(begun.config.model.strides) + 1
  assert begun.plan_summary["memory_gb"] <= 0.05
  again = make_setup(auto.override({"data.memory_gb": 8.0}), stores, begun.record, "run")
  assert again.record.plan == begun.record.plan and again.model == begun.model


def test_the_texts_of_a_run_are_in_its_config(stores, tmp_path):
  path = tmp_path / "texts.json"
  path.write_text(json.dumps({"ball": [1, 0], "box": [0, 2]}))
  config = SMALL.override({"conditioning.vector": "text",
                           "conditioning.text_vectors": str(path)})
  begun = make_setup(config, stores, None, "run")
  assert begun.config.conditioning.texts == ((1.0, 0.0), (0.0, 2.0)) == begun.model.texts
  path.unlink()  # a resumed run does not read it
  assert make_setup(config, stores, begun.record, "run").model == begun.model


def test_a_network_of_other_axes(stores):
  flat = SMALL.override({"data.subvolume": (16, 16), "model.strides": ((2, 2),)})
  with pytest.raises(InputError, match="model.strides: has 2 axes, the images 3"):
    make_setup(flat, stores, None, "run")


@pytest.mark.parametrize("changes, fault", [
    ({"data.classes": ("ball",)}, "data.classes: lacks 'box'"),
    ({"data.classes": ("ball", "box", "cone")}, "data.classes: 'cone' is annotated in no"),
    ({"data.include_classes": ("cone",)}, "data.include_classes: 'cone' is annotated in no"),
    ({"train.only_classes": ("cone",)}, "train.only_classes: 'cone' is annotated in no"),
    ({"data.lateral_axes": {"cone": ("W",)}}, "data.lateral_axes.cone: is not a class"),
    ({"data.bare": 1.0, "augment.cutmix": 0.5}, "data.bare: 1 for datasets without masks"),
    ({"data.overlapping": (("ball", "cone"),)}, "data.overlapping: 'cone' is not a class")])
def test_classes_that_do_not_fit_the_data(stores, changes, fault):
  with pytest.raises(InputError, match=fault):
    make_setup(SMALL.override(changes), stores, None, "run")


def test_what_excludes_what(stores):
  """As declared, and as seen in the masks: what is not asked for is not looked at."""
  asked = SMALL.override({"loss.exclusion_classes": 1})
  assert make_setup(asked, stores, None, "run").record.table.exclusive.tolist() == [
      [False, True], [True, False]]
  declared = asked.override({"data.overlapping": (("Box", "ball"),)})
  begun = make_setup(declared, stores, None, "run")
  assert not begun.record.table.exclusive.any()
  assert make_setup(asked, stores, begun.record, "run").record.table == begun.record.table
  cases = stores[0].cases
  seen = dataclasses.replace(stores[0], cases=(
      dataclasses.replace(cases[0], overlapping=(("ball", "box"), ("ball", "cone"))), *cases[1:]))
  table = make_setup(asked, [seen, stores[1]], None, "run").record.table
  assert table.overlapping == (("ball", "box"),)
  former = dataclasses.replace(stores[0], cases=(
      dataclasses.replace(cases[0], annotated=("ball", "box"), overlapping=None), *cases[1:]))
  with pytest.raises(InputError, match="before overlapping classes were recorded"):
    make_setup(asked, [former, stores[1]], None, "run")


def test_an_objective_that_compares_all_classes(stores):
  config = SMALL.override({"loss.objective": "marginal"})
  begun = make_setup(config, stores, None, "run")
  assert begun.plan_summary["decodes_per_image"] == 2
  assert further_labels(begun)["exclusion_weight"] == 0.0
  both = make_setup(config.override({"loss.exclusion_classes": 1}), stores, None, "run")
  assert further_labels(both)["exclusion_weight"] == 0.1
  with pytest.raises(InputError, match="'marginal' needs classes that exclude each other, but "
                     "'ball' and 'box' overlap") as caught:
    make_setup(config.override({"data.overlapping": (("box", "ball"),)}), stores, None, "run")
  assert caught.value.usage


@pytest.mark.parametrize("changes", [
    {}, {"loss.exclusion_classes": 1, "loss.exclusion_weight": 0.0},
    {"loss.exclusion_classes": 0, "loss.exclusion_weight": 1.0}])
def test_without_exclusion_the_step_is_what_it_was(stores, changes):
  begun = make_setup(SMALL.override(changes), stores, None, "run")
  assert further_labels(begun) == {} and begun.plan_summary["decodes_per_image"] == 1


def test_further_classes_count_in_the_memory(stores):
  one, two, three = (make_setup(SMALL.override({"loss.exclusion_classes": n}), stores, None,
                                "run").plan_summary for n in range(3))
  assert two["decodes_per_image"] == three["decodes_per_image"] == 2  # there are two classes
  assert two["memory_gb"] > one["memory_gb"]


def test_decoders_of_classes_are_not_divided_by_the_compiler(stores):
  """The tests have two devices. `pmap` is trained in tests/e2e/test_growth.py."""
  changes = {"conditioning.position": "per_class_decoders", "conditioning.mechanism": "channel"}
  begun = make_setup(SMALL.override(changes), stores, None, "run")
  with pytest.raises(InputError, match="train.driver = 'pmap'"):
    make_step_and_state(begun)
  make_step_and_state(dataclasses.replace(begun, config=begun.config.override(
      {"train.driver": "pmap", "data.batch_size": 2})))


@pytest.mark.parametrize("hold_out", [0.0, 0.25])
def test_specialists_see_images_as_the_network_of_all_classes_does(hold_out, stores):
  """Intensities are pooled over all datasets, whichever of their classes are learned."""
  plans = {}
  for names in ((), ("Ball",), ("box",)):
    config = SMALL.override({"data.hold_out": hold_out, "data.include_classes": names,
                             "conditioning.position": "none",
                             "data.presets": {"all": ("ball", "box")}})
    made = make_setup(config, stores, None, "run")
    plans[made.record.table.names] = made.record.plan
    assert bool(made.held_out) == (hold_out > 0)
    assert [d.annotated for d in made.training] == [(name,) for name in made.record.table.names]
  assert set(plans) == {("ball", "box"), ("ball",), ("box",)}
  assert len({str(plan.to_json()) for plan in plans.values()}) == 1


# --- a resumed run ------------------------------------------------------------------------------
def test_blocks_may_be_computed_otherwise():
  check_same_model(SMALL, SMALL.override({"model.remat": True}), "run")
  check_same_model(SMALL.override({"model.remat": True}), SMALL, "run")


@pytest.mark.parametrize("changes", [{"model.channels": 16}, {"model.strides": ((1, 1, 2),)},
                                     {"model.deep_supervision": 1},
                                     {"conditioning.position": "input"}])
def test_another_model_is_refused(changes):
  name = next(iter(changes))
  with pytest.raises(InputError, match=f"{name} differs"):
    check_same_model(SMALL, SMALL.override(changes), "run")


def test_what_a_config_says_anew_is_taken():
  again = resumed_config(SMALL.override({"train.steps": 7}), SMALL)
  assert again.train.steps == 7 and again.data.subvolume == SMALL.data.subvolume


def test_a_run_by_minutes_keeps_the_steps_that_were_fixed_when_it_began():
  asked = SMALL.override({"train.minutes": 3.0})
  recorded = asked.override({"train.steps": 412, "train.eval_every": 103})
  assert resumed_config(asked, recorded).train == recorded.train
  other = asked.override({"train.minutes": 0.0, "train.steps": 500})
  assert resumed_config(other, recorded).train == other.train
