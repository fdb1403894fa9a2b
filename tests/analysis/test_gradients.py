"""Gradients of the classes by layer equal those of training and can be compared without NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax import losses
from condseg_jax.analysis import gradients
from condseg_jax.analysis.run import gradient_measures
from condseg_jax.analysis.run import labelled_images
from condseg_jax.analysis.run import silent_layers
from condseg_jax.analysis.samples import Sample
from condseg_jax.config import Loss
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import class_logits


def network(position="decoder"):
  model = DenseUNet((0.1, -0.6), ((2, 2),), (0, 0), channels=4, growth=4, position=position)
  image = jax.random.normal(jax.random.key(1), (1, 8, 12, 1))
  return model, jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32)), image


def masks():
  rng = np.random.default_rng(0)
  mask = (rng.random((8, 12, 2)) < 0.4).astype(np.uint8)
  mask[0] = 255
  return mask


def class_gradient(model, bce_weight=1.0):
  return gradients.class_gradient(model, losses.make_objective(Loss(bce_weight=bce_weight)))


def test_layers_hold_all_parameters_but_the_class_vectors():
  model = DenseUNet((0.1, -0.6), ((2, 2),), (1, 1), vector="embedding")
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 12, 1)),
                          jnp.zeros(1, jnp.int32))
  params = jax.tree.map(lambda s: np.zeros(s.shape), shapes["params"])
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  counted = sum(len(vector) for vector in gradients.by_layer(params).values())
  assert counted == total - params["class_vector"]["embedding"].size


@pytest.mark.parametrize("position", ["input", "decoder"])
def test_it_is_the_gradient_of_the_objective(position):
  model, variables, image = network(position)
  mask, ids = masks()[None, ..., 1:], jnp.ones((1, 1), jnp.int32)

  def objective(params):
    logits = class_logits(model, {"params": params}, image, ids)
    loss_BN = losses.dice_bce(logits, jnp.asarray(mask), Loss(bce_weight=0.5))
    return losses.total(loss_BN, ids, jnp.ones((1, 1)), jnp.ones(2), global_batch=1)

  expected = gradients.by_layer(jax.jit(jax.grad(objective))(variables["params"]))
  found = gradients.by_layer(class_gradient(model, 0.5)(
      variables, image, mask[..., 0], jnp.ones(1, jnp.int32)))
  assert found.keys() == expected.keys()
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6)


def test_cosine():
  a = np.array([3.0, 4.0])
  assert gradients.cosine(a, 2 * a) == pytest.approx(1)
  assert gradients.cosine(a, -a) == pytest.approx(-1)
  assert gradients.cosine(a, np.array([0.0, 1.0])) == pytest.approx(0.8)
  assert gradients.cosine(a, np.zeros(2)) is None


def test_rounds_are_compared_within_and_with_the_round_before():
  x, y = np.array([1.0, 0.0]), np.array([0.0, 2.0])
  sums = gradients.compare([{"a": {"stem": x}, "b": {"stem": y}},
                            {"a": {"stem": -x}, "b": {"stem": x + y}}])
  means, spread = gradient_measures(sums, ["stem"])
  assert means["gradient_norm"]["a"] == [1] and spread["gradient_norm"]["a"] == [0]
  assert means["gradient_norm"]["b"][0] == pytest.approx((2 + 5 ** 0.5) / 2)
  assert means["gradient_cosine"]["a|b"][0] == pytest.approx((0 - 1 / 5 ** 0.5) / 2)
  assert means["gradient_agreement"] == {"a": [-1], "b": [pytest.approx(2 / 5 ** 0.5)]}


def test_a_network_without_a_condition_has_the_same_gradient_for_the_same_mask():
  model, variables, image = network("none")
  mask = masks()[..., 0]
  images = {name: [(np.asarray(image[0]), mask)] for name in ("a", "b")}
  rounds = gradients.rounds(class_gradient(model), variables, images,
                            {"a": 0, "b": 1}, 5)
  sums = gradients.compare(rounds)
  for values in sums.cosine["a", "b"].values():
    assert values == [pytest.approx(1)]


def test_between_images_there_is_no_conflict_of_classes():
  """With single-class cases every class has its own images, and only norms can be compared."""
  sample = Sample("x", np.zeros((2, 2, 1)), np.zeros((2, 2, 2), np.uint8), (0, 1))
  half = sample._replace(id="y", annotated=(0,))
  images, shared = labelled_images([half, sample, half], ["a", "b"])
  assert shared and list(map(len, images.values())) == [1, 1]
  images, shared = labelled_images([half, half, sample._replace(annotated=(1,))], ["a", "b"])
  assert not shared and list(map(len, images.values())) == [2, 1]
  x = np.array([1.0, 0.0])
  sums = gradients.compare([{"a": {"stem": x}, "b": {"stem": x}}], one_image=False)
  assert not sums.cosine and sums.norm["b"]["stem"] == [1]


def test_separate_decoders_are_listed_as_unmeasured():
  model = DenseUNet((0.1, -0.6), ((2, 2),), (0, 0), channels=4, growth=4,
                    position="per_class_decoders")
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 12, 1)),
                          jnp.zeros(1, jnp.int32))
  assert gradients.unmeasured(shapes["params"]) == ["decoders"]
  assert gradients.unmeasured(network()[1]["params"]) == []


def test_where_nothing_is_labelled_no_gradient_reaches_any_layer():
  model, variables, image = network()
  nothing = np.full((8, 12), 255, np.uint8)
  images = {"a": [(np.asarray(image[0]), nothing)] * 2, "b": [(np.asarray(image[0]), nothing)] * 2}
  order = list(gradients.by_layer(variables["params"]))
  sums = gradients.compare(gradients.rounds(class_gradient(model), variables, images,
                                            {"a": 0, "b": 1}, 2))
  means, _ = gradient_measures(sums, order)
  assert means["gradient_norm"]["a"] == [0] * len(order)
  assert means["gradient_cosine"]["a|b"] == [None] * len(order)
  assert means["gradient_agreement"]["a"] == [None] * len(order)
  assert silent_layers(means["gradient_norm"], order) == order
  assert silent_layers({"a": [0.0, 1.0], "b": [0.0, 0.0]}, ["x", "y"]) == ["x"]
