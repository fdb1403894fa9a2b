"""Files of TensorBoard events in a bucket, for tensorboardX.

tensorboardX has writers of its own for `s3://` and `gs://`, which need further packages and other
names of environment variables than everything else here.
"""

import functools
import io
import logging

from etils import epath
from tensorboardX import record_writer

from condseg_jax.system.buckets import explained
from condseg_jax.system.buckets import PACKAGES

log = logging.getLogger("condseg_jax")


class _EventFile:
  """Keeps the events of a session in memory, and writes them as one object at every flush."""

  def __init__(self, path: str):
    self._path, self._events, self._written = epath.Path(path), io.BytesIO(), 0

  def write(self, record: bytes) -> None:
    """Adds a record."""
    self._events.write(record)

  def flush(self) -> None:
    """Writes all records, if there are new ones; what fails is written with the next of them."""
    if self._events.tell() > self._written:
      self._written = self._events.tell()
      try:
        self._path.write_bytes(self._events.getvalue())
      except Exception as error:  # called by a thread, and at exit, where nobody could catch it
        log.warning("%s", explained(self._path, error))

  def close(self) -> None:
    """Writes all records."""
    self.flush()


class _EventFiles:
  """What tensorboardX asks of a place for its files."""

  def open(self, path: str) -> _EventFile:
    """Opens a new file."""
    return _EventFile(path)

  def directory_check(self, path: str) -> None:
    """Does nothing: folders of a bucket need not be made."""


@functools.cache
def register() -> None:
  """Lets tensorboardX write to buckets."""
  for scheme in PACKAGES:
    record_writer.register_writer_factory(scheme, _EventFiles())
