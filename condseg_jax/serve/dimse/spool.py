"""What a DICOM node has received and not answered yet, as files that survive a kill.

    receiving/KEY/NAME.dcm   slices of a series of a sender; `.open` until its association has ended
    ready/ID/NAME.dcm        a complete series
    results/ID/KIND.dcm      its DICOM objects that are still to be sent
    failed/ID.json           why a series was not segmented

Folders are renamed as a whole, so that a series is always in one state, and goes through each once.

A series is complete when its association has ended in order, or when nothing has come for some time
while it is open. If the association breaks, or this process is killed, the slices wait for the
rest: whether the sender repeats the series or goes on, it is complete when that association ends. A
partial series is never segmented for lack of the rest.
"""

from collections.abc import Sequence
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil
import threading
import time
import uuid

SETTLE_SECONDS = 2.0  # after the end of an association: the next one may go on with the series
KEPT_DAYS = 7  # that an incomplete series waits for the rest
OPEN = ".open"
LOG = logging.getLogger("condseg_jax")


class Spool:
  """The spool of a node; threads of associations may add to it.

  Args:
    folder: is created, for its owner alone.
    quiet_seconds: without a new slice, after which a series is complete although its association is
      open.
  """

  def __init__(self, folder: Path, quiet_seconds: float):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    self._receiving, self._ready, self._results, self._failed = (
        folder / name for name in ("receiving", "ready", "results", "failed"))
    for path in (self._receiving, self._ready, self._results, self._failed):
      path.mkdir(mode=0o700, exist_ok=True)
    self.folder, self._quiet = folder, quiet_seconds
    self._lock = threading.Lock()
    self._last: dict[str, float] = {}  # key → when a slice or the end of an association came
    self._open: dict[str, set[int]] = {}  # key → open associations that have added to it
    self._newest = -1  # number of an association
    # Key → newest association when one of the series broke: only a later one can complete it.
    self._broken: dict[str, int] = {}
    self._recover()

  def add(self, association: int, sender: str, series: str, instance: str, content: bytes) -> None:
    """Keeps a slice; on return it is on disk.

    Args:
      association: number of the association.
      sender: AET.
      series: SeriesInstanceUID.
      instance: SOPInstanceUID; a slice that is sent again replaces the former one.
      content: of the DICOM file.

    Raises:
      OSError: the disk is full or fails.
    """
    key, name = _digest(sender, series), f"{_digest(instance)}.dcm"
    temporary = self._receiving / f".{uuid.uuid4().hex}"
    try:
      with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
      with self._lock:  # `collect` must not take the folder away in between
        folder = self._receiving / key
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / OPEN).touch()
        temporary.rename(folder / name)
        self._open.setdefault(key, set()).add(association)
        self._last[key] = time.monotonic()
        self._newest = max(self._newest, association)
        if association > self._broken.get(key, association):
          del self._broken[key]
    finally:
      temporary.unlink(missing_ok=True)

  def end(self, association: int, *, orderly: bool) -> None:
    """Takes note of the end of an association.

    Args:
      association: its number.
      orderly: whether the sender released it, so that it has sent everything.
    """
    with self._lock:
      for key, members in self._open.items():
        if association in members:
          members.remove(association)
          self._last[key] = time.monotonic()
          if not orderly:
            self._broken[key] = self._newest
            LOG.warning("dicom: an association broke; the slices of a series wait for the rest")
          elif not members and key not in self._broken:
            (self._receiving / key / OPEN).unlink(missing_ok=True)

  def collect(self) -> None:
    """Makes complete series ready, and removes those that were incomplete for too long."""
    with self._lock:
      for folder in _visible(self._receiving):
        key = folder.name
        if self._is_complete(key):
          (folder / OPEN).unlink(missing_ok=True)
          folder.rename(self._ready / f"{key}-{uuid.uuid4().hex[:8]}")
          self._forget(key)
        elif time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
          LOG.warning("dicom: a series that was never completed is removed after %d days",
                      KEPT_DAYS)
          shutil.rmtree(folder, ignore_errors=True)
          self._forget(key)

  def ready(self) -> list[str]:
    """Returns the ids of complete series, the oldest first."""
    folders = sorted(_visible(self._ready), key=lambda path: path.stat().st_mtime)
    return [path.name for path in folders]

  def series(self, name: str) -> Path:
    """Returns the folder of a complete series."""
    return self._ready / name

  def answer(self, name: str, objects: Sequence[Path]) -> None:
    """Replaces a complete series by its results.

    Args:
      name: id of the series.
      objects: DICOM files; they are copied.
    """
    folder = self._results / f".{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for path in objects:
      shutil.copyfile(path, folder / path.name)
    folder.rename(self._results / name)
    shutil.rmtree(self._ready / name, ignore_errors=True)

  def fail(self, name: str, outcome: dict) -> None:
    """Replaces a complete series by the reason why it is not segmented."""
    path = self._failed / f".{name}.json"
    path.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    path.rename(self._failed / f"{name}.json")
    shutil.rmtree(self._ready / name, ignore_errors=True)

  def results(self) -> list[Path]:
    """Returns the DICOM objects that are to be sent."""
    return sorted(path for folder in _visible(self._results) for path in folder.iterdir())

  def sent(self, path: Path) -> None:
    """Removes a DICOM object that has arrived."""
    path.unlink()
    if not any(path.parent.iterdir()):
      path.parent.rmdir()

  def waiting(self) -> int:
    """Returns the number of series that are incomplete, or not answered yet."""
    return sum(len(_visible(place)) for place in (self._receiving, self._ready, self._results))

  def _is_complete(self, key: str) -> bool:
    silent = time.monotonic() - self._last.get(key, -self._quiet)
    if key in self._broken:
      return False
    if self._open.get(key):
      return silent >= self._quiet
    return not (self._receiving / key / OPEN).exists() and silent >= min(SETTLE_SECONDS,
                                                                        self._quiet)

  def _forget(self, key: str) -> None:
    self._last.pop(key, None)
    self._open.pop(key, None)
    self._broken.pop(key, None)

  def _recover(self) -> None:
    """Removes what a killed process has left half-written or half-removed."""
    for place in (self._receiving, self._results, self._failed):
      for path in place.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (*self._results.iterdir(), *self._failed.iterdir()):
      shutil.rmtree(self._ready / path.name.removesuffix(".json"), ignore_errors=True)


def _visible(folder: Path) -> list[Path]:
  """Returns what is in a folder, without what is half-written."""
  return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _digest(*parts: str) -> str:
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
