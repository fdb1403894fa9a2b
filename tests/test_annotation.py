"""Label values of a dataset to masks, and what says nothing."""


import numpy as np
import pytest

from condseg_jax.annotation import Annotation
from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError


def test_masks_of_a_dataset():
  """Values 1 and 4 are both liver, 2 is spleen, 9 is void; liver alone is kept."""
  labels = {0: "background", 1: "Liver", 2: "spleen", 4: "liver"}
  annotation = Annotation.create(labels, keep=["LIVER"], void=[9])
  assert annotation.classes == ("liver",)
  masks = annotation.masks(np.array([[0, 1, 2], [4, 9, 0]]))
  # The spleen, not kept, is no liver; the void says nothing.
  np.testing.assert_array_equal(masks, [[[0, 1, 0], [1, UNLABELLED, 0]]])
  assert masks.dtype == np.uint8
  both = Annotation.create(labels, void=[9])
  assert both.classes == ("liver", "spleen")
  np.testing.assert_array_equal(both.masks(np.array([2, 9]))[1], [1, UNLABELLED])


def test_a_value_that_nobody_declared_is_an_error():
  annotation = Annotation.create({0: "background", 1: "liver"})
  with pytest.raises(InputError, match="case.nii.gz: unknown label value 7"):
    annotation.masks(np.array([0, 1, 7]), "case.nii.gz")


def test_keeping_a_class_that_is_no_label():
  with pytest.raises(InputError) as error:
    Annotation.create({0: "background", 1: "liver"}, keep=["spleen"])
  assert error.value.usage and "liver" in str(error.value)


def test_background_itself_may_be_void():
  annotation = Annotation.create({0: "background", 1: "road", 2: "car"}, void=[0, 2])
  assert annotation.classes == ("road",)
  masks = annotation.masks(np.array([0, 1, 2]))
  np.testing.assert_array_equal(masks, [[UNLABELLED, 1, UNLABELLED]])
