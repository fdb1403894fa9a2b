"""Which checkpoint is meant, which are kept, what of one predicts, and that damage is seen."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.plan import Plan
from condseg_jax.train.checkpoint import array_digests
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.state import TrainState

RECORD = ModelRecord(Config(), ClassTable.create(["liver"]), Plan("ct", (1.0, 1.0), (8, 8)))


def make_state(step=0, **changes) -> TrainState:
  weights = jax.random.normal(jax.random.key(step), (64, 64))  # large enough for a file of its own
  state = TrainState.create({"params": {"w": weights, "b": {"c": jnp.ones(3)}}},
                            optax.adam(1.0), ema=True)
  return state.replace(step=jnp.int32(step), **changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints of steps 1 and 2."""
  folder = tmp_path_factory.mktemp("saved")
  kept = Checkpoints(folder)
  for step in (1, 2):
    kept.save(make_state(step), RECORD, None)
  kept.wait()
  kept.close()
  return folder


def loads(folder, step=2) -> dict:
  """What a command reads of a checkpoint."""
  kept = Checkpoints(folder, read_only=True)
  try:
    assert kept.read_record(step).table == RECORD.table
    return kept.restore_variables(step)
  finally:
    kept.close()


def test_the_best_and_the_last_two_are_kept_and_the_averaged_parameters_predict(tmp_path):
  state = make_state(ema={"w": jnp.ones(2)}, params={"w": jnp.zeros(2)})
  kept = Checkpoints(tmp_path)
  for step, dice in ((1, 0.9), (2, 0.5), (3, 0.7), (4, None)):
    kept.save(state.replace(step=jnp.int32(step)), RECORD, dice)
  kept.wait()
  assert (kept.pick("best"), kept.pick("last"), kept.pick("1")) == (1, 4, 1)
  with pytest.raises(InputError, match="there are: last, best, 1, 3, 4"):
    kept.pick("2")
  np.testing.assert_array_equal(kept.restore_variables(1)["params"]["w"], 1)
  kept.close()


def files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()
                and p.name != "commit_success.txt")  # which says only that it was written


def test_no_flipped_bit_of_a_checkpoint_changes_what_is_loaded(saved, tmp_path):
  """Every file, at its beginning, middle and end: it is refused in one line, or has no effect."""
  expected, refused = loads(saved), 0
  folder = tmp_path / "run"
  for name in files(saved / "checkpoints" / "2"):
    shutil.copytree(saved, folder)
    path = folder / "checkpoints" / "2" / name
    content = bytearray(path.read_bytes())
    for place in sorted({0, len(content) // 3, len(content) // 2, len(content) - 1}):
      changed = content.copy()
      changed[place] ^= 16
      path.write_bytes(changed)
      try:
        jax.tree.map(np.testing.assert_array_equal, loads(folder), expected)
      except InputError as error:
        refused += 1
        assert "\n" not in str(error) and "checkpoints" in str(error)
    shutil.rmtree(folder)
  assert refused > 5


def test_cut_and_missing_files_are_named_with_the_checkpoint_before(saved, tmp_path):
  folder, expected, refused = tmp_path / "run", loads(saved), set()
  for name in files(saved / "checkpoints" / "2"):
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-9])):
      shutil.copytree(saved, folder)
      damage(folder / "checkpoints" / "2" / name)
      try:
        jax.tree.map(np.testing.assert_array_equal, loads(folder), expected)
      except InputError as error:
        refused.add(str(name))
        assert "\n" not in str(error) and "use checkpoint 1" in str(error), error
      shutil.rmtree(folder)
  assert {"digests/metadata", "model/metadata", "state/_METADATA", "state/manifest.ocdbt"} < refused


def test_a_changed_value_is_named(saved, tmp_path):
  """An array file of the right form and other content, which no reader of the format can tell."""
  other = make_state(2).replace(ema={"w": make_state(2).ema["w"].at[3, 3].add(1e-6),
                                     "b": make_state(2).ema["b"]})
  kept = Checkpoints(tmp_path)
  kept.save(other, RECORD, None)
  kept.wait()
  kept.close()
  shutil.rmtree(tmp_path / "checkpoints" / "2" / "digests")
  shutil.copytree(saved / "checkpoints" / "2" / "digests", tmp_path / "checkpoints/2/digests")
  with pytest.raises(InputError, match=r"ema\.w differs from its SHA-256"):
    loads(tmp_path)
  unchecked = Checkpoints(tmp_path, read_only=True, verify=False)
  assert unchecked.restore_variables(2)["params"]["w"][3, 3] == other.ema["w"][3, 3]
  unchecked.close()
  shutil.rmtree(tmp_path / "checkpoints" / "2" / "digests")
  with pytest.raises(InputError, match="digests is missing"):
    loads(tmp_path)


def test_digests_are_of_type_shape_and_values():
  def digests(array):
    return array_digests({"a": [array]})["a.0"]

  array = np.arange(6, dtype=np.float32)
  alike = [array, jnp.asarray(array), np.arange(12, dtype=np.float32)[::2] / 2]
  assert len({digests(a) for a in alike}) == 1
  others = [array.reshape(2, 3), array.view(np.int32), -array, array.astype(np.float64)]
  assert len({digests(a) for a in [array, *others]}) == 5


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_kept_aside(saved, tmp_path,
                                                                             caplog):
  folder = tmp_path / "run"
  shutil.copytree(saved, folder)
  next((folder / "checkpoints" / "2" / "state").rglob("d/*")).write_bytes(b"")
  kept = Checkpoints(folder)
  with caplog.at_level(logging.WARNING, logger="condseg_jax"):
    logging.getLogger("condseg_jax").propagate = True
    assert kept.newest_whole() == 1
  assert (folder / "damaged" / "2" / "state").is_dir()
  assert kept.last_step == 1
  kept.save(make_state(2), RECORD, None)  # the step can be written again
  kept.wait()
  assert kept.newest_whole() == 2
  kept.close()


def test_parameters_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
  state = make_state(5)
  broken = state.replace(ema={"w": state.ema["w"].at[1, 1].set(np.nan), "b": state.ema["b"]})
  kept = Checkpoints(tmp_path)
  with pytest.raises(InputError, match=r"step 5: params\.w is not finite"):
    kept.save(broken, RECORD, None)
  assert kept.last_step is None
  kept._manager.save(5, args=ocp.args.Composite(
      state=ocp.args.StandardSave(broken),
      model=ocp.args.JsonSave(RECORD.to_json() | {"version": 2})))
  kept.wait()
  kept.close()
  with pytest.raises(InputError, match=r"params\.w is not finite"):
    loads(tmp_path, 5)
