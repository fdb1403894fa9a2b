"""Locks between processes: waiting for one another, or one process at a time in a folder."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
import platform
import threading
import time
import uuid

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.system import buckets

LEASE_SECONDS = 120.0  # a holder that has not renewed its lease for this long is taken to be dead
RENEWALS = 4  # per LEASE_SECONDS

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


@contextlib.contextmanager
def held(folder: str | os.PathLike, part: str = "") -> Iterator[None]:
  """Holds a folder for this process alone; a second one fails at once.

  On a local file system this is a lock, which the operating system releases when the process ends.
  In a bucket, and on file systems without locks, it is a lease: a file that the holder renews. Two
  processes that start within the same second may there both fail. A holder that was suspended for
  longer than `LEASE_SECONDS` may find that another has taken over: it says so, and leaves it the
  lease.

  Args:
    folder: local, or in a bucket; created if it does not exist.
    part: of the folder, if processes for other parts may work there at the same time.

  Raises:
    InputError: another process holds the folder.
  """
  buckets.connect(folder)
  place = epath.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  if buckets.is_bucket(folder):
    with leased(place, part=part):
      yield
    return
  with open(place / f".lock{part}", "a+", encoding="utf-8") as stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      stream.seek(0)
      raise _in_use(folder, stream.read().strip()) from None
    except OSError:  # a file system without locks
      with leased(place, part=part):
        yield
      return
    stream.truncate(0)
    stream.write(_name())
    stream.flush()
    yield


@contextlib.contextmanager
def leased(folder: epath.Path, seconds: float = LEASE_SECONDS, *, part: str = "") -> Iterator[None]:
  """Holds a folder by a lease, a file `.lease` that is renewed while this lasts.

  Args:
    folder: an existing folder.
    seconds: age at which the lease of another process is stale and is taken over.
    part: see `held`.

  Raises:
    InputError: another process holds the lease.
  """
  path, own = folder / f".lease{part}", uuid.uuid4().hex
  other = _read_lease(path)
  age = time.time() - float(other.get("renewed", 0))
  if other and age < seconds:
    raise _in_use(folder, str(other.get("name", "")))
  if other:
    log.warning("%s: taking over from %s, which has been silent for %d s", folder,
                other.get("name", "another process"), age)
  ended = threading.Event()

  def renew() -> None:
    path.write_text(json.dumps({"holder": own, "name": _name(), "renewed": time.time()}))

  def keep() -> None:
    while not ended.wait(seconds / RENEWALS):
      try:
        if (now := _read_lease(path)) and now.get("holder") != own:
          log.error("%s: %s has taken over; stop one of the two", folder, now.get("name"))
          return
        renew()
      except OSError as error:
        log.warning("%s: the lease could not be renewed: %s", path, error)

  renew()
  time.sleep(min(1.0, seconds / RENEWALS))  # whoever wrote last at the same moment holds it
  holder = _read_lease(path)
  if holder.get("holder") != own:
    raise _in_use(folder, str(holder.get("name", "")))
  thread = threading.Thread(target=keep, name="lease", daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    with contextlib.suppress(OSError):
      if _read_lease(path).get("holder") in (own, None):
        path.unlink(missing_ok=True)


def _read_lease(path: epath.Path) -> dict:
  """Returns the content of a lease; {} if there is none, or none that can be read."""
  try:
    content = json.loads(path.read_text())
    float(content.get("renewed", 0))
    return content
  except (OSError, ValueError, TypeError, AttributeError):
    return {}


def _name() -> str:
  return f"process {os.getpid()} on {platform.node()}"


def _in_use(folder, name: str) -> InputError:
  return InputError(folder, f"is in use by {name or 'another process'}",
                    "wait until it has finished, or choose another folder")
