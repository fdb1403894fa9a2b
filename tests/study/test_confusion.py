"""Which class the voxels of every true class were given to."""

import numpy as np

from condseg_jax.study.score import confusion

CLASSES = ("a", "b")


def masks(*values):
  return {name: np.array(value) for name, value in zip(CLASSES, values, strict=True)}


def test_rows_are_the_truth_and_columns_what_was_asked_for():
  """Three voxels of a, of which two were given to b; two of b, none missed; three of none."""
  truth = masks(np.uint8([1, 1, 1, 0, 0, 0, 0, 0]), np.uint8([0, 0, 0, 1, 1, 0, 0, 0]))
  given = masks(np.array([1, 0, 0, 0, 0, 1, 0, 0], bool), np.array([0, 1, 1, 1, 1, 0, 0, 0], bool))
  assert confusion(given, truth, CLASSES).tolist() == [[1, 2, 0], [0, 2, 0], [1, 0, 2]]


def test_masks_that_overlap_count_in_several_columns():
  truth = masks(np.uint8([1, 1, 0]), np.uint8([0, 0, 1]))
  everything = np.array([1, 1, 1], bool)
  assert confusion(masks(everything, everything), truth, CLASSES).tolist() == [
      [2, 2, 0], [1, 1, 0], [0, 0, 0]]


def test_what_is_unlabelled_is_known_as_what_it_is_known_to_be_alone():
  """Void in both: no row. Of b, void in a: in the row of b. Void in a, not of b: no row."""
  truth = masks(np.uint8([255, 255, 255, 0]), np.uint8([255, 1, 0, 0]))
  given = masks(np.array([1, 1, 1, 0], bool), np.zeros(4, bool))
  assert confusion(given, truth, CLASSES).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_a_class_that_is_not_annotated_leaves_no_voxel_of_none():
  truth = {"a": np.uint8([1, 0, 0])}
  given = masks(np.array([0, 0, 0], bool), np.array([1, 1, 0], bool))
  assert confusion(given, truth, CLASSES).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
