"""What a config says of single classes reaches the step, in the order of their ids."""

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.train import loop


@pytest.mark.parametrize("ndim, expected", [(3, [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
                                            (2, [[0, 1], [0, 0], [0, 0]])])
def test_axes_along_which_a_class_has_sides(ndim, expected):
  table = ClassTable.create(["left kidney", "liver", "head"],
                            no_mirror={"left kidney": ["W"], "head": ["D"]})
  np.testing.assert_array_equal(loop.lateral_axes(table, ndim), expected)


def test_weights_of_classes():
  table = ClassTable.create(["left kidney", "liver"])
  np.testing.assert_array_equal(loop.alphas(table, {"alpha": {"Liver": 3.0}}), [1, 3])
