"""Windows cover every voxel evenly, and their weights are positive."""

import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.infer.schedule import axis_starts
from condseg_jax.infer.schedule import gaussian_weights
from condseg_jax.infer.schedule import layers
from condseg_jax.infer.schedule import pad_to_window


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=2, max_size=3),
       st.sampled_from([0.25, 0.5, 1.0]), st.data())
def test_every_voxel_is_covered(axes, step, data):
  window = tuple(size for size, _ in axes)
  shape = tuple(size + more for size, more in axes)
  axis = data.draw(st.integers(0, len(axes) - 1))
  seen = np.zeros(shape, int)
  found = layers(shape, window, step, axis)
  for layer in found:
    assert len({start[axis] for start in layer}) == 1
  firsts = [layer[0][axis] for layer in found]
  assert firsts == sorted(set(firsts))
  starts = list(itertools.chain(*found))
  for start in starts:
    box = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
    assert seen[box].shape == window
    seen[box] += 1
  assert seen.min() >= 1 and len(set(starts)) == len(starts)


def test_a_volume_of_the_windows_size_has_one_window():
  assert layers((8, 16), (8, 16)) == [[(0, 0)]]


def test_neighbours_are_at_most_a_step_apart():
  starts = axis_starts(100, 20, 0.5)
  assert starts[0] == 0 and starts[-1] == 80 and max(np.diff(starts)) <= 10


def test_a_smaller_volume_is_refused_or_padded():
  with pytest.raises(ValueError, match="shorter than its window"):
    layers((7, 16), (8, 16))
  assert pad_to_window((7, 20, 3), (8, 16, 8)) == [(0, 1), (0, 0), (2, 3)]


def test_weights_are_a_symmetric_gaussian():
  weights = gaussian_weights((8, 16))
  assert weights.shape == (8, 16) and weights.dtype == np.float32
  np.testing.assert_array_equal(weights, weights[::-1, ::-1])
  # Neighbouring voxels at 0.5 and 1.5 from the centre, σ = 16 / 8 = 2.
  ratio = np.exp(-0.5 * (1.5 ** 2 - 0.5 ** 2) / 2 ** 2)
  np.testing.assert_allclose(weights[4, 9] / weights[4, 8], ratio, rtol=1e-5)
  # And along the other axis, σ = 8 / 8 = 1.
  np.testing.assert_allclose(weights[5, 8] / weights[4, 8], np.exp(-1.0), rtol=1e-5)
  assert weights.min() >= 1e-3
