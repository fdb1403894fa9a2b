"""Many probabilities, one label."""

import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.infer.fuse import best_class
from condseg_jax.infer.fuse import check_fusion
from condseg_jax.infer.fuse import exclusive_probabilities


def test_the_most_probable_class_above_the_threshold():
  planes = np.array([[0.9, 0.6, 0.4, 0.5], [0.8, 0.7, 0.3, 0.5]], np.float32)
  label = best_class(planes, (4, 0), 0.5)
  # Below the threshold it is background; of equals the earlier class wins.
  np.testing.assert_array_equal(label, [5, 1, 0, 5])
  assert label.dtype == np.uint8


def test_many_classes_need_sixteen_bits():
  label = best_class(np.ones((1, 2), np.float32), (255,), 0.5)
  assert label.dtype == np.uint16 and label.tolist() == [256, 256]


def test_exclusive_probabilities_are_the_softmax_of_the_logits():
  logits = np.random.default_rng(0).normal(0, 2, (3, 5))
  independent = 1 / (1 + np.exp(-logits))
  expected = np.exp(logits) / (1 + np.exp(logits).sum(0))
  np.testing.assert_allclose(exclusive_probabilities(independent), expected, rtol=1e-5)
  assert (exclusive_probabilities(np.ones((2, 4))).sum(0) <= 1 + 1e-6).all()


def test_unknown_fusion_is_wrong_usage():
  with pytest.raises(InputError) as error:
    check_fusion("vote")
  assert error.value.usage and "argmax" in str(error.value)
