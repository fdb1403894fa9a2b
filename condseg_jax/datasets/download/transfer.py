"""Downloading a file: resumable, never spliced from two versions, and checked before it is used."""

from collections.abc import Callable
import hashlib
import http.client
import json
import os
from pathlib import Path
import time
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from condseg_jax.errors import InputError
from condseg_jax.system.atomic import write_text

BLOCK = 1 << 20
TIMEOUT = 60  # seconds without a byte
RETRIES = 4
PAUSE = 2.0  # seconds before the first retry; doubled for each further one


def download(url: str, part: Path, *, progress: bool = True,
             sleep: Callable[[float], None] = time.sleep) -> None:
  """Brings a file, going on where an earlier attempt broke off.

  Beside `part` lies `part.json`, which says of which version of the file the part is; where the
  server has another one now, or does not say, the download begins anew.

  Args:
    url: http or https.
    part: the file to write; its folder exists.
    progress: show a progress bar with the time left.
    sleep: waits before a retry.

  Raises:
    InputError: another kind of address, or the transfer fails again and again; what has arrived is
      kept.
  """
  if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
    raise InputError(url, "is no address to download from", "give an https address")
  for attempt in range(RETRIES + 1):
    try:
      _attempt(url, part, progress)
      return
    except urllib.error.HTTPError as error:
      error.close()
      if error.code == 416:  # nothing left of this version, or a part of another one
        _forget(part)
      elif error.code < 500 and error.code not in (408, 429):
        raise InputError(url, f"the server says {error.code} {error.reason}",
                         "check the address, or whether the dataset has moved") from error
      reason = f"{error.code} {error.reason}"
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
      reason = str(getattr(error, "reason", error)) or type(error).__name__
    if attempt < RETRIES:
      sleep(PAUSE * 2**attempt)
  raise InputError(url, f"the transfer fails ({reason})",
                   "run the same command again: it goes on where it stopped")


def check_digest(path: Path, digest: str) -> None:
  """Compares a file with its published digest; one that differs is removed.

  Args:
    digest: `sha256:HEX` or `md5:HEX`.

  Raises:
    InputError: it differs.
  """
  kind, _, wanted = digest.partition(":")
  found = file_digest(path, kind)
  if found != wanted.lower():
    _forget(path)
    raise InputError(path, f"has the {kind} {found}, not {wanted}; it was removed",
                     "download it again; if it stays so, the file at the source has changed")


def file_digest(path: Path, kind: str = "sha256") -> str:
  """Hexadecimal digest of a file."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, kind).hexdigest()


def _attempt(url: str, part: Path, progress: bool) -> None:
  version, whole = _remembered(part)
  start = part.stat().st_size if part.exists() and version else 0
  if start and start == whole:
    return  # all of it came before, and what followed was broken off
  request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
  if start:
    request.add_header("Range", f"bytes={start}-")
    request.add_header("If-Range", version)
  with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
    if start and (response.status != 206 or _first_byte(response) != start):
      start = 0  # the server begins anew: another version, or it knows no ranges
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    _remember(part, response, total)
    with part.open("ab" if start else "wb") as stream, tqdm.tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=part.name,
        disable=not progress) as bar:
      while block := response.read(BLOCK):
        stream.write(block)
        bar.update(len(block))
  if total is not None and part.stat().st_size != total:
    raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def _first_byte(response) -> int:
  """The first byte of a partial answer, from `Content-Range: bytes 5-9/10`."""
  text = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
  return int(text) if text.isdigit() else -1


def _note(part: Path) -> Path:
  return part.with_name(part.name + ".json")


def _remember(part: Path, response, total: int | None) -> None:
  # A weak tag does not promise the same bytes, so that it cannot be resumed by.
  tag = response.headers.get("ETag") or ""
  version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified") or ""
  write_text(_note(part), json.dumps({"version": version, "bytes": total}))


def _remembered(part: Path) -> tuple[str, int | None]:
  """Version and size of the file that a part is of."""
  try:
    note = json.loads(_note(part).read_text(encoding="utf-8"))
    return str(note["version"]), note.get("bytes")
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return "", None


def _forget(part: Path) -> None:
  for path in (part, _note(part)):
    if path.exists():
      os.unlink(path)
