"""Rows of its own for every class: the same network, said in another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.own_rows import with_own_rows
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.network import variable_shapes
from condseg_jax.plan import Plan

NAMES = ("liver", "spleen", "tumour")
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 12, 1)), jnp.float32)


def network(**condition) -> Bundle:
  texts = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)] if condition.get("vector") == "text" else ()
  config = Config().override({
      "model.strides": ((2, 2),), "model.layers_per_level": (1, 1), "model.channels": 4,
      "model.growth": 4, "data.subvolume": (8, 12), "conditioning.texts": texts,
      "model.dtype": "float32", **{f"conditioning.{k}": v for k, v in condition.items()}})
  table = ClassTable.create(NAMES)
  model = build_model(config.model, config.conditioning, table.codes)
  shapes = variable_shapes(model, 1)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(0.5, 0.5, x.shape).astype(np.float32), shapes)
  return Bundle(ModelRecord(config, table, Plan("mr", (1.0, 1.0), (8, 12))), variables["params"],
                {"step": 3}, statistics=variables.get("statistics", {}))


def decoded(bundle):
  """The logits of every class."""
  record = bundle.record
  model = build_model(record.config.model, record.config.conditioning, record.table.codes)
  decode = jax.jit(model.apply)
  return np.stack([decode(bundle.variables, IMAGE, jnp.full(1, k)) for k in range(len(NAMES))])


@pytest.mark.parametrize("condition", [
    dict(), dict(mechanism="film"), dict(position="input")], ids=str)
def test_of_a_hash_bit_by_bit(condition):
  before = network(**condition)
  after = with_own_rows(before)
  assert after.record.config.conditioning.vector == "one_hot"
  np.testing.assert_array_equal(decoded(after), decoded(before))


@pytest.mark.parametrize("condition", [
    dict(vector="embedding"), dict(vector="text", mechanism="spade"),
    dict(vector="embedding", position="output_head", mechanism="dynamic")], ids=str)
def test_of_a_learned_vector_up_to_rounding(condition):
  before = network(**condition)
  after = with_own_rows(before)
  assert "class_vector" in before.params and "class_vector" not in after.params
  expected = decoded(before)
  np.testing.assert_allclose(decoded(after), expected, rtol=1e-4,
                             atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("condition", [
    dict(vector="one_hot"), dict(position="per_class_decoders"),
    dict(position="output_head", mechanism="output"), dict(position="none")], ids=str)
def test_what_has_them_or_no_vector_stays_as_it_is(condition):
  before = network(**condition)
  assert with_own_rows(before) is before
