"""Datasets from the web: a resumable download, checked before anything is unpacked.

A download is kept beside the folder it becomes, in FOLDER.part, and FOLDER.part.json says which
version of which file that is the beginning of. Both go when the folder is complete.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import hashlib
import http.client
import json
import os
from pathlib import Path
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from condseg_jax.data.prepare.catalogue import Archive
from condseg_jax.data.prepare.unpack import unpack
from condseg_jax.errors import InputError

SCHEMES = ("http", "https")
CHUNK = 1 << 18  # bytes
TIMEOUT = 60  # s without a byte
ATTEMPTS = 6
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes after which another attempt makes sense


class _BrokenError(Exception):
  """A transfer that another attempt may complete."""


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows to http and https only, and never from https to http."""

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    scheme = urllib.parse.urlsplit(newurl).scheme
    if scheme not in SCHEMES or (req.type, scheme) == ("https", "http"):
      fp.close()
      raise InputError(req.full_url, f"leads to {newurl}", "only https is followed from https")
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
  # Not build_opener: it would serve file, ftp and data too.
  opener = urllib.request.OpenerDirector()
  for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler,
                  urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler, _Redirects,
                  urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler):
    opener.add_handler(handler())
  return opener


def fetch(name: str, row: Archive, out, sha256: str = "", *, progress: bool = True,
          wait: Callable[[float], None] = time.sleep) -> Path:
  """Downloads, checks and unpacks a dataset; returns its folder, `out`/`row.folder`.

  Args:
    name: of the dataset, for `SOURCE.json`.
    row: where it is and what it must be.
    out: folder for the dataset's folder; made if need be.
    sha256: hexadecimal; checked besides the row's own digest.
    progress: show bars.
    wait: see `download`.

  Raises:
    InputError: no digest is known, the folder exists, the download fails or is another file than
      was published, an archive that cannot or must not be unpacked.
  """
  digests = [d for d in (row.digest, sha256 and f"sha256:{sha256.lower()}") if d]
  if not digests:
    raise InputError(name, "has no published digest to check a download by", "give --sha256=HEX of "
                     f"{row.url}, from a source that you trust", usage=True)
  target = Path(os.path.abspath(out)) / row.folder
  if os.path.lexists(target):
    raise InputError(target, "exists already", "remove it, or choose another --out")
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.with_name(f"{target.name}.part")
  with _locked(part):
    download(row.url, part, row.size, progress=progress, wait=wait)
    found = check(part, digests, row.url, progress=progress)
    source = {"name": name, "url": row.url, "digest": digests[-1], "sha256": found["sha256"],
              "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
              "licence": row.licence, "page": row.page}
    files = dict(row.files) | {"SOURCE.json": json.dumps(source, indent=1) + "\n"}
    unpack(part, target, row.kind, inside=row.inside, limit=row.limit, files=files)
    _forget(part)
  return target


def download(url: str, part: Path, size: int = 0, *, progress: bool = True,
             wait: Callable[[float], None] = time.sleep) -> None:
  """Completes the file `part`, from where it stopped if the server still has the same version.

  Gives up after `ATTEMPTS` in a row that brought nothing new.

  Args:
    url: http or https.
    part: grows; stays as it is when the transfer breaks, and `part`.json beside it.
    size: in bytes, if it is known.
    progress: show a bar.
    wait: called with the seconds before the next attempt.

  Raises:
    InputError: another scheme, the server refuses, a file of another size, no space, no success.
  """
  if urllib.parse.urlsplit(url).scheme not in SCHEMES:
    raise InputError(url, "is neither http nor https", "name a web address")
  failed, most = 0, 0
  while True:
    try:
      return _attempt(url, part, size, progress)
    except (OSError, http.client.HTTPException, _BrokenError) as error:
      if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
        raise InputError(url, f"is not who it says it is: {error}",
                         "check the clock and the certificates of this machine") from error
      have = part.stat().st_size if part.exists() else 0
      failed, most = (0 if have > most else failed + 1), max(have, most)
      if failed >= ATTEMPTS:
        raise InputError(url, f"cannot be downloaded: {error}", "check the connection and run the "
                         f"same command again; it goes on after {have:,} bytes") from error
      wait(2 ** failed)


def check(part: Path, digests: list[str], url: str, *, progress: bool = True) -> dict[str, str]:
  """Digest of a file by algorithm, SHA-256 always among them.

  Raises:
    InputError: one is not as in `digests` ("ALGORITHM:HEX"); the file is removed.
  """
  wanted = [d.split(":") for d in digests]
  hashes = {name: hashlib.new(name, usedforsecurity=False) for name in
            {"sha256", *(name for name, _ in wanted)}}
  with part.open("rb") as file, _bar(part.stat().st_size, 0, "checking", progress) as bar:
    while chunk := file.read(4 * CHUNK):
      for digest in hashes.values():
        digest.update(chunk)
      bar.update(len(chunk))
  found = {name: digest.hexdigest() for name, digest in hashes.items()}
  for name, digest in wanted:
    if found[name] != digest.lower():
      _forget(part)
      raise InputError(url, f"is not the file that was published: its {name} is {found[name]}, not "
                       f"{digest}", "the download was removed; try again, or ask its publisher")
  return found


def _attempt(url: str, part: Path, size: int, progress: bool) -> None:
  have, kept = _kept(part, url)
  if have and have == kept["total"]:
    return
  headers = {"User-Agent": "condseg-fetch", "Accept-Encoding": "identity"}
  if have:
    # Another version is sent from its beginning, rather than its end after our beginning.
    headers |= {"Range": f"bytes={have}-", "If-Range": kept["version"]}
  try:
    response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    with error:
      if error.code == 416 and have:
        if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
          return
        _forget(part)
        raise _BrokenError("the file has become shorter") from error
      if error.code in PASSING:
        raise _BrokenError(f"HTTP {error.code} {error.reason}") from error
      raise InputError(url, f"is refused: HTTP {error.code} {error.reason}",
                       "see the page of the dataset (--list) for where it is now") from error
  with response:
    start, total = _extent(response, have, part)
    if size and total and total != size:
      raise InputError(url, f"has {total:,} bytes where {size:,} were published",
                       "it has been changed: see the page of the dataset (--list)")
    free = shutil.disk_usage(part.parent).free
    if total and total - start > free:
      raise InputError(part, f"needs {total - start:,} bytes more, {free:,} are free",
                       "make space, or choose another --out")
    if not start:
      _begin(part, url, response.headers, total)
    _receive(response, part, start, total, progress)


def _extent(response, have: int, part: Path) -> tuple[int, int]:
  """First byte of what is sent, and bytes of the whole file (0 if the server does not say)."""
  if response.status == 200:
    return 0, response.length or 0
  said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
  if response.status != 206 or not said or int(said[1]) != have:
    _forget(part)
    raise _BrokenError(f"the server sent another part than was asked for (HTTP {response.status})")
  return have, 0 if said[2] == "*" else int(said[2])


def _receive(response, part: Path, start: int, total: int, progress: bool) -> None:
  with part.open("ab") as file, _bar(total, start, part.stem, progress) as bar:
    while chunk := response.read(CHUNK):
      with _writing(part):
        file.write(chunk)
        file.flush()
      bar.update(len(chunk))
    have = file.tell()
  if total and have != total:
    raise _BrokenError(f"broke off after {have:,} of {total:,} bytes")


def _bar(total: int, start: int, title: str, progress: bool) -> tqdm.tqdm:
  return tqdm.tqdm(total=total or None, initial=start, desc=title, unit="B", unit_scale=True,
                   disable=not progress)


def _state(part: Path) -> Path:
  return part.with_name(f"{part.name}.json")


def _kept(part: Path, url: str) -> tuple[int, dict]:
  """Bytes that can be kept, and what is known of them; 0 if it is not sure whose they are."""
  try:
    kept = json.loads(_state(part).read_text())
    if kept["url"] == url and kept["version"] and kept["total"] >= 0:
      return part.stat().st_size, kept
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return 0, {}


def _begin(part: Path, url: str, headers, total: int) -> None:
  """An empty file, and beside it the version of what will be in it."""
  tag = headers.get("ETag", "")
  # A weak tag may stay when bytes change.
  version = tag if tag.startswith('"') else headers.get("Last-Modified", "")
  with _writing(part):
    os.truncate(part, 0)  # before the version is noted: old bytes must never get the new one
    _state(part).write_text(json.dumps({"url": url, "version": version, "total": total}))


def _forget(part: Path) -> None:
  part.unlink(missing_ok=True)
  _state(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
  """Keeps other processes from the same file; an empty one is not left behind."""
  with part.open("ab") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(part, "is being downloaded by another process", "wait for it") from error
    try:
      yield
    finally:
      if part.exists() and not part.stat().st_size:
        _forget(part)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
  """Tells errors of the disk from those of the network."""
  try:
    yield
  except OSError as error:
    raise InputError(path, f"cannot be written: {error.strerror or error}",
                     "check permissions and free space") from error
