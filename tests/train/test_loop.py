"""What the loop says about its steps; whole runs are in e2e/test_training_runs.py."""

import numpy as np
import pytest

from condseg_jax.train.loop import trailing_not_finite

GOOD = {"loss": np.float32(1), "gradient_norm": np.float32(2)}
BAD = {"loss": np.float32(np.nan), "gradient_norm": np.float32(2)}
LARGE = {"loss": np.float32(1), "gradient_norm": np.float32(np.inf)}


@pytest.mark.parametrize("metrics, before, expected", [
    ([GOOD, GOOD], 7, 0), ([BAD, LARGE], 7, 9), ([GOOD, BAD], 7, 1), ([BAD, GOOD], 7, 0),
    ([], 7, 7)])
def test_steps_in_a_row_that_are_not_finite(metrics, before, expected):
  assert trailing_not_finite(metrics, before) == expected
