"""A class is taken away, and the others do not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.cli.export import main
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.bundle import write_bundle
from condseg_jax.model_io.drop import without_classes
from condseg_jax.model_io.load import read_model
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.plan import Plan

NAMES = ("liver", "spleen", "tumour")
PRIOR = {"frequency": 0.1, "location": [[0.5, 0.5], [0.5, 0.5]]}
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 12, 1)), jnp.float32)


def model(**condition):
  """A network of three classes that everything in its record speaks of."""
  texts = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)] if condition.get("vector") == "text" else ()
  config = Config().override({
      "model.strides": ((2, 2),), "model.layers_per_level": (1, 1), "model.channels": 4,
      "model.growth": 4, "data.subvolume": (8, 12), "conditioning.texts": texts,
      "data.classes": NAMES, "data.presets": {"all": NAMES, "one": ("Spleen",)},
      "data.overlapping": (("Spleen", "tumour"), ("liver", "tumour")),
      "data.lateral_axes": {"Spleen": ("W",), "liver": ("H",)}, "loss.alpha": {"spleen": 2.0},
      **{f"conditioning.{key}": value for key, value in condition.items()}})
  table = ClassTable.create(NAMES, presets=config.data.presets,
                            overlapping=config.data.overlapping)
  record = ModelRecord(config, table, Plan("mr", (1.0, 1.0), (8, 12)),
                       priors=dict.fromkeys(NAMES, PRIOR))
  network = build_model(config.model, config.conditioning, table.codes)
  shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGE, jnp.zeros(1, jnp.int32))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(0.5, 0.5, x.shape).astype(np.float32), shapes)
  facts = {"step": 3, "images": None,
           "datasets": [{"name": "a", "cases": 2, "annotated": ["liver", "spleen"]}],
           "held_out": {"mean_dice": 0.5, "dice": {"liver": 0.75, "spleen": 0.25}}}
  return Bundle(record, variables["params"], facts, (b"a", b"b"),
                variables.get("statistics", {}))


def decoded(bundle, name):
  record = bundle.record
  network = build_model(record.config.model, record.config.conditioning, record.table.codes)
  return np.asarray(network.apply(bundle.variables, IMAGE, jnp.full(1, record.table.index(name))))


@pytest.mark.parametrize("condition", [
    dict(), dict(vector="one_hot"), dict(vector="embedding", mechanism="film"),
    dict(vector="text"), dict(position="output_head", mechanism="output"),
    dict(position="per_class_decoders")], ids=str)
def test_the_others_are_decoded_bit_by_bit(condition, tmp_path):
  before = model(**condition)
  after = without_classes(before, ["Spleen"])
  assert after.record.table.names == ("liver", "tumour")
  for name in after.record.table.names:
    np.testing.assert_array_equal(decoded(after, name), decoded(before, name))
  write_bundle(tmp_path / "smaller.condseg", after)  # which checks all shapes when it is read
  again = read_model(tmp_path / "smaller.condseg")
  jax.tree.map(np.testing.assert_array_equal, again.params, after.params)


def test_a_dynamic_head_keeps_its_function_up_to_rounding():
  """Its one-hot vector is divided by the root of the number of classes."""
  before = model(position="output_head", mechanism="dynamic", vector="one_hot")
  after = without_classes(before, ["spleen"])
  for name in ("liver", "tumour"):
    expected = decoded(before, name)
    np.testing.assert_allclose(decoded(after, name), expected, rtol=1e-4,
                               atol=1e-5 * np.abs(expected).max())


def test_every_member_of_an_ensemble_shrinks():
  whole = model(vector="embedding")
  other = jax.tree.map(lambda x: x + 1, whole.variables)
  after = without_classes(whole._replace(others=(other,)), ["spleen"])
  alone = without_classes(whole._replace(params=other["params"]), ["spleen"])
  assert len(after.others) == 1
  jax.tree.map(np.testing.assert_array_equal, after.others[0], alone.variables)


def test_nothing_speaks_of_it_any_more():
  after = without_classes(model(), ["spleen"])
  record = after.record
  assert record.table.presets == {"all": ("liver", "tumour")} == dict(record.config.data.presets)
  assert record.config.data.classes == ("liver", "tumour") and not record.config.loss.alpha
  assert record.table.overlapping == record.config.data.overlapping == (("liver", "tumour"),)
  assert record.config.data.lateral_axes == {"liver": ("H",)}
  assert set(record.priors) == {"liver", "tumour"} and after.graphs == ()
  assert after.facts["datasets"][0]["annotated"] == ["liver"]
  assert after.facts["held_out"] == {"mean_dice": 0.75, "dice": {"liver": 0.75}}
  assert "spleen" not in str((record, after.facts)).lower()


def test_the_command(tmp_path, capsys):
  whole, out = tmp_path / "whole.condseg", tmp_path / "out.condseg"
  write_bundle(whole, model()._replace(graphs=()))
  flags = [f"--workdir={whole}", f"--out={out}"]
  assert main(["condseg-export", *flags, "--without=liver,tumour"]) == 0
  assert read_model(out).record.table.names == ("spleen",)
  for names, fault in (("liver,spleen,tumour", "none would be left"),
                       ("heart", "unknown to this model")):
    assert main(["condseg-export", *flags, f"--without={names}"]) == 2
    assert fault in capsys.readouterr().err
  with pytest.raises(InputError, match="unknown"):
    without_classes(model(), ["heart"])
