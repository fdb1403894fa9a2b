"""Reads tensors from a file of `torch.save`, without torch and without executing what is in it.

Such a file is a zip archive of one pickle and one member per storage:

    NAME/data.pkl    containers, numbers, texts, and tensors as views of storages
    NAME/data/KEY    the elements of a storage

A pickle is a program that may call anything. It is not run here: its instructions are read one by
one, and the few that make containers and tensors are followed. A file that names any other function
or class is refused before its first instruction.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import math
import os
import pickletools
import struct
from typing import Any
from typing import NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from condseg_jax.errors import InputError

LIMIT = 2**26  # bytes of the pickle, which holds no elements of tensors

DTYPES = {"FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"),
          "HalfStorage": np.dtype("<f2"), "BFloat16Storage": np.dtype(jnp.bfloat16),
          "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
          "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"),
          "ByteStorage": np.dtype("u1"), "BoolStorage": np.dtype("?")}
# What a checkpoint may name besides: numbers of NumPy, devices, types. None of it is made.
_INERT = {"torch.device", "torch.Size", "numpy.dtype", "_codecs.encode",
          *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")), "numpy.ndarray",
          *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64", "int64"))}
_MADE = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2",
         "torch._utils._rebuild_parameter"}
NAMES = {*_INERT, *_MADE, *(f"torch.{name}" for name in DTYPES)}


class Storage(NamedTuple):
  """The elements of one or more tensors: key of the member, type and number."""

  key: str
  dtype: np.dtype
  length: int


class Tensor(NamedTuple):
  """A view of a storage, all in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Name(NamedTuple):
  """A function or class that a pickle names, or what it would have made."""

  name: str


class TorchFile:
  """An open file.

  Attributes:
    tree: the containers, with a `Tensor` for every tensor and a `Name` for whatever is not made.
  """

  def __init__(self, path: str | os.PathLike, archive: zipfile.ZipFile):
    self._path, self._archive = path, archive
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise _foreign(path)
    self._folder = pickles[0].removesuffix("data.pkl")
    order = f"{self._folder}byteorder"
    if order in names and archive.read(order) != b"little":
      raise InputError(path, "was written on a machine of another byte order", "convert it there")
    if archive.getinfo(pickles[0]).file_size > LIMIT:
      raise _damaged(path, f"its pickle has more than {LIMIT} bytes")
    self.tree = _unpickled(path, archive.read(pickles[0]))

  def array(self, tensor: Tensor) -> np.ndarray:
    """Reads a tensor.

    Raises:
      InputError: its elements are not all in the file, or not as many as the file declares.
    """
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    name, size = f"{self._folder}data/{storage.key}", storage.dtype.itemsize
    with _reading(self._path):
      entry = self._archive.getinfo(name)
      if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != storage.length * size:
        raise ValueError(f"{name} does not have {storage.length} elements")
      if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
        raise ValueError(f"a tensor has shape {shape} and strides {strides}")
      last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
      if 0 not in shape and (last >= storage.length or math.prod(shape) > storage.length):
        raise ValueError(f"a tensor of shape {shape} ends beyond its storage")
      elements = np.frombuffer(self._archive.read(name), storage.dtype)[tensor.offset:]
      return np.lib.stride_tricks.as_strided(
          elements, shape, [s * size for s in strides], writeable=False).copy()


@contextlib.contextmanager
def open_torch_file(path: str | os.PathLike) -> Iterator[TorchFile]:
  """Opens a file of `torch.save`.

  Raises:
    InputError: it is missing, of another format, damaged, or names code.
  """
  try:
    archive = zipfile.ZipFile(path)
  except OSError as error:
    raise InputError(path, f"cannot be read: {error.strerror or error}", "check the path"
                     ) from error
  except zipfile.BadZipFile as error:
    raise _foreign(path) from error
  with archive:
    with _reading(path):
      file = TorchFile(path, archive)
    yield file


# --- the pickle -----------------------------------------------------------------------------------
def _unpickled(path: str | os.PathLike, content: bytes) -> Any:
  """Returns the containers of a pickle; see the module."""
  with _reading(path):
    steps = [(step.name, argument) for step, argument, _ in pickletools.genops(content)]
  for name, argument in steps:
    named = str(argument).replace(" ", ".") if name == "GLOBAL" else ""
    if name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4") and named not in NAMES:
      raise InputError(path, f"contains code ({named or name}), and nothing of it was executed",
                       "use it only where you trust its author, and save its weights alone")
  with _reading(path):
    return _followed(steps)


def _followed(steps: Sequence[tuple[str, Any]]) -> Any:
  """Follows instructions on a stack; KeyError for one that is not known here."""
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}

  def since_mark() -> list[Any]:
    start = marks.pop()
    found = stack[start:]
    del stack[start:]
    return found

  def take(count: int) -> tuple[Any, ...]:
    if count > len(stack):
      raise ValueError("an instruction lacks its arguments")
    found = tuple(stack[len(stack) - count:])
    del stack[len(stack) - count:]
    return found

  def set_items(items: Sequence[Any]) -> None:
    stack[-1].update(zip(items[::2], items[1::2], strict=True))

  def reduce() -> None:
    function, arguments = take(2)
    stack.append(_made(function, arguments))

  push = stack.append
  nothing: Callable[[Any], Any] = lambda _: None
  act: dict[str, Callable[[Any], Any]] = {
      "PROTO": nothing, "FRAME": nothing, "STOP": nothing,
      "MARK": lambda _: marks.append(len(stack)), "POP": lambda _: take(1),
      "EMPTY_DICT": lambda _: push({}), "EMPTY_LIST": lambda _: push([]),
      "EMPTY_TUPLE": lambda _: push(()), "EMPTY_SET": lambda _: push([]),
      "TUPLE": lambda _: push(tuple(since_mark())), "TUPLE1": lambda _: push(take(1)),
      "TUPLE2": lambda _: push(take(2)), "TUPLE3": lambda _: push(take(3)),
      "NONE": lambda _: push(None), "NEWTRUE": lambda _: push(True),
      "NEWFALSE": lambda _: push(False),
      **{name: push for name in ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
                                 "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
                                 "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING")},
      **{name: lambda index: memo.__setitem__(index, stack[-1])
         for name in ("BINPUT", "LONG_BINPUT")},
      "MEMOIZE": lambda _: memo.__setitem__(len(memo), stack[-1]),
      **{name: lambda index: push(memo[index]) for name in ("BINGET", "LONG_BINGET")},
      "APPEND": lambda _: stack[-2].append(stack.pop()),
      "APPENDS": lambda _: _extend(since_mark(), stack),
      "ADDITEMS": lambda _: _extend(since_mark(), stack),
      "SETITEM": lambda _: set_items(take(2)), "SETITEMS": lambda _: set_items(since_mark()),
      "GLOBAL": lambda name: push(Name(name.replace(" ", "."))),
      "REDUCE": lambda _: reduce(), "NEWOBJ": lambda _: reduce(),
      "BUILD": lambda _: take(1),  # the state of an object, such as the metadata of a dict
      "BINPERSID": lambda _: push(_storage(*take(1)))}
  for name, argument in steps:
    act[name](argument)
  return stack[-1]


def _extend(items: list[Any], stack: list[Any]) -> None:
  stack[-1].extend(items)


def _made(function: Name, arguments: tuple[Any, ...]) -> Any:
  """Returns what a known function makes, and a `Name` for any other."""
  name = function.name.rpartition(".")[2]
  if name == "OrderedDict":
    return dict(*arguments)
  if name == "_rebuild_parameter":
    return arguments[0]
  if name == "_rebuild_tensor_v2":
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not all(
        type(x) is int for x in (offset, *shape, *strides)):
      raise ValueError("a tensor is not one")
    return Tensor(storage, offset, tuple(shape), tuple(strides))
  return Name(function.name)


def _storage(identifier: tuple[Any, ...]) -> Storage:
  kind, name, key, _, count = identifier
  if kind != "storage" or type(count) is not int or count < 0:
    raise ValueError("a storage is not one")
  return Storage(str(key), DTYPES[name.name.rpartition(".")[2]], count)


# --- errors ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
  try:
    yield
  # All that zipfile, pickletools and the instructions raise on malformed bytes.
  except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, struct.error, LookupError,
          TypeError, AttributeError, OverflowError, ValueError, MemoryError) as error:
    if isinstance(error, InputError):
      raise
    raise _damaged(path, str(error) or type(error).__name__) from error


def _foreign(path: str | os.PathLike) -> InputError:
  return InputError(path, "is not a checkpoint of torch 1.6 or newer",
                    "name a folder of nnU-Net v2 with checkpoint_final.pth")


def _damaged(path: str | os.PathLike, reason: str) -> InputError:
  return InputError(path, f"is damaged ({' '.join(reason.split())[:160]})", "get it anew")
