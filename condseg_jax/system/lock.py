"""Lock files: one process at a time."""

from collections.abc import Iterator
import contextlib
import fcntl
import logging
from pathlib import Path

log = logging.getLogger("condseg_jax")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """Holds a lock file, after waiting for any other process that holds it.

  The operating system releases the lock when the process ends, even if it is killed. The empty file
  remains.

  Args:
    path: the lock file; its folder is created.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w", encoding="utf-8") as stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      log.info("waiting for another process that holds %s", path)
      fcntl.flock(stream, fcntl.LOCK_EX)
    yield
