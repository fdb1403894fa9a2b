"""Networks between the one before growth and the one after it, with numbers of our own."""

import dataclasses

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.grow.blend import blended
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.own_rows import own_rows
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.class_axes import class_axes
from condseg_jax.models.network import variable_shapes
from condseg_jax.plan import Plan


def network(names, value, **changes) -> Bundle:
  """A network of which every parameter has the same value."""
  config = Config().override({"model.channels": 4, "model.growth": 4, **changes})
  record = ModelRecord(config, ClassTable.create(names), Plan("mr", (1.0,) * 3, (8, 8, 8)))
  model = build_model(config.model, config.conditioning, record.table.codes)
  variables = jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32),
                           variable_shapes(model, 1))
  return Bundle(record, variables["params"], {"step": 7})


def leaves(bundle):
  axes = class_axes(bundle.record.config.model, bundle.record.config.conditioning,
                    len(bundle.record.table), 1).axes
  for path, leaf in jax.tree_util.tree_leaves_with_path(bundle.variables):
    name = "/".join(key.key for key in path)
    yield name, np.moveaxis(np.asarray(leaf), axes[name], 0) if name in axes else None, leaf


def test_what_is_shared_lies_between_and_what_is_new_is_new():
  before = network(["liver", "spleen"], 1.0, **{"conditioning.vector": "one_hot"})
  after = network(["liver", "spleen", "cyst"], 3.0, **{"conditioning.vector": "one_hot"})
  found = blended(before, after, 0.75)
  assert found.record == after.record and found.facts == after.facts
  own = 0
  for _, rows, leaf in leaves(found):
    if rows is None:
      np.testing.assert_array_equal(leaf, 2.5)
    else:
      own += 1
      np.testing.assert_array_equal(rows[:-1], 2.5)
      np.testing.assert_array_equal(rows[-1], 3.0)
  assert own
  assert blended(before, after, 1) is after


def test_a_network_whose_vectors_became_rows():
  """The network before has hash values, the one after a row for each class."""
  before = network(["liver", "spleen"], 1.0, **{"conditioning.vector": "hash"})
  conditioning = own_rows(before.record.config.conditioning)
  after = network(["liver", "spleen", "cyst"], 3.0,
                  **{f"conditioning.{k}": v for k, v in dataclasses.asdict(conditioning).items()})
  codes = np.asarray(before.record.table.codes, np.float32)
  row = next(rows for _, rows, _ in leaves(blended(before, after, 0.5)) if rows is not None)
  for value, code in zip(row[-3:-1], codes, strict=True):
    np.testing.assert_allclose(value, 0.5 * (code + 3.0), rtol=1e-6)
  np.testing.assert_array_equal(row[-1], 3.0)
