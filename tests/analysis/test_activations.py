"""Outputs of the layers, in network order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.analysis import activations
from condseg_jax.analysis.gradients import by_layer
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import class_logits
from condseg_jax.models.res_unet import ResUNet

ORDER = ["stem", "down_0/layer_0", "down_0/join", "down_1/layer_0", "down_1/layer_1", "down_1/join",
         "down_2/layer_0", "down_2/join", "up_1", "merge_1/layer_0", "merge_1/layer_1",
         "merge_1/join", "up_0", "merge_0/layer_0", "merge_0/join", "head"]


def network(position="decoder", ndim=3, **settings):
  return DenseUNet((0.1, -0.6), ((1, 2, 2)[-ndim:], (2, 2, 2)[-ndim:]), (1, 2, 1), channels=4,
                   growth=4, position=position, **settings)


@pytest.mark.parametrize("settings", [
    {"position": "input"}, {"position": "encoder"}, {"position": "decoder"}, {"position": "none"},
    {"position": "output_head", "mechanism": "dynamic"}, {"from_level": 0}, {"ndim": 2},
    {"remat": True}, {"deep_supervision": 1}], ids=str)
def test_order_and_place(settings):
  """The layers are the same, in the same order, wherever the condition enters."""
  layers = activations.list_layers(network(**settings), 1)
  assert [layer.name for layer in layers] == ORDER
  assert [layer.part for layer in layers] == ["encoder"] * 8 + ["decoder"] * 8
  assert [layer.level for layer in layers] == [0] * 3 + [1] * 3 + [2] * 2 + [1] * 4 + [0] * 4
  widths = [4, 4, 4, 8, 8, 8, 12, 12, 8, 8, 8, 8, 4, 4, 4, 1]
  assert [layer.channels for layer in layers] == widths


@pytest.mark.parametrize("position, first", [("input", "stem"), ("encoder", "down_1/layer_0"),
                                             ("decoder", "merge_0/layer_0"),
                                             ("output_head", "head"),
                                             ("none", None)])
def test_outputs(position, first):
  """They equal those of the network; the class changes exactly the layers after the condition."""
  model = DenseUNet((0.1, -0.6), ((2, 2),), (1, 1), channels=4, growth=4, position=position,
                    mechanism="dynamic" if position == "output_head" else "channel")
  image = jax.random.normal(jax.random.key(1), (1, 8, 12, 1))
  variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))
  names, compute = [p.name for p in activations.list_layers(model, 1)], activations.compiled(model)
  a, b = (dict(zip(names, compute(variables, image, jnp.full(1, i, jnp.int32)), strict=True))
          for i in (0, 1))
  # The names are those of the parameters, and every layer with parameters is included.
  assert set(names) == set(by_layer(variables["params"]))
  logits = jax.jit(lambda v, x: class_logits(model, v, x, jnp.ones((1, 1), jnp.int32)))
  np.testing.assert_allclose(b["head"], logits(variables, image), atol=1e-5)
  if position in ("decoder", "none"):
    features = jax.jit(lambda v, x: model.apply(v, x, method=model.encode))(variables, image)
    np.testing.assert_allclose(a["down_1/join"], features.x, atol=1e-5)
    np.testing.assert_allclose(a["down_0/join"], features.skips[0], atol=1e-5)
  changed = [name for name in names if bool((a[name] != b[name]).any())]
  assert changed == ([] if first is None else names[names.index(first):])


def test_the_layers_of_the_residual_network():
  """Every one with parameters is found, in network order; a residual unit is one layer."""
  model = ResUNet((0.1, -0.6), ((2, 2),), (1, 2), channels=4)
  found = activations.list_layers(model, 1)
  assert [(layer.name, layer.part, layer.level, layer.channels) for layer in found] == [
      ("stem", "encoder", 0, 4), ("down_0/unit_0", "encoder", 0, 4),
      ("down_1/unit_0", "encoder", 1, 8), ("down_1/unit_1", "encoder", 1, 8),
      ("up_0", "decoder", 0, 4), ("merge_0/layer_0", "decoder", 0, 4), ("head", "decoder", 0, 1)]
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)),
                          jnp.zeros(1, jnp.int32))["params"]
  assert {activations.layer_name([key.key for key in path])
          for path, _ in jax.tree.leaves_with_path(params)} == {layer.name for layer in found}
