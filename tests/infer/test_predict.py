"""Encode once, decode per class; the sliding window is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.infer.predict import class_probabilities
from condseg_jax.infer.predict import CLASS_CHUNK
from condseg_jax.infer.predict import window_functions
from condseg_jax.models.dense_unet import DenseUNet

WINDOW = (4, 8, 8)
CODES = tuple(np.linspace(-1, 1, CLASS_CHUNK + 3).tolist())


def network(position):
  model = DenseUNet(codes=CODES, strides=((2, 2, 2),), depth=(1, 1), channels=4, growth=4,
                    position=position)
  image = jnp.zeros((1, *WINDOW, 1))
  variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))
  return model, variables


@pytest.fixture(scope="module")
def decoder_network():
  return network("decoder")


def counting(functions):
  """The functions, and how often each was called."""
  calls = {"encode": 0, "decode": 0}

  def count(name):
    def call(*args):
      calls[name] += 1
      return getattr(functions, name)(*args)
    return call

  return functions._replace(encode=count("encode"), decode=count("decode")), calls


@pytest.mark.parametrize("classes", [1, 3, len(CODES)])
def test_the_encoder_runs_once_per_window_whatever_the_class_count(decoder_network, classes):
  model, variables = decoder_network
  functions, calls = counting(window_functions(model))
  image = np.random.default_rng(0).normal(size=(4, 12, 8, 1)).astype(np.float32)
  class_probabilities(functions, variables, image, range(classes), WINDOW, window_batch=1)
  windows = 2
  assert calls["encode"] == windows
  assert calls["decode"] == windows * -(-classes // CLASS_CHUNK)


@pytest.mark.parametrize("position", ["decoder", "encoder", "input"])
def test_one_window_equals_the_full_pass(position):
  model, variables = network(position)
  image = np.random.default_rng(1).normal(size=(*WINDOW, 1)).astype(np.float32)
  ids = [7, 0, 3]
  found = class_probabilities(window_functions(model), variables, image, ids, WINDOW)
  for plane, class_id in zip(found, ids, strict=True):
    logits = model.apply(variables, image[None], jnp.array([class_id], jnp.int32))
    np.testing.assert_allclose(plane, jax.nn.sigmoid(logits)[0], atol=1e-6)


def test_more_classes_than_a_chunk_equal_one_by_one(decoder_network):
  model, variables = decoder_network
  functions = window_functions(model)
  image = np.random.default_rng(2).normal(size=(4, 8, 13, 1)).astype(np.float32)
  ids = list(range(len(CODES)))
  together = class_probabilities(functions, variables, image, ids, WINDOW)
  for class_id in ids:
    alone = class_probabilities(functions, variables, image, [class_id], WINDOW)
    np.testing.assert_allclose(together[class_id], alone[0], atol=1e-6)


def test_the_batch_of_windows_does_not_matter(decoder_network):
  model, variables = decoder_network
  functions = window_functions(model)
  image = np.random.default_rng(3).normal(size=(5, 11, 9, 1)).astype(np.float32)
  one = class_probabilities(functions, variables, image, [1, 2], WINDOW, window_batch=1)
  three = class_probabilities(functions, variables, image, [1, 2], WINDOW, window_batch=3)
  assert one.shape == (2, 5, 11, 9)
  np.testing.assert_allclose(one, three, atol=1e-6)


def test_a_smaller_volume_is_surrounded_by_its_edge(decoder_network):
  model, variables = decoder_network
  functions = window_functions(model)
  image = np.random.default_rng(4).normal(size=(2, 8, 5, 1)).astype(np.float32)
  found = class_probabilities(functions, variables, image, [1], WINDOW)
  padded = np.pad(image, ((1, 1), (0, 0), (1, 2), (0, 0)), mode="edge")
  whole = class_probabilities(functions, variables, padded, [1], WINDOW)
  np.testing.assert_allclose(found, whole[:, 1:3, :, 1:6], atol=1e-6)


def test_volumes_of_any_shape_share_one_program(decoder_network):
  model, variables = decoder_network
  functions = window_functions(model)
  for shape in ((4, 8, 8), (5, 20, 9), (3, 3, 30)):
    class_probabilities(functions, variables, np.zeros((*shape, 1), np.float32), [0, 1], WINDOW)
  assert window_functions(model) is functions
  before = functions.encode._cache_size(), functions.decode._cache_size()
  class_probabilities(functions, variables, np.zeros((9, 9, 9, 1), np.float32), [0, 1], WINDOW)
  assert (functions.encode._cache_size(), functions.decode._cache_size()) == before
