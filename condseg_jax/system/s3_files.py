"""Files at `s3://` for fsspec, and so for epath: a thin layer over obstore (extra `buckets`).

obstore's own layer for fsspec cannot rename folders through epath, and does not raise the built-in
errors of files. An object appears when its upload is complete, so writers are atomic without a
rename.
"""

from collections.abc import Iterator
import contextlib
import datetime
import functools
import io
import os
from typing import Any

from fsspec.spec import AbstractBufferedFile
from fsspec.spec import AbstractFileSystem
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from condseg_jax.system import buckets

CONNECT_SECONDS = 10
TRANSFER_SECONDS = 60  # of a whole object, after which it is tried again
RETRY_SECONDS = 120


class S3Files(AbstractFileSystem):
  """Objects as files; folders are the prefixes that objects have."""

  protocol = "s3"

  # --- reading ---
  def info(self, path: str, **_) -> dict[str, Any]:
    """Returns name, type, size and time of change of an object or a folder.

    Raises:
      FileNotFoundError: there is neither.
    """
    name = self._strip_protocol(path)
    store, key = _place(name)
    with _errors(path):
      if key:
        with contextlib.suppress(FileNotFoundError):
          head = obstore.head(store, key)
          return {"name": name, "type": "file", "size": head["size"],
                  "mtime": head["last_modified"], "ETag": head["e_tag"]}
      # A page with one object is enough to know a folder, however many objects it holds.
      if key and not next(iter(obstore.list(store, prefix=key, chunk_size=1)), None):
        raise FileNotFoundError(path)
      if not key:
        obstore.list_with_delimiter(store)
    return {"name": name, "type": "directory", "size": 0}

  def ls(self, path: str, detail: bool = True, **_) -> list:
    """Lists a folder, without what is below its folders."""
    name = self._strip_protocol(path)
    store, key = _place(name)
    bucket = name.partition("/")[0]
    with _errors(path):
      found = obstore.list_with_delimiter(store, key or None)
      entries = [{"name": f"{bucket}/{prefix}", "type": "directory", "size": 0}
                 for prefix in found["common_prefixes"]]
      entries += [{"name": f"{bucket}/{one['path']}", "type": "file", "size": one["size"],
                   "mtime": one["last_modified"]} for one in found["objects"]]
      if not entries and key:
        return [self.info(path)] if detail else [self.info(path)["name"]]
    return entries if detail else [entry["name"] for entry in entries]

  def exists(self, path: str, **_) -> bool:
    """Returns whether there is an object or a folder; other errors are raised."""
    try:
      self.info(path)
      return True
    except FileNotFoundError:
      return False

  def isdir(self, path: str) -> bool:
    """Returns whether a path is a folder; other errors are raised."""
    try:
      return self.info(path)["type"] == "directory"
    except FileNotFoundError:
      return False

  def cat_file(self, path: str, start: int | None = None, end: int | None = None,
               **_) -> bytes:
    """Reads an object, or a range of it."""
    store, key = _place(self._strip_protocol(path))
    with _errors(path):
      if start is None and end is None:
        return bytes(obstore.get(store, key).bytes())
      end = self.info(path)["size"] if end is None else end
      return bytes(obstore.get_range(store, key, start=start or 0, end=end))

  # --- writing ---
  def pipe_file(self, path: str, value: bytes, **_) -> None:
    """Writes an object; a large one in parts."""
    store, key = _place(self._strip_protocol(path))
    with _errors(path):
      obstore.put(store, key, value)

  def mkdir(self, path: str, create_parents: bool = True, **_) -> None:
    """Does nothing: folders come and go with their objects."""

  def makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing, see `mkdir`."""

  def rmdir(self, path: str) -> None:
    """Does nothing, see `mkdir`."""

  def rm_file(self, path: str) -> None:
    """Removes an object."""
    store, key = _place(self._strip_protocol(path))
    with _errors(path):
      obstore.head(store, key)  # S3 answers alike whether or not there was one
      obstore.delete(store, key)

  def rm(self, path: str, recursive: bool = False, **_) -> None:
    """Removes an object, or with `recursive` all of a folder."""
    if not recursive:
      self.rm_file(path)
      return
    store, key = _place(self._strip_protocol(path))
    with _errors(path):
      for page in obstore.list(store, prefix=key):
        obstore.delete(store, [one["path"] for one in page])
      obstore.delete(store, [key])

  def cp_file(self, path1: str, path2: str, **_) -> None:
    """Copies an object within its bucket, on the server."""
    store, key = _place(self._strip_protocol(path1))
    target = _same_bucket(path1, path2)
    with _errors(path1):
      obstore.copy(store, key, target)

  def mv(self, path1: str, path2: str, **_) -> None:
    """Copies an object or a folder within its bucket, then removes it; this is not atomic."""
    if self.info(path1)["type"] == "file":
      self.cp_file(path1, path2)
      self.rm_file(path1)
      return
    store, key = _place(self._strip_protocol(path1))
    target = _same_bucket(path1, path2)
    with _errors(path1):
      for page in obstore.list(store, prefix=key):
        for one in page:
          obstore.copy(store, one["path"], f"{target}/{one['path'][len(key):].lstrip('/')}")
    self.rm(path1, recursive=True)

  def _open(self, path: str, mode: str = "rb", **_):
    if mode == "rb":
      return _Reader(self, path, mode)
    if mode == "wb":
      return _Writer(self, path)
    raise ValueError(f"{path}: objects can be read and written, not opened with {mode!r}")


class _Reader(AbstractBufferedFile):
  """Reads ranges as they are needed."""

  def _fetch_range(self, start: int, end: int) -> bytes:
    return self.fs.cat_file(self.path, start, end)


class _Writer(io.BytesIO):
  """Becomes an object when it is closed, unless an exception ends its `with`."""

  def __init__(self, files: S3Files, path: str):
    super().__init__()
    self._files, self._path = files, path

  def __exit__(self, kind, error, trace) -> None:
    if kind is not None:
      super().close()
      return
    self.close()

  def close(self) -> None:
    if not self.closed:
      content = self.getvalue()
      super().close()
      self._files.pipe_file(self._path, content)

  def __del__(self):
    super().close()  # a writer that was never closed writes nothing


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
  """Turns exceptions of obstore into those of files, with one line of text."""
  try:
    yield
  except FileNotFoundError as error:
    if "NoSuchBucket" in str(error):
      raise OSError(0, buckets.explained(path, error).reason, str(path)) from error
    raise FileNotFoundError(path) from error
  except PermissionError as error:
    raise PermissionError(0, buckets.explained(path, error).reason, str(path)) from error
  except BaseError as error:
    raise OSError(0, buckets.explained(path, error).reason, str(path)) from error


def _place(name: str) -> tuple[S3Store, str]:
  bucket, _, key = name.partition("/")
  identity = tuple(os.environ.get(f"AWS_{name}") for name in
                   ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"))
  settings = (buckets.s3_endpoint(), buckets.s3_region(), buckets.is_anonymous(),
              buckets.attempts(), identity)
  return _store(bucket, *settings), key.strip("/")


def _same_bucket(path1: str, path2: str) -> str:
  """Returns the key of the second path, or raises ValueError if its bucket is another."""
  (first, _, _), (second, _, key) = (S3Files._strip_protocol(path).partition("/")
                                     for path in (path1, path2))
  if first != second:
    raise ValueError(f"{path1} and {path2} are in different buckets")
  return key.strip("/")


@functools.lru_cache(maxsize=16)
def _store(bucket: str, endpoint: str, region: str, anonymous: bool, attempts: int,
           _: tuple[str | None, ...]) -> S3Store:
  config: Any = {"skip_signature": anonymous}
  if endpoint:
    config["endpoint"] = endpoint
  if region:
    config["region"] = region
  duration = datetime.timedelta  # days, seconds
  return S3Store(bucket, config=config,
                 client_options={"allow_http": endpoint.startswith("http:"),
                                 "connect_timeout": f"{CONNECT_SECONDS}s",
                                 "timeout": f"{TRANSFER_SECONDS}s"},
                 retry_config={"max_retries": attempts - 1,
                               "retry_timeout": duration(0, RETRY_SECONDS),
                               "backoff": {"base": 2, "init_backoff": duration(0, 0.5),
                                           "max_backoff": duration(0, 16)}})
