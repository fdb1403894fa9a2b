"""Files that appear whole or not at all."""

from collections.abc import Iterator
import contextlib
import os
import uuid

from etils import epath

from condseg_jax.errors import InputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[epath.Path]:
  """A name in the same folder, of the same ending, to write to; it becomes `path` at the end.

  Nothing is left behind when the writing fails, and an old file stays as it was.

  Args:
    path: local, or in a bucket.

  Raises:
    InputError: the file cannot be written.
  """
  path = epath.Path(path)
  temporary = path.parent / f".{uuid.uuid4().hex}.{path.name}"
  try:
    yield temporary
    temporary.replace(path)
  except OSError as error:
    raise InputError(path, f"cannot be written: {error.strerror or error}",
                     "choose an existing folder with free space that you may write to") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file; see `replacing`."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
