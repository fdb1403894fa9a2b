"""Fusion of class probabilities to the best class of every voxel."""

import numpy as np
import pytest

from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError
from condseg_jax.infer.fuse import best_class
from condseg_jax.infer.fuse import check_fusion
from condseg_jax.infer.fuse import confidence
from condseg_jax.infer.fuse import finite
from condseg_jax.infer.fuse import label_map
from condseg_jax.infer.fuse import ranks
from condseg_jax.infer.sliding_window import Slab


def slabs(planes, class_ids):
  """Slabs of one class each, with every plane cut in two along its axis."""
  middle = planes.shape[1] // 2
  for k, class_id in enumerate(class_ids):
    for rows in (slice(0, middle), slice(middle, planes.shape[1])):
      yield Slab([class_id], (rows,), planes[k:k + 1, rows])


def test_the_most_probable_class_and_of_equals_the_earlier():
  planes = np.array([[0.9, 0.6, 0.4, 0.5], [0.8, 0.7, 0.3, 0.5]], np.float32)
  label, score = best_class(slabs(planes, (4, 0)), (4,), (4, 0))
  np.testing.assert_array_equal(label, [5, 1, 5, 5])
  np.testing.assert_array_equal(score, planes.max(0))
  assert label.dtype == np.uint8


def test_confidence_is_of_the_voxels_that_reach_the_threshold():
  best = np.array([[1, 1, 2], [1, 2, 3]], np.uint8)
  score = np.array([[0.9, 0.2, 0.6], [0.7, 0.8, 0.4]], np.float32)
  assert confidence(best, score, 0.5) == pytest.approx({1: 0.8, 2: 0.7})


def test_many_classes_need_sixteen_bits():
  label, _ = best_class(slabs(np.ones((1, 2), np.float32), (255,)), (2,), (255,))
  assert label.dtype == np.uint16 and label.tolist() == [256, 256]


def test_exclusive_probabilities_are_the_softmax_of_the_logits():
  logits = np.random.default_rng(0).normal(0, 2, (3, 6))
  independent = (1 / (1 + np.exp(-logits))).astype(np.float32)
  expected = np.exp(logits) / (1 + np.exp(logits).sum(0))
  label, score = best_class(slabs(independent, range(3)), (6,), range(3), exclusive=True)
  np.testing.assert_array_equal(label, expected.argmax(0) + 1)
  np.testing.assert_allclose(score, expected.max(0), rtol=1e-5)


def test_certain_classes_share_a_voxel_without_overflow():
  _, score = best_class(slabs(np.ones((2, 4), np.float32), (0, 1)), (4,), (0, 1), exclusive=True)
  np.testing.assert_allclose(score, 0.5, rtol=1e-5)


def test_a_part_wins_where_it_reaches_the_threshold_and_only_there():
  """Columns: liver certain, tumour likely; tumour just below; both certain; only tumour."""
  planes = np.array([[0.9, 0.9, 1.0, 0.1], [0.5, 0.49, 1.0, 0.8]], np.float32)
  for order in ((0, 1), (1, 0)):
    label, score = best_class(slabs(planes[list(order)], order), (4,), order, rank={1: 1})
    np.testing.assert_array_equal(label, [2, 1, 2, 2])
    np.testing.assert_allclose(score, [0.5, 0.9, 1.0, 0.8], rtol=1e-6)


def test_the_deeper_part_wins():
  planes = np.array([[0.9, 0.9], [0.8, 0.8], [0.6, 0.3]], np.float32)
  rank = ranks({1: 0, 2: 1})
  assert rank == {1: 1, 2: 2}
  label, score = best_class(slabs(planes, (0, 1, 2)), (2,), (0, 1, 2), rank=rank)
  np.testing.assert_array_equal(label, [3, 2])
  np.testing.assert_allclose(score, [0.6, 0.8], rtol=1e-6)


def test_a_part_of_itself_is_wrong_usage():
  with pytest.raises(InputError, match="part of itself") as error:
    ranks({0: 1, 1: 0})
  assert error.value.usage


def test_a_network_that_answers_nan_is_an_error_and_not_background():
  planes = np.zeros((2, 4, 4), np.float32)
  good = Slab([0, 1], (slice(0, 4), slice(0, 4)), planes)
  assert list(finite([good])) == [good]
  planes[1, 3, 3] = np.nan
  with pytest.raises(InputError, match="network: computes probabilities that are NaN"):
    list(finite([good]))
  empty = Slab([0], (slice(0, 0), slice(0, 4)), planes[:1, :0])
  assert list(finite([empty])) == [empty]


def test_unknown_fusion_is_wrong_usage():
  with pytest.raises(InputError) as error:
    check_fusion("vote")
  assert error.value.usage and "argmax" in str(error.value)


def test_masks_as_one_label_map():
  """A voxel is unlabelled where no mask knows it; the later class is drawn over the earlier."""
  masks = np.array([[0, 1, 1, 255, 255, 255], [0, 0, 1, 1, 0, 255]], np.uint8)
  drawn = label_map(masks, [4, 2])
  np.testing.assert_array_equal(drawn, [0, 5, 3, 3, 0, UNLABELLED])
  assert drawn.dtype == np.uint8
