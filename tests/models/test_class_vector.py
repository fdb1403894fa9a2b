"""Text embeddings: reading, validation, and storage in the config."""

import json

import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.models.class_vector import read_texts

TABLE = ClassTable.create(["liver", "spleen"])


def write(path, tree):
  path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
  return path


def test_vectors_are_in_the_order_of_the_ids(tmp_path):
  path = write(tmp_path / "t.json", {"Spleen": [0, 2], "liver": [1, -1.5], "lung": [1]})
  assert read_texts(path, TABLE) == [[1.0, -1.5], [0.0, 2.0]]


@pytest.mark.parametrize("tree, fault", [
    ("{", "cannot be read"), ([1], "cannot be read"), ({"liver": "no"}, "cannot be read"),
    ({"liver": [1, 2]}, "no vector for the class 'spleen'"),
    ({"liver": [1, 2], "spleen": [1]}, "1 numbers, that of 'liver' has 2"),
    ({"liver": [0, 0], "spleen": [1, 1]}, "zero"),
    ('{"liver": [NaN, 1], "spleen": [1, 1]}', "not finite"), ({"liver": []}, "empty")])
def test_invalid_files(tree, fault, tmp_path):
  with pytest.raises(InputError, match=fault):
    read_texts(write(tmp_path / "t.json", tree), TABLE)


def test_no_file_is_named():
  with pytest.raises(InputError, match="conditioning.text_vectors: is not set"):
    read_texts("", TABLE)
