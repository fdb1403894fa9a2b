"""Resumable downloads, never spliced from two versions of a file, and digests of files."""

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
TIMEOUT = 60  # seconds without data
RETRIES = 4
PAUSE = 2.0  # seconds before the first retry; doubled for each further retry


def download(url: str, part: Path, *, progress: bool = True,
             sleep: Callable[[float], None] = time.sleep) -> None:
  """Downloads a file, and resumes an earlier attempt.

  `part.json` beside `part` records the version of the file. If the version on the server is another
  one or unknown, the download starts again.

  Args:
    url: http or https.
    part: the file to write; its folder exists.
    progress: show a progress bar with the time left.
    sleep: waits before a retry.

  Raises:
    InputError: another kind of address, or the transfer fails repeatedly; the partial file is kept.
  """
  if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
    raise InputError(url, "is not an http or https address", "give an https address")
  for attempt in range(RETRIES + 1):
    try:
      _attempt(url, part, progress)
      return
    except urllib.error.HTTPError as error:
      error.close()
      if error.code == 416:  # the part is complete, or of another version
        _remove(part)
      elif error.code < 500 and error.code not in (408, 429):
        raise InputError(url, f"the server returned {error.code} {error.reason}",
                         "check the address, or whether the dataset has moved") from error
      reason = f"{error.code} {error.reason}"
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
      reason = str(getattr(error, "reason", error)) or type(error).__name__
    if attempt < RETRIES:
      sleep(PAUSE * 2**attempt)
  raise InputError(url, f"the transfer fails ({reason})",
                   "run the same command again; it resumes the download")


def check_digest(path: Path, digest: str) -> None:
  """Compares the digest of a file with the published one, and removes the file if it differs.

  Args:
    path: the file.
    digest: `sha256:HEX` or `md5:HEX`.

  Raises:
    InputError: the digests differ.
  """
  kind, _, expected = digest.partition(":")
  actual = file_digest(path, kind)
  if actual != expected.lower():
    _remove(path)
    raise InputError(path, f"has the {kind} {actual}, not {expected}; it was removed",
                     "download it again; if the digest still differs, the published file changed")


def file_digest(path: Path, kind: str = "sha256") -> str:
  """Returns the hexadecimal digest of a file; `kind` is `sha256` or `md5`."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, kind).hexdigest()


def _attempt(url: str, part: Path, progress: bool) -> None:
  version, size = _read_record(part)
  start = part.stat().st_size if part.exists() and version else 0
  if start and start == size:
    return  # complete, but an earlier run was interrupted before it was unpacked
  request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
  if start:
    request.add_header("Range", f"bytes={start}-")
    request.add_header("If-Range", version)
  with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
    if start and (response.status != 206 or _first_byte(response) != start):
      start = 0  # the server sends the whole file: another version, or ranges are unsupported
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    _write_record(part, response, total)
    with part.open("ab" if start else "wb") as stream, tqdm.tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=part.name,
        disable=not progress) as bar:
      while block := response.read(BLOCK):
        stream.write(block)
        bar.update(len(block))
  if total is not None and part.stat().st_size != total:
    raise http.client.IncompleteRead(b"", total - part.stat().st_size)


def _first_byte(response: http.client.HTTPResponse) -> int:
  """Returns the offset of a partial response, from `Content-Range: bytes 5-9/10`."""
  text = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
  return int(text) if text.isdigit() else -1


def _record_path(part: Path) -> Path:
  return part.with_name(part.name + ".json")


def _write_record(part: Path, response: http.client.HTTPResponse, total: int | None) -> None:
  # A weak ETag does not guarantee identical bytes, so it cannot be used to resume.
  tag = response.headers.get("ETag") or ""
  version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified") or ""
  write_text(_record_path(part), json.dumps({"version": version, "bytes": total}))


def _read_record(part: Path) -> tuple[str, int | None]:
  """Returns version and size of the file to which a part belongs; "" if unknown."""
  try:
    record = json.loads(_record_path(part).read_text(encoding="utf-8"))
    return str(record["version"]), record.get("bytes")
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return "", None


def _remove(part: Path) -> None:
  for path in (part, _record_path(part)):
    if path.exists():
      os.unlink(path)
