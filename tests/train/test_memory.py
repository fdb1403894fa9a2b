"""Two lines about the memory of a step, and the refusal of one that cannot fit."""

import pytest

from condseg_jax.errors import InputError
from condseg_jax.train.memory import check_memory
from condseg_jax.train.memory import memory_lines


@pytest.mark.parametrize("largest, text", [((8, 16, 16), "8×16×16"), (None, "none")])
def test_two_lines_about_memory(largest, text):
  summary = {"memory_gb": 1.234, "bytes_per_voxel": 567.8, "decodes_per_image": 2,
             "partition": 1, "largest_subvolume": largest}
  step, fits = memory_lines(summary, 8.0)
  assert "1.23 GB" in step and "568 bytes per voxel" in step and "2 class" in step
  assert "8 GB" in fits and f": {text} (" in fits and "split" not in step
  step, _ = memory_lines({**summary, "partition": 4}, 8.0)
  assert "on a device, each subvolume split over 4 devices, " in step


def test_a_step_that_cannot_fit_is_refused_with_settings_that_do():
  summary = {"memory_gb": 3.0, "largest_subvolume": (8, 16, 16)}
  check_memory(summary, 4, 3_000_000_000)
  check_memory(summary, 4, 1_001_000_000)  # the estimate may be three times too high
  with pytest.raises(InputError, match=r"a step needs 1.0 GB or more, a device has 0.9 GB \(set "
                     r"data.batch_size to 1 or set data.subvolume to \(8, 16, 16\)\)") as caught:
    check_memory(summary, 4, 900_000_000)
  assert caught.value.usage
  with pytest.raises(InputError, match="choose a smaller subvolume or network"):
    check_memory({"memory_gb": 1e6, "largest_subvolume": None}, 2)  # of this machine
