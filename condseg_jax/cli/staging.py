"""Images and results in buckets: fetched to, and written by way of, a temporary folder.

The readers and writers of image formats work on local files. All images are fetched before the
first is read, and removed at the end; the results of an image are sent when it is done.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil
import tempfile

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.system import buckets


class Place:
  """A local folder, which may stand for one in a bucket.

  Attributes:
    path: the local file or folder.
    address: what the user named.
  """

  def __init__(self, path: Path, address: str):
    self.path, self.address = path, address
    self._remote = buckets.is_bucket(address)

  def name(self, path: Path) -> str:
    """Returns how the user knows a path within it."""
    if not self._remote:
      return str(path)
    inner = path.relative_to(self.path).as_posix()
    return self.address if inner == "." else f"{self.address.rstrip('/')}/{inner}"

  def named(self, text: str) -> str:
    """Returns a text with the user's name for the folder."""
    return text.replace(str(self.path), self.address.rstrip("/")) if self._remote else text


class Output(Place):
  """The folder of the results of a command."""

  def exists(self, path: Path) -> bool:
    """Returns whether a result is there, at its final place."""
    return epath.Path(self.name(path)).exists()

  def drop(self, path: Path) -> None:
    """Removes a result, if it is there."""
    path.unlink(missing_ok=True)
    if self._remote:
      epath.Path(self.name(path)).unlink(missing_ok=True)

  def fetch(self, path: Path) -> None:
    """Gets a former result, if there is one, to read it here."""
    if self._remote and self.exists(path):
      path.write_bytes(epath.Path(self.name(path)).read_bytes())

  def send(self, paths: Iterable[Path], *, keep: bool = False) -> None:
    """Brings files and folders to their final place, in this order.

    Args:
      paths: results; those that do not exist are left out.
      keep: whether they also stay here, to be written again.

    Raises:
      InputError: one cannot be written; those before it are.
    """
    if not self._remote:
      return
    for path in paths:
      inside = sorted(path.rglob("*")) if path.is_dir() else [path]
      for one in filter(Path.is_file, inside):
        try:
          epath.Path(self.name(one)).write_bytes(one.read_bytes())
        except Exception as error:  # each storage library has exceptions of its own
          raise buckets.explained(self.name(one), error) from error
      if not keep:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def fetched(address: str) -> Iterator[Place]:
  """Yields a place to read images from: a local path as it is, or what is fetched of a bucket.

  Raises:
    InputError: nothing is there, or it cannot be read.
  """
  if not buckets.is_bucket(address):
    yield Place(Path(address), address)
    return
  source = epath.Path(address)
  with tempfile.TemporaryDirectory(prefix="condseg-", ignore_cleanup_errors=True) as name:
    place = Place(Path(name) / source.name, address)
    try:
      if not source.exists():
        raise InputError(address, "does not exist", "check the address")
      _fetch(source, place.path)
    except OSError as error:
      raise buckets.explained(address, error) from error
    with _as_named(place):
      yield place


@contextlib.contextmanager
def output(address: str) -> Iterator[Output]:
  """Yields the folder for results; what it still holds of a bucket at the end is sent there."""
  if not buckets.is_bucket(address):
    yield Output(Path(address), address)
    return
  with tempfile.TemporaryDirectory(prefix="condseg-", ignore_cleanup_errors=True) as name:
    place = Output(Path(name), address)
    with _as_named(place):
      try:
        yield place
      except BaseException:
        with contextlib.suppress(InputError):  # the error above is the one to tell
          place.send(_left(place))
        raise
      place.send(_left(place))


def _left(place: Output) -> list[Path]:
  """Returns what a folder still holds, records first: an image with a mask counts as done."""
  paths = [path for path in place.path.iterdir() if not path.name.startswith(".")]
  return sorted(paths, key=lambda path: (path.suffix not in (".json", ".html", ".zarr"), path.name))


def _fetch(source: epath.Path, target: Path) -> None:
  if source.is_dir():
    target.mkdir()
    for child in source.iterdir():
      _fetch(child, target / child.name)
    return
  target.write_bytes(source.read_bytes())
  changed = source.stat().mtime
  os.utime(target, (changed, changed))  # by which an image of an earlier run is recognised


@contextlib.contextmanager
def _as_named(place: Place) -> Iterator[None]:
  """Lets errors name addresses instead of the temporary folder."""
  try:
    yield
  except InputError as error:
    raise error.renamed(place.path, place.address.rstrip("/")) from error
