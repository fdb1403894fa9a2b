"""Probabilities on disk: what is read is what was written, and a full disk is one clear line."""

import contextlib
import gc
from pathlib import Path
import resource
import tempfile

import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.infer.probability_store import ProbabilityStore
from condseg_jax.infer.sliding_window import Slab

SHAPE = (40, 20, 20)


@contextlib.contextmanager
def largest_file(size: int):
  """Writing fails, as on a full disk, once a file has a size in bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def slabs(class_ids, seed=0):
  """Two slabs along the first axis."""
  rng = np.random.default_rng(seed)
  for rows in (slice(0, 25), slice(25, 40)):
    shape = (rows.stop - rows.start, *SHAPE[1:])
    yield Slab(class_ids, (rows, slice(0, 20), slice(0, 20)),
               rng.random((len(class_ids), *shape), np.float32))


def test_rows_are_those_of_the_slabs(tmp_path):
  store = ProbabilityStore(tmp_path / "p.zarr", [4, 2], SHAPE, {"classes": ["a", "b"]})
  kept = [(slab.box[0], slab.planes.copy()) for slab in store.keep(slabs([4, 2]))]
  whole = np.concatenate([planes for _, planes in kept], axis=1)
  np.testing.assert_array_equal(store.rows(2, slice(20, 30)), whole[1, 20:30])
  original = np.concatenate([slab.planes for slab in slabs([4, 2])], axis=1)
  np.testing.assert_array_equal(whole, original.astype(np.float16).astype(np.float32))


def test_a_full_disk_is_one_line_with_a_cure(tmp_path):
  store = ProbabilityStore(tmp_path / "p.zarr", [0], SHAPE)
  with largest_file(1000), pytest.raises(InputError) as caught:
    list(store.keep(slabs([0])))
  assert str(caught.value) == (
      f"{tmp_path / 'p.zarr'}: the probabilities cannot be written: File too large "
      f"(free space in {tmp_path}, or choose another folder)")
  assert not caught.value.usage


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="cannot be written: Not a directory"):
    ProbabilityStore(tmp_path / "file" / "p.zarr", [0], SHAPE)


def test_a_temporary_folder_goes_with_its_store(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  store = ProbabilityStore(None, [0], SHAPE)
  with largest_file(1000), pytest.raises(InputError, match="set TMPDIR to a larger disk"):
    list(store.keep(slabs([0])))
  assert list(Path(tmp_path).iterdir())
  del store
  gc.collect()
  assert not list(Path(tmp_path).iterdir())


def test_errors_of_the_slabs_stay_what_they_are(tmp_path):
  def broken():
    yield from slabs([0])
    raise ValueError("no such window")

  store = ProbabilityStore(tmp_path / "p.zarr", [0], SHAPE)
  with pytest.raises(ValueError, match="^no such window$"):
    list(store.keep(broken()))
