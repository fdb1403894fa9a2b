"""Connected components: the largest, those above a volume, those that touch their whole."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from scipy import ndimage

from condseg_jax.infer.postprocess import clean
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.infer.postprocess import drop_detached
from condseg_jax.infer.postprocess import main_box


def picture(text):
  return np.array([[int(c) for c in row] for row in text.split()], np.uint8)


def test_the_largest_piece_is_kept_and_other_classes_are_left_alone():
  label = picture("1100020 1001020 0000000 0001110 0111111")
  clean(label, 1, ComponentFilter(largest=True), 1.0)
  # The upper left component is connected by corners only: 2-D pixels have eight neighbours.
  np.testing.assert_array_equal(label, picture("0000020 0000020 0000000 0001110 0111111"))


def test_pieces_below_the_minimum_volume_go():
  label = picture("1000110 0000110 1100000")
  clean(label, 1, ComponentFilter(minimum_ml=1.0), 0.5)  # two voxels are 1 ml, one is less
  np.testing.assert_array_equal(label, picture("0000110 0000110 1100000"))


def test_a_class_that_is_absent_or_too_small_as_a_whole():
  label = picture("020 000 010")
  clean(label, 3, ComponentFilter(largest=True), 1.0)
  clean(label, 1, ComponentFilter(largest=True, minimum_ml=2.0), 1.0)
  np.testing.assert_array_equal(label, picture("020 000 000"))


def test_a_tumour_that_touches_no_liver_goes():
  label = picture("1112000 1120002 1110022 0000000")
  drop_detached(label, 2, 1)
  # The component at the left touches, its second voxel indirectly. That at the right does not.
  np.testing.assert_array_equal(label, picture("1112000 1120000 1110000 0000000"))


def test_a_tumour_at_the_edge_of_the_image_may_touch_across_nothing():
  label = picture("2 1")
  drop_detached(label, 2, 1)
  np.testing.assert_array_equal(label, picture("2 1"))


def test_the_box_of_what_matters():
  """Components of 10, 2 and 1 voxels: the second is a fifth of the first, the third a tenth."""
  label = picture("0000000001 1110000000 1110000000 1110002200 1000000000 0000000010 0000000010")
  label[label == 2] = 1
  assert main_box(label, 1, part=0.15) == (slice(1, 7), slice(0, 9))
  assert main_box(label, 1, part=0.05) == (slice(0, 7), slice(0, 10))
  assert main_box(label, 1, part=0.5) == (slice(1, 5), slice(0, 3))
  assert main_box(label, 3) == (slice(0, 0), slice(0, 0))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 0.5), st.integers(0, 6))
def test_against_the_definition_in_3d(seed, part, minimum):
  rng = np.random.default_rng(seed)
  label = (rng.random((5, 6, 7)) < part).astype(np.uint8)
  pieces, count = ndimage.label(label, np.ones((3, 3, 3)))
  expected = np.zeros_like(label)
  for number in range(1, count + 1):
    if (pieces == number).sum() >= minimum:
      expected[pieces == number] = 1
  clean(label, 1, ComponentFilter(minimum_ml=minimum), 1.0)
  np.testing.assert_array_equal(label, expected)
