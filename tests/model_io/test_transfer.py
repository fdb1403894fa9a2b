"""What is taken of one network into another computes there what it computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Conditioning
from condseg_jax.config import Model
from condseg_jax.model_io.transfer import of_encoder
from condseg_jax.model_io.transfer import transfer
from condseg_jax.models.build import build_model
from condseg_jax.models.class_axes import class_axes

MODEL = Model(strides=((2, 2),), layers_per_level=(1, 1), channels=4, growth=4)
CODES = {"liver": -0.7, "spleen": 0.1, "tumour": 0.9, "pancreas": 0.5}
OLD = ("liver", "spleen", "tumour")
NEW = ("pancreas", "tumour", "liver")  # another order, one new, one gone
ROWS = {1: 2, 2: 0}
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 12, 1)), jnp.float32)


def network(names, seed, model=MODEL, channels=1, **condition):
  """A network for classes, its parameters (nowhere 0 or 1), and their axes over classes."""
  condition = Conditioning(**condition)
  if condition.vector == "text":
    condition = dataclasses.replace(condition, texts=tuple(
        (1.0, CODES[name]) for name in names))
  built = build_model(model, condition, [CODES[name] for name in names])
  image = jnp.zeros((1, 8, 12, channels))
  shapes = jax.eval_shape(built.init, jax.random.key(0), image, jnp.zeros(1, jnp.int32))
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(lambda x: rng.normal(0.5, 0.5, x.shape).astype(np.float32), shapes)
  return built, variables, class_axes(model, condition, len(names), channels)


@pytest.mark.parametrize("condition", [
    dict(), dict(vector="one_hot"), dict(mechanism="film", vector="embedding"),
    dict(mechanism="norm", vector="one_hot"), dict(vector="text", mechanism="film"),
    dict(position="output_head", mechanism="output"),
    dict(position="output_head", mechanism="dynamic", vector="embedding"),
    dict(position="per_class_decoders"), dict(mechanism="batch_norm", vector="embedding")], ids=str)
def test_a_class_is_decoded_as_before(condition):
  """Bit by bit, in a network with other classes in another order."""
  before, old, old_axes = network(OLD, 1, **condition)
  after, new, new_axes = network(NEW, 2, **condition)
  done = transfer(old, new, source_classes=old_axes, target_classes=new_axes, rows=ROWS)
  assert not done.left and not done.unused
  decode = lambda model, variables, k: np.asarray(model.apply(variables, IMAGE, jnp.full(1, k)))
  for here, there in ROWS.items():
    was = decode(before, old, there)
    np.testing.assert_array_equal(decode(after, done.variables, here), was)
    assert np.abs(was - decode(after, new, here)).max() > 1e-3
  # The entries of the new class are what they were.
  for name, axis in new_axes.axes.items():
    keys = name.split("/")
    x, y = new, done.variables
    for key in keys:
      x, y = x[key], y[key]
    x, y = np.moveaxis(x, axis, 0), np.moveaxis(y, axis, 0)
    np.testing.assert_array_equal(x[-len(NEW)], y[-len(NEW)])


def test_neither_tree_is_changed():
  _, old, old_axes = network(OLD, 1, vector="embedding")
  _, new, new_axes = network(NEW, 2, vector="embedding")
  copies = jax.tree.map(np.array, (old, new))
  transfer(old, new, source_classes=old_axes, target_classes=new_axes, rows=ROWS)
  jax.tree.map(np.testing.assert_array_equal, (old, new), copies)


def test_the_encoder_alone():
  _, old, _ = network(OLD, 1)
  _, new, _ = network(NEW, 2)
  done = transfer(old, new, wanted=of_encoder)
  assert {name.split("/")[1] for name in done.taken} == {"stem", "down_0", "down_1"}
  for part in new["params"]:
    tree = old if part.startswith(("stem", "down")) else new
    jax.tree.map(np.testing.assert_array_equal, done.variables["params"][part],
                 tree["params"][part])


def test_what_does_not_fit_is_named():
  _, old, _ = network(OLD, 1, channels=3)
  smaller = dataclasses.replace(MODEL, layers_per_level=(1, 0))
  _, new, _ = network(NEW, 2, smaller)
  done = transfer(old, new, wanted=of_encoder)
  assert done.left == {
      "params/stem/conv/kernel": "its shape is (3, 3, 3, 4) in the source, (3, 3, 1, 4) here",
      "params/down_1/join/conv/kernel":
          "its shape is (1, 1, 12, 8) in the source, (1, 1, 4, 8) here"}
  assert set(done.unused) == {f"params/down_1/layer_0/{name}" for name in (
      "conv/kernel", "norm/scale", "norm/bias")}
  assert "params/stem/norm/scale" in done.taken


def test_classes_and_shared_arrays_are_not_mistaken_for_one_another():
  _, old, old_axes = network(OLD, 1, mechanism="film", vector="one_hot")
  _, new, new_axes = network(NEW, 2, mechanism="film", vector="embedding", embedding_size=3)
  axes = dict(source_classes=old_axes, target_classes=new_axes)
  done = transfer(old, new, rows=ROWS, **axes)
  gamma = "params/merge_0/join/condition/gamma/kernel"
  assert done.left[gamma] == "has entries per class in one of the networks only"
  assert done.left["params/class_vector/embedding"] == "the source has none"
  _, same, same_axes = network(NEW, 3, mechanism="film", vector="one_hot")
  done = transfer(old, same, source_classes=old_axes, target_classes=same_axes)
  assert done.left[gamma].startswith("no class of the source")
