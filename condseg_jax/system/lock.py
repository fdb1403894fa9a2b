"""Lock files: one process at a time."""

from collections.abc import Iterator
import contextlib
import fcntl
import logging
from pathlib import Path

log = logging.getLogger("condseg_jax")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """Holds a lock file, waiting for another process that does.

  The system lets go of it when the process ends, however that comes; the empty file stays.

  Args:
    path: of the lock; its folder is made.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w", encoding="utf-8") as stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      log.info("waiting for another process, which holds %s", path)
      fcntl.flock(stream, fcntl.LOCK_EX)
    yield
