"""Whole or not at all."""

import pytest

from condseg_jax.errors import InputError
from condseg_jax.system.atomic import replacing
from condseg_jax.system.atomic import write_text


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
  path = tmp_path / "a.json"
  write_text(path, "old")
  with pytest.raises(RuntimeError), replacing(path) as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_new_file_appears_at_the_end(tmp_path):
  path = tmp_path / "scan.nii.gz"
  with replacing(path) as temporary:
    temporary.write_text("new")
    assert not path.exists() and temporary.name.endswith(".nii.gz")
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
  path = tmp_path / ("x" * 250 + ".json")
  write_text(path, "new")
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
  with pytest.raises(InputError, match="cannot be written"):
    write_text(tmp_path / "none" / "a.json", "")
