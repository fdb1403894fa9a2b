"""Files of `torch.save` are read without torch, and what is in them is never executed."""

import io
from pathlib import Path
import pickle
import pickletools
import shutil
import zipfile

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.model_io.nnunet import torch_file
from condseg_jax.model_io.nnunet.torch_file import open_torch_file
from condseg_jax.model_io.nnunet.torch_file import Tensor

FILE = Path(__file__).parent / "fixtures" / "plain_3d" / "fold_0" / "checkpoint_final.pth"
FIRST = "encoder.stages.0.0.convs.0.conv.weight"
with zipfile.ZipFile(FILE) as _archive:
  MEMBERS = {name: _archive.read(name) for name in _archive.namelist()}
PICKLE = next(name for name in MEMBERS if name.endswith("data.pkl"))


def written(path, changes=None, method=zipfile.ZIP_STORED):
  """The fixture with other members; None leaves one out."""
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, content in {**MEMBERS, **(changes or {})}.items():
      if content is not None:
        archive.writestr(name, content)
  return path


def read_all(path):
  """Every tensor of the network."""
  with open_torch_file(path) as file:
    return {name: file.array(tensor) for name, tensor in file.tree["network_weights"].items()}


def test_tensors_and_what_is_beside_them():
  with open_torch_file(FILE) as file:
    tensor = file.tree["network_weights"][FIRST]
    assert isinstance(tensor, Tensor) and tensor.shape == (2, 1, 1, 3, 3)
    array = file.array(tensor)
    assert array.dtype == np.float32 and 0 < np.abs(array).max() < 1
    assert file.tree["init_args"]["configuration"] == "3d_fullres"
    assert file.tree["trainer_name"] == "nnUNetTrainer" and file.tree["current_epoch"] == 1
    assert file.tree["_best_ema"].name.endswith("multiarray.scalar")  # named, not made
  assert written and read_all(FILE).keys() == file.tree["network_weights"].keys()


def test_views_of_a_storage():
  """Offset and strides, as of a transposed part of a tensor."""
  with open_torch_file(FILE) as file:
    whole = file.tree["network_weights"][FIRST]
    flat = file.array(Tensor(whole.storage, 0, (18,), (1,)))
    part = file.array(Tensor(whole.storage, 3, (2, 3), (1, 4)))
    np.testing.assert_array_equal(part, flat[3 + np.arange(2)[:, None] + 4 * np.arange(3)])
    assert file.array(Tensor(whole.storage, 0, (0, 5), (1, 1))).shape == (0, 5)


@pytest.mark.parametrize("dtype", ["HalfStorage", "BFloat16Storage", "DoubleStorage"])
def test_other_types_of_numbers(dtype, tmp_path):
  values = np.arange(18).astype(torch_file.DTYPES[dtype])
  key = PICKLE.replace("data.pkl", "data/0")
  content = MEMBERS[PICKLE].replace(b"ctorch\nFloatStorage", f"ctorch\n{dtype}".encode())
  path = written(tmp_path / "other.pth", {PICKLE: content, key: values.tobytes()})
  with open_torch_file(path) as file:
    found = file.array(file.tree["network_weights"][FIRST])
  np.testing.assert_array_equal(found.ravel().astype(np.float64), np.arange(18))


# --- code -----------------------------------------------------------------------------------
class Touch:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_checkpoint_with_code_is_refused_before_anything_is_executed(protocol, tmp_path):
  content = pickle.dumps({"network_weights": {}, "x": Touch(tmp_path / "touched")}, protocol)
  path = written(tmp_path / "code.pth", {PICKLE: content})
  with pytest.raises(InputError, match="contains code .* nothing of it was executed"):
    read_all(path)
  assert not (tmp_path / "touched").exists()
  pickle.loads(content)  # it would have been
  assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", [b"os\nsystem", b"builtins\neval", b"torch\nload",
                                  b"torch._utils\n_rebuild_qtensor", b"collections\nCounter"])
def test_other_names_are_refused_wherever_they_stand(name, tmp_path):
  content = MEMBERS[PICKLE].replace(b"ctorch._utils\n_rebuild_tensor_v2", b"c" + name, 1)
  assert content != MEMBERS[PICKLE]
  with pytest.raises(InputError, match=name.replace(b"\n", b".").decode()):
    read_all(written(tmp_path / "code.pth", {PICKLE: content}))


# --- damage ---------------------------------------------------------------------------------
STORAGE = PICKLE.replace("data.pkl", "data/0")


@pytest.mark.parametrize("changes, fault", [
    ({STORAGE: None}, "is damaged"), ({STORAGE: MEMBERS[STORAGE][:-4]}, "18 elements"),
    ({STORAGE: MEMBERS[STORAGE] + bytes(4)}, "18 elements"),
    ({PICKLE: None}, "is not a checkpoint of torch"), ({PICKLE: b""}, "is damaged"),
    ({PICKLE: MEMBERS[PICKLE][:-100]}, "is damaged"), ({PICKLE: b"\x80\x02."}, "is damaged"),
    ({PICKLE: b"\x80\x02N."}, "network_weights"), ({PICKLE: b"\x80\x02K\x05K\x06a."}, "is damaged"),
    ({f"{PICKLE.split('/')[0]}/byteorder": b"big"}, "another byte order")], ids=repr)
def test_damaged_files_are_refused_in_one_line(changes, fault, tmp_path):
  from condseg_jax.model_io.nnunet.encoder import import_encoder
  folder = shutil.copytree(FILE.parent.parent, tmp_path / "net")
  written(folder / "fold_0" / FILE.name, changes)
  with pytest.raises(InputError, match=fault) as caught:
    import_encoder(folder)
  assert "\n" not in str(caught.value)


def test_other_files(tmp_path):
  for content, fault in ((b"", "not a checkpoint"), (b"\x80\x02}.", "not a checkpoint"),
                         (FILE.read_bytes()[:5000], "not a checkpoint")):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=fault):
      read_all(tmp_path / "a.pth")
  with pytest.raises(InputError, match="cannot be read"):
    read_all(tmp_path / "none.pth")
  with pytest.raises(InputError, match="18 elements"):  # compressed: it could expand to anything
    read_all(written(tmp_path / "a.pth", method=zipfile.ZIP_DEFLATED))
  flipped = bytearray(FILE.read_bytes())
  flipped[FILE.read_bytes().index(MEMBERS[STORAGE])] ^= 1
  (tmp_path / "a.pth").write_bytes(flipped)
  with pytest.raises(InputError, match="is damaged .*CRC"):
    read_all(tmp_path / "a.pth")


@pytest.mark.parametrize("tensor", [
    dict(offset=1), dict(offset=-1), dict(shape=(19,)), dict(shape=(2, -1), strides=(1, 1)),
    dict(strides=(2,)), dict(strides=(-1,)), dict(shape=(2**40,), strides=(0,)),
    dict(shape=(2, 9))], ids=str)
def test_tensors_beyond_their_storage(tensor):
  with open_torch_file(FILE) as file:
    storage = file.tree["network_weights"][FIRST].storage
    with pytest.raises(InputError, match="is damaged"):
      file.array(Tensor(**{"storage": storage, "offset": 0, "shape": (18,), "strides": (1,),
                           **tensor}))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, len(MEMBERS[PICKLE]) - 1), st.integers(0, 255)),
                min_size=1, max_size=4))
def test_a_garbled_pickle_is_read_or_refused(changes):
  content = bytearray(MEMBERS[PICKLE])
  for place, value in changes:
    content[place] = value
  try:
    torch_file._unpickled("a.pth", bytes(content))
  except InputError as error:
    assert "\n" not in str(error)


def test_the_instructions_of_a_real_file_are_all_known():
  names = {step.name for step, _, _ in pickletools.genops(io.BytesIO(MEMBERS[PICKLE]))}
  assert {"GLOBAL", "REDUCE", "BINPERSID", "BUILD"} <= names
