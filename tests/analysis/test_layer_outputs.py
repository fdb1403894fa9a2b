"""Outputs of the layers: in network order, the same layers wherever the condition enters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.analysis import activations
from condseg_jax.models.dense_unet import class_logits
from condseg_jax.models.dense_unet import DenseUNet

ORDER = ["stem", "down_0/layer_0", "down_0/join", "down_1/layer_0", "down_1/layer_1", "down_1/join",
         "down_2/layer_0", "down_2/join", "up_1", "merge_1/layer_0", "merge_1/layer_1",
         "merge_1/join", "up_0", "merge_0/layer_0", "merge_0/join", "head"]


def network(position="decoder", ndim=3, **settings):
  model = DenseUNet((0.1, -0.6), ((1, 2, 2)[-ndim:], (2, 2, 2)[-ndim:]), (1, 2, 1), channels=4,
                    growth=4, position=position, **settings)
  image = jax.random.normal(jax.random.key(1), (1, *(4, 8, 12)[-ndim:], 1))
  return model, jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32)), image


def outputs(model, variables, image, class_id):
  names = [p.name for p in activations.places(model, image.shape[-1])]
  found = activations.compiled(model)(variables, image, jnp.full(1, class_id, jnp.int32))
  return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("settings", [
    {"position": "input"}, {"position": "encoder"}, {"position": "decoder"}, {"position": "none"},
    {"position": "decoder", "from_level": 0}, {"position": "decoder", "ndim": 2},
    {"position": "decoder", "remat": True}, {"position": "decoder", "deep_supervision": 1}],
    ids=str)
def test_order_and_place(settings):
  model, variables, image = network(**settings)
  places = activations.places(model, 1)
  assert [p.name for p in places] == ORDER
  assert [p.part for p in places] == ["encoder"] * 8 + ["decoder"] * 8
  assert [p.level for p in places] == [0] * 3 + [1] * 3 + [2] * 2 + [1] * 4 + [0] * 4
  found = outputs(model, variables, image, 1)
  assert [x.shape[-1] for x in found.values()] == [p.channels for p in places]
  assert list(activations.activations(model, variables, image, jnp.ones(1, jnp.int32))) == ORDER


@pytest.mark.parametrize("position", ["input", "encoder", "decoder", "head"])
def test_the_outputs_are_those_of_the_network(position):
  model, variables, image = network(position)
  found = outputs(model, variables, image, 1)
  assert list(found)[:-1] == ORDER[:-1] and list(found)[-1] == "head"
  logits = class_logits(model, variables, image, jnp.ones((1, 1), jnp.int32))
  np.testing.assert_allclose(found["head"], logits, atol=1e-5)
  if position == "decoder":
    features = model.apply(variables, image, method=model.encode)
    for name, expected in zip(("down_0/join", "down_1/join", "down_2/join"),
                              (*features.skips, features.x), strict=True):
      np.testing.assert_allclose(found[name], expected, atol=1e-5)


@pytest.mark.parametrize("position, first", [("input", "stem"), ("encoder", "down_1/layer_0"),
                                             ("decoder", "merge_1/layer_0"), ("head", "head"),
                                             ("none", None)])
def test_the_class_changes_what_follows_the_condition_and_nothing_before(position, first):
  model, variables, image = network(position)
  a, b = (outputs(model, variables, image, i) for i in (0, 1))
  changed = [name for name in ORDER if bool((a[name] != b[name]).any())]
  if first is None:
    assert not changed
  else:
    start = ORDER.index(first)
    # An upsampling copies, and a layer that sees the class follows each.
    assert changed[0] == first and changed == ORDER[start:]
