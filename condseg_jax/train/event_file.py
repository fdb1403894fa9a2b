"""Files of TensorBoard events in a bucket, for tensorboardX.

tensorboardX has writers of its own for `s3://` and `gs://`, which need further packages and other
names of environment variables than everything else here.
"""

import functools
import io

from etils import epath
from tensorboardX import record_writer

from condseg_jax.system.buckets import PACKAGES


class _EventFile:
  """Keeps the events of a session in memory, and writes them as one object at every flush."""

  def __init__(self, path: str):
    self._path, self._events, self._written = epath.Path(path), io.BytesIO(), 0

  def write(self, record: bytes) -> None:
    """Adds a record."""
    self._events.write(record)

  def flush(self) -> None:
    """Writes all records, if there are new ones."""
    if self._events.tell() > self._written:
      self._path.write_bytes(self._events.getvalue())
      self._written = self._events.tell()

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
