"""What is said of a step's memory before it begins."""

import pytest

from condseg_jax.train.setup import memory_lines


@pytest.mark.parametrize("largest, text", [((8, 16, 16), "8×16×16"), (None, "none")])
def test_two_lines_for_people(largest, text):
  step, fits = memory_lines({"memory_gb": 1.234, "bytes_per_voxel": 567.8, "decodes_per_image": 2,
                             "largest_subvolume": largest}, 8.0)
  assert "1.23 GB" in step and "568 bytes per voxel" in step and "2 class" in step
  assert "8 GB" in fits and f": {text} (" in fits
