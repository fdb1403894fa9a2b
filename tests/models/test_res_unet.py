"""The residual U-Net: shapes, its units, what depends on the class and what does not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Conditioning
from condseg_jax.config import Model
from condseg_jax.errors import InputError
from condseg_jax.export.network import onnx_halves
from condseg_jax.infer.full_volume import full_volume_slabs
from condseg_jax.models import layers
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.build import build_model
from condseg_jax.models.network import class_logits
from condseg_jax.models.network import level_logits
from condseg_jax.models.res_unet import MAX_FEATURES
from condseg_jax.models.res_unet import ResidualUnit
from condseg_jax.models.res_unet import ResUNet

CODES = (0.7, -0.5, 0.1)
SMALL = dict(codes=CODES, strides=((2, 2),), layers_per_level=(1, 2), channels=4)
DEEP = dict(strides=((2, 2), (1, 2)), layers_per_level=(1, 1, 1))
# Nothing but the gradient is jitted: the nets share their few operations, each compiled once.


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


IMAGE = normal(0, 2, 16, 24, 1)


@functools.cache
def network(**settings):
  model = ResUNet(**(SMALL | settings))
  return model, model.init(jax.random.key(0), IMAGE, jnp.zeros(2, jnp.int32))


def shapes(model, image_shape):
  """Returns shapes of the parameters, of `encode` and of the logits of every level, 3 classes."""
  image, ids = jnp.zeros(image_shape), jnp.zeros((image_shape[0], 3), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image, ids[:, 0])
  features = jax.eval_shape(functools.partial(model.apply, method=model.encode), variables, image,
                            ids[:, 0])
  logits = jax.eval_shape(functools.partial(level_logits, model), variables, image, ids)
  return variables["params"], features, logits


@pytest.mark.parametrize("strides, shape, levels", [
    (((2, 2), (2, 1)), (8, 12), [(8, 12), (4, 6), (2, 6)]),
    (((1, 2, 2), (2, 2, 2)), (4, 8, 8), [(4, 8, 8), (4, 4, 4), (2, 2, 2)])])
def test_shapes_in_2d_and_3d(strides, shape, levels):
  model = ResUNet(CODES, strides, (1, 2, 1), channels=200, deep_supervision=1, dtype=jnp.bfloat16)
  assert model.ndim == len(shape)
  assert model.stride == tuple(n // m for n, m in zip(levels[0], levels[-1], strict=True))
  params, features, logits = shapes(model, (2, *shape, 3))
  widths = [200, MAX_FEATURES, MAX_FEATURES]  # doubled, up to a limit
  found = [(s.shape, s.dtype) for s in (*features.skips, features.x)]
  assert found == [((2, *s, w), jnp.bfloat16) for s, w in zip(levels, widths, strict=True)]
  assert [(level.shape, level.dtype) for level in logits] == [
      ((2, *s, 3), jnp.float32) for s in levels[:2]]
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
  assert [len(params[f"down_{level}"]) for level in range(3)] == [1, 2, 1]
  assert [len(params[f"merge_{level}"]) for level in range(2)] == [1, 1]


def test_the_parameters_of_the_presets_written_out():
  """Of ResEnc M and L: 32 features, doubled up to 320, and 1, 3, 4, 6, 6 and 6 units."""
  widths, units = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)
  model = ResUNet(CODES, ((2, 2, 2),) * 5, units, channels=32)
  found = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)),
                         jnp.zeros(1, jnp.int32))
  layer = lambda c, o, window=27: window * c * o + 2 * o  # with scale and bias of the norm
  count = layer(1, 32) + 33  # stem, head
  for fine, width, n in zip((32, *widths), widths, units, strict=False):
    count += layer(fine, width) + (2 * n - 1) * layer(width, width)
    count += layer(fine, width, 1) if fine != width else 0
  for width, coarse in zip(widths, widths[1:], strict=False):
    count += 8 * coarse * width + layer(2 * width, width) + 27 * width  # the code is one channel
  assert sum(leaf.size for leaf in jax.tree.leaves(found)) == count


def test_the_plain_network_has_layers_in_place_of_units():
  """The stem is the first layer of level 0, and `max_channels` limits the doubling."""
  model = build_model(Model(network="plain_unet", strides=((2, 2),) * 2, layers_per_level=(2, 3, 1),
                            channels=4, max_channels=12), Conditioning(), CODES)
  params, features, _ = shapes(model, (2, 16, 24, 1))
  assert [sorted(params[f"down_{level}"]) for level in range(3)] == [
      ["layer_0"], ["layer_0", "layer_1", "layer_2"], ["layer_0"]]
  assert [f.shape for f in (*features.skips, features.x)] == [
      (2, 16, 24, 4), (2, 8, 12, 8), (2, 4, 6, 12)]
  one, *_ = shapes(model.clone(layers_per_level=(1, 1, 1)), (2, 16, 24, 1))
  assert "down_0" not in one and "stem" in one


def test_a_copy_is_equal_and_has_the_same_hash():
  model = ResUNet(**SMALL)
  assert model.clone() == model and hash(model.clone()) == hash(model)
  again = model.clone(batch_axes=("batch",))
  assert again.batch_axes == ("batch",) and again != model


def test_a_strided_unit_is_written_out():
  unit = ResidualUnit(6, (1, 2, 2), BlockConfig("none", "relu"))
  x = normal(1, 2, 4, 6, 4, 3)
  params = unit.init(jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: p + 0.05 * normal(p.size, *p.shape), params)

  def convolve(x, layer):
    y = layers.convolve_native(x, params[layer]["conv"]["kernel"])
    return y + params[layer]["conv"]["bias"].reshape(1, 1, 1, 1, -1)

  inside = convolve(jax.nn.relu(convolve(x, "layer_0")[:, :, ::2, ::2]), "layer_1")
  blocks = x.reshape(2, 4, 3, 2, 2, 2, 3).mean((3, 5))
  expected = jax.nn.relu(inside + convolve(blocks, "projection"))
  np.testing.assert_allclose(unit.apply({"params": params}, x), expected, atol=1e-5)


def test_a_unit_of_the_same_shape_has_no_projection():
  unit = ResidualUnit(3, (1, 1), BlockConfig("instance", "relu"))
  assert set(unit.init(jax.random.key(0), normal(1, 1, 4, 4, 3))["params"]) == {"layer_0",
                                                                               "layer_1"}


# --- the class ------------------------------------------------------------------------------
def test_an_image_is_encoded_once_for_all_classes():
  model, variables = network()
  a, b = (model.apply(variables, IMAGE, ids, method=model.encode)
          for ids in (None, jnp.array([1, 2])))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  ids = jnp.array([[0, 2, 1], [1, 1, 0]])
  found = class_logits(model, variables, IMAGE, ids)
  for n in range(3):
    np.testing.assert_allclose(found[..., n], model.apply(variables, IMAGE, ids[:, n]), atol=1e-5)


@pytest.mark.parametrize("settings", [
    {}, {"mechanism": "film", "vector": "embedding"}, {"mechanism": "spade", "vector": "one_hot"},
    {"position": "input"}], ids=str)
def test_two_classes_differ(settings):
  model, variables = network(**settings)
  a, b = (np.asarray(model.apply(variables, IMAGE, jnp.full(2, k))) for k in (0, 1))
  # Inside the image as well: padding would reveal a condition that a norm has erased.
  assert np.abs(a - b)[:, 6:-6, 6:-6].mean() > 0.01


def test_position_none_ignores_the_class():
  model, variables = network(position="none")
  a, b = (model.apply(variables, IMAGE, jnp.full(2, k)) for k in (0, 1))
  np.testing.assert_array_equal(a, b)
  assert "class_vector" not in variables["params"]


def test_unconditioned_decoder_levels_belong_to_encode():
  params, features, _ = shapes(ResUNet(**SMALL | DEEP, from_level=0), (2, 16, 24, 1))
  assert features.x.shape == (2, 8, 12, 8) and len(features.skips) == 1
  assert "condition" in params["merge_0"]["layer_0"]
  assert "condition" not in params["merge_1"]["layer_0"]


def test_an_encoder_that_sees_the_class_asks_for_it():
  model, variables = network(position="input")
  with pytest.raises(ValueError, match="position 'input' needs the class"):
    model.apply(variables, IMAGE, method=model.encode)


# --- training -------------------------------------------------------------------------------
def test_the_gradient_reaches_every_parameter():
  model = ResUNet(**SMALL | DEEP, deep_supervision=1, remat=True)
  image, ids = IMAGE[:, :8, :8], jnp.array([[0], [1]])
  variables = model.init(jax.random.key(0), image, ids[:, 0])

  def loss(variables):
    return sum((level ** 2).mean() for level in level_logits(model, variables, image, ids))

  for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables)):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


# --- settings -------------------------------------------------------------------------------
MODEL = Model(network="res_unet", strides=((2, 2),), layers_per_level=(1, 1), channels=4)


def test_every_setting_reaches_it():
  model = dataclasses.replace(MODEL, decoder_layers_per_level=(2,), norm="none", activation="relu",
                              dtype="bfloat16", remat=True)
  condition = Conditioning(mechanism="film", vector="embedding", embedding_size=3, from_level=0)
  assert build_model(model, condition, CODES) == ResUNet(
      CODES, ((2, 2),), (1, 1), (2,), channels=4, norm="none", activation="relu",
      dtype=jnp.bfloat16, remat=True, mechanism="film", vector="embedding", embedding_size=3,
      from_level=0)


@pytest.mark.parametrize("change, fault", [
    (dict(position="encoder"), "position 'encoder' is not one of none, input, decoder"),
    (dict(position="output_head", mechanism="dynamic"), "position 'output_head' is not"),
    (dict(position="per_class_decoders"), "position 'per_class_decoders' is not"),
    (dict(layers_per_level=(0, 1)), "1 or more"), (dict(layers_per_level=(1,)), "levels"),
    (dict(decoder_layers_per_level=(0,)), "1 or more"), (dict(norm="batch"), "norm"),
    (dict(decoder_layers_per_level=(1, 1)), "decoder_layers_per_level"),
    (dict(strides=((2, 0),)), "1 or more"), (dict(strides=((2,),)), "axes"),
    (dict(position="input", mechanism="spade"), "does not act"), (dict(from_level=1), "from_level"),
    (dict(deep_supervision=1), "deep_supervision"), (dict(mechanism="tint"), "mechanism"),
    (dict(max_channels=0), "1 or more"),
    (dict(network="dense_unet", max_channels=9), "no effect on the network 'dense_unet'"),
    (dict(growth=8), "growth has no effect on the network 'res_unet'"),
    (dict(encoder_block="plain"), "encoder_block has no effect"),
    (dict(decoder="fcn"), "decoder has no effect")], ids=str)
def test_settings_that_make_no_network(change, fault):
  fields = {f.name for f in dataclasses.fields(Model)}
  model = dataclasses.replace(MODEL, **{k: v for k, v in change.items() if k in fields})
  condition = Conditioning(**{k: v for k, v in change.items() if k not in fields})
  with pytest.raises(InputError, match=fault) as error:
    build_model(model, condition, CODES)
  assert error.value.usage


def test_what_it_cannot_do_is_one_line():
  model, variables = network()
  with pytest.raises(InputError, match="cannot be split over devices .* ResUNet"):
    next(full_volume_slabs(model, variables, np.asarray(IMAGE[0]), [0], jax.devices()[:2]))
  with pytest.raises(InputError, match="ONNX export does not support ResUNet"):
    onnx_halves(model, variables["params"], (16, 24), 1)
