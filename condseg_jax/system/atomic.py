"""Atomic writing of files."""

from collections.abc import Iterator
import contextlib
import os
import uuid

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.system import buckets

NAME_END = 24  # characters at the end of a name, which contain all suffixes


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[epath.Path]:
  """Yields a temporary path in the same folder, which replaces `path` at the end.

  In a bucket it is `path` itself: an object appears when it is complete, and cannot be renamed.

  If writing fails, the temporary file is removed and an existing file is unchanged.

  Args:
    path: local, or in a bucket. The temporary name is hidden and has the same suffix.

  Raises:
    InputError: the file cannot be written.
  """
  buckets.connect(path)
  path = epath.Path(path)
  if buckets.is_bucket(path):
    try:
      yield path
    except Exception as error:
      if isinstance(error, OSError) or buckets.is_storage_error(error):
        raise buckets.explained(path, error) from error
      raise
    return
  # Not the whole name, as the system limits its length.
  temporary = path.parent / f".{uuid.uuid4().hex}.{path.name[-NAME_END:]}"
  try:
    yield temporary
    temporary.replace(path)
  except OSError as error:
    raise InputError(path, f"cannot be written: {error.strerror or error}",
                     "check that the folder exists, is writable and has free space") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file (UTF-8) atomically; see `replacing`."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
