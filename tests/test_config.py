"""The door: settings are known, typed, in range and consistent, or one line says which is not."""

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st
import ml_collections
import pytest

from condseg_jax import former_settings
from condseg_jax import settings
from condseg_jax.config import Config
from condseg_jax.errors import InputError

NAMES = [name for name, _, _ in settings.walk(Config)]


def refused(tree) -> str:
  with pytest.raises(InputError) as caught:
    Config.from_dict(tree)
  assert caught.value.usage
  return str(caught.value)


def nested(name, value) -> dict:
  section, _, key = name.rpartition(".")
  return {section: {key: value}} if section else {key: value}


def test_the_defaults_pass_their_own_door():
  assert Config.from_dict({}) == Config() == Config.from_dict(Config().to_dict())
  assert Config.from_dict(json.loads(json.dumps(Config().to_dict()))) == Config()


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_meaning_and_refuses_what_it_is_not(name):
  setting = {n: s for n, _, s in settings.walk(Config)}[name]
  assert setting.doc and "\n" not in setting.doc
  assert refused(nested(name, object())).startswith(f"{name}: ")
  wrong = refused(nested(f"{name}x", 1))
  assert wrong.startswith(f"{name}x: unknown setting (did you mean ")


@pytest.mark.parametrize("tree, line", [
    ({"data": {"hold_outt": 0.1}},
     "data.hold_outt: unknown setting (did you mean data.hold_out?)"),
    ({"train": {"stepz": 5}}, "train.stepz: unknown setting (did you mean train.steps?)"),
    ({"steps": 5}, "steps: unknown setting (did you mean train.steps?)"),
    ({"modle": {}}, "modle: unknown setting (did you mean model?)"),
    ({"data": {"keep": ("liver",)}},
     "data.keep: unknown setting (renamed to data.include_classes)"),
    ({"data": {"batch_size": 2.5}}, "data.batch_size: 2.5 is not a whole number"),
    ({"data": {"batch_size": True}}, "data.batch_size: True is not a whole number"),
    ({"data": {"root": None}}, "data.root: None is not a string"),
    ({"model": {"strides": (2, 2)}}, "model.strides: (2, 2) is not a tuple of tuples of whole "
     "numbers"),
    ({"data": 3}, "data: must be a dict, got 3"),
    ({"data": {"hold_out": 1.5}}, "data.hold_out: 1.5 is not allowed, must be in [0, 1)"),
    ({"optimizer": {"learning_rate": 0}},
     "optimizer.learning_rate: 0.0 is not allowed, must be in (0, 100]"),
    ({"optimizer": {"learning_rate": float("nan")}},
     "optimizer.learning_rate: nan is not a finite number"),
    ({"train": {"steps": 0}}, "train.steps: 0 is not allowed, must be in [1, "),
    ({"conditioning": {"position": "decodr"}}, "(did you mean 'decoder'?)"),
    ({"data": {"lateral_axes": {"kidney": ("X",)}}}, "data.lateral_axes: 'X' is not allowed"),
    ({"loss": {"alpha": {"liver": "much"}}}, "loss.alpha.liver: 'much' is not a number"),
    ({"data": {"weights": (1.0, 0.0)}}, "data.weights: 0.0 is not allowed, must be > 0"),
    ({"data": {"unannotated": "ignored"}}, "(did you mean 'ignore'?)")])
def test_what_is_refused(tree, line):
  assert line in refused(tree)


NAN, INF = float("nan"), float("inf")
SENSELESS = {
    "seed": [-1, 2**32, 99999999999999999999, 1.0],
    "data.spacing": [(1e-9, 1.0, 1.0), (0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (NAN, 1.0, 1.0), (1e9,)],
    "data.memory_gb": [NAN, INF, 0, -1, 10**400], "data.subvolume": [(0, 8, 8), (-8, 8, 8), ()],
    "data.batch_size": [0, -1], "data.foreground_fraction": [-0.1, 1.1, NAN],
    "data.classes_per_image": [-1, 2**63], "data.weights": [(NAN,), (0.0,), (-1.0,)],
    "data.hold_out": [1.0, -0.5, NAN], "data.max_cases": [-1], "data.lateral_axes": [{"a": ("Q",)}],
    "augment.probability": [7, -0.1, NAN], "augment.rotate": [-1, 400, NAN],
    "augment.zoom": [-3, 1e30, NAN], "augment.shift": [-1, 5], "augment.scale": [-1, 1e30],
    "augment.offset": [-1, 1e30], "augment.gamma": [NAN, -1, 1e30], "augment.noise": [-1, INF],
    "augment.mirror": [("Q",), ("d",)], "augment.extra": [{"mine": NAN}, {"mine": -1}],
    "augment.blur": [-1, NAN, 1e30], "augment.low_resolution": [-1, NAN, 1e30],
    "model.strides": [(), ((0, 1, 1),) * 3, ((-1, 1, 1),) * 3], "model.layers_per_level": [()],
    "model.channels": [0, -1], "model.max_channels": [0, -1],
    "model.growth": [0], "model.rates": [(), (0,), (-6,)],
    "model.deep_supervision": [-1], "conditioning.embedding_size": [0],
    "conditioning.from_level": [-1], "conditioning.texts": [((NAN,),)],
    "loss.bce_weight": [NAN, -1, 1e30], "loss.lse_sharpness": [0, -1, NAN, INF],
    "augment.cutmix": [-0.1, 1.5, NAN], "data.bare": [-1, NAN, INF],
    "data.pseudo_weight": [-0.1, 1.0, NAN],
    "loss.exclusion_classes": [-1, 1.5, 2**17], "loss.exclusion_weight": [-0.1, NAN, INF],
    "loss.alpha": [{"liver": NAN}, {"liver": -1}], "loss.options": [{"a": INF}],
    "optimizer.learning_rate": [-1, 0, 1e30, NAN, INF], "optimizer.warmup": [-3],
    "optimizer.b1": [2, 1, -0.1, NAN], "optimizer.b2": [2, 1, -0.1, NAN],
    "optimizer.weight_decay": [NAN, -1, 1e30], "optimizer.momentum": [1, -0.1, NAN],
    "optimizer.clip_norm": [-1, NAN, INF], "train.steps": [0, -5, 2.5],
    "train.ema_decay": [2, 1, -0.1, NAN], "train.log_every": [0, -1], "train.eval_every": [0, -1],
    "train.minutes": [-1, NAN, INF], "train.grad_accum_steps": [0, -1],
    "train.partition": [-1, 1.5, 2**17]}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in SENSELESS.items() for v in values])
def test_values_that_make_no_sense(name, value):
  message = refused(nested(name, value))
  assert message.startswith((f"{name}: ", f"{name}.")) and len(message) < 600


def test_every_number_has_been_thought_of():
  """A new setting with numbers is added to the list above."""
  numbers = {name for name, default, _ in settings.walk(Config)
             if any(isinstance(x, int | float) and not isinstance(x, bool)
                    for x in settings._leaves(default))}
  assert numbers - {"model.decoder_layers_per_level"} <= set(SENSELESS)


@pytest.mark.parametrize("changes, line", [
    ({"data.batch_class": "single", "data.classes_per_image": 2}, "data.classes_per_image: 2 "
     "excludes data.batch_class 'single'"),
    ({"data.batch_size": 3, "train.grad_accum_steps": 2}, "train.grad_accum_steps: 2 does not "
     "divide data.batch_size 3"),
    ({"conditioning.text_vectors": "a.json"}, "conditioning.text_vectors: has no effect unless"),
    ({"data.subvolume": (30, 64, 64)}, "data.subvolume: (30, 64, 64) is not a multiple of the "
     "network's stride (8, 8, 8)"),
    ({"data.subvolume": (64, 64)}, "data.subvolume: has 2 axes, model.strides 3"),
    ({"data.spacing": (1.0, 1.0)}, "data.spacing: has 2 axes, model.strides 3"),
    ({"model.layers_per_level": (1, 1)}, "model.layers_per_level: has 2 levels"),
    ({"augment.cutmix": 0.5, "data.batch_size": 1}, "augment.cutmix: needs images of several"),
    ({"augment.cutmix": 0.5, "data.batch_class": "single"}, "augment.cutmix: needs images of"),
    ({"data.bare": 0.5, "data.batch_class": "single"}, "data.bare: needs batches of all datasets"),
    ({"data.bare": 0.5, "data.unannotated": "background"}, "data.bare: would count every class as"),
    ({"data.overlapping": (("liver",),)}, "data.overlapping: ('liver',) is not a pair"),
    ({"model.strides": ((2, 2), (2, 2, 2), (2, 2, 2))}, "does not have 2 axes throughout, or 3")])
def test_settings_that_exclude_each_other(changes, line):
  with pytest.raises(InputError) as caught:
    Config().override(changes)
  assert line in str(caught.value)


def test_a_fitted_plan_decides_the_subvolume():
  """With `plan` = auto the subvolume of the config is not looked at."""
  Config().override({"data.plan": "auto", "data.subvolume": (30, 31)})


@given(st.sampled_from(NAMES), st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=2), max_leaves=6))
def test_whatever_is_given_is_taken_or_refused_in_one_line(name, value):
  try:
    config = Config.from_dict(nested(name, value))
  except InputError as error:
    assert error.usage and "\n" not in error.reason
  else:
    assert Config.from_dict(config.to_dict()) == config


def test_whole_numbers_are_numbers_and_lists_are_tuples():
  config = Config.from_dict({"data": {"memory_gb": 4, "spacing": [1, 2, 3]}})
  assert config.data.memory_gb == 4.0 and isinstance(config.data.memory_gb, float)
  assert config.data.spacing == (1.0, 2.0, 3.0)


def test_overrides_leave_the_config_as_it_was():
  config = Config()
  other = config.override({"data.batch_size": 4, "seed": 1, "loss.alpha": {"liver": 2}})
  assert (other.data.batch_size, other.seed, other.loss.alpha) == (4, 1, {"liver": 2.0})
  assert config == Config()
  for name in ("data.batchsize", "dat.batch_size", "sed", "seed.x"):
    with pytest.raises(InputError, match=f"{name}: unknown setting"):
      config.override({name: 1})


# --- ml_collections -----------------------------------------------------------------------------
def test_a_config_dict_is_locked_but_for_dicts_of_the_users_own():
  config = Config().to_config_dict()
  assert isinstance(config, ml_collections.ConfigDict) and config.is_locked
  with pytest.raises(AttributeError):
    config.data.hold_outt = 0.2
  with pytest.raises(KeyError):
    config.model.update(depth=(1, 2))
  with pytest.raises(TypeError):
    config.data.batch_size = "2"
  config.data.presets.abdomen = ("liver",)
  config.data.lateral_axes = {"kidney": ("W",)}
  config.loss.alpha.liver = 2.0
  config.conditioning.from_level = 1
  config.model.decoder_layers_per_level = (1, 1, 2)
  made = Config.from_dict(config.to_dict())
  assert made.data.presets == {"abdomen": ("liver",)} and made.loss.alpha == {"liver": 2.0}
  assert made.conditioning.from_level == 1 and made.model.decoder_layers_per_level == (1, 1, 2)


# --- former names -------------------------------------------------------------------------------
def test_every_former_name_is_translated():
  former = {"data": {"keep": ["liver"], "cases": 5, "foreground": 0.5, "unlabelled": "background",
                     "no_mirror": {"liver": ["W"]}},
            "model": {"depth": [2, 2, 2, 1], "decoder_depth": [1, 2, 1]},
            "loss": {"supervision": "image", "sharpness": 3.0}, "train": {"accumulate": 2}}
  names = {f"{section}.{key}" for section, part in former.items() for key in part}
  assert names == set(former_settings.RENAMED)
  config = Config.from_dict(former, version=1)
  assert dataclasses.asdict(config.data) | dict(
      include_classes=("liver",), max_cases=5, foreground_fraction=0.5, unannotated="background",
      lateral_axes={"liver": ("W",)}) == dataclasses.asdict(config.data)
  assert config.model.layers_per_level == (2, 2, 2, 1)
  assert config.model.decoder_layers_per_level == (1, 2, 1)
  assert (config.loss.objective, config.loss.lse_sharpness) == ("image_level", 3.0)
  assert config.train.grad_accum_steps == 2
  assert all(present in NAMES for present in former_settings.RENAMED.values())
  refused(former)  # the present version has the present names


def test_what_was_added_since_is_neutral_in_an_older_config(monkeypatch):
  """Whatever becomes its default: an older run did not have it."""
  assert set(former_settings.ADDED) <= set(NAMES)
  monkeypatch.setitem(former_settings.ADDED, "model.norm", "none")
  assert Config.from_dict({}, version=1).model.norm == "none"
  assert Config.from_dict({}).model.norm == Config().model.norm != "none"
