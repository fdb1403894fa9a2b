"""Attempts: one input through a door of a target, here or in a process that may hang or die.

The process is kept for many inputs, because its imports take seconds. Requests and answers are
lines of JSON on its standard streams.
"""

from collections.abc import Iterator
import contextlib
import importlib
import io
import json
import logging
import os
from pathlib import Path
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple
import warnings

from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from tools.fuzz.mutate import Files
from tools.fuzz.target import INPUT
from tools.fuzz.target import Target
from tools.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
OUT, TEMPORARY, WORK = "out", "tmp", "work"
DEPTH = "sandbox/of/one/attempt"  # so that a path with a few `..` stays in what is looked at
START_SECONDS = 600.0  # imports and compilation, on a busy machine
WHOLE_TIMES, WHOLE_MEMORY = 5, 2 << 30  # what a whole command may take besides its door


class Answer(NamedTuple):
  """What happened in an attempt.

  Attributes:
    code: exit code.
    lines: what was written to stderr.
    error: an exception that is no `InputError`, or another reason of a bad end.
    content: what was read.
    outside: files written outside of the output folder, or left in the temporary folder.
    end: `hang`, `crash` or `memory` if the attempt did not end by itself.
  """

  code: int = 0
  lines: tuple[str, ...] = ()
  error: str = ""
  content: dict | None = None
  outside: tuple[str, ...] = ()
  end: str = ""


def find(name: str, home: Path) -> Target:
  """Returns a target by its name, or by MODULE:CLASS; `home` is its folder."""
  module, _, attribute = TARGETS.get(name, name).partition(":")
  return getattr(importlib.import_module(module), attribute)(home)


def prepare(base: Path, files: Files) -> Path:
  """Writes the files of an input into an empty sandbox below `base` and returns it."""
  shutil.rmtree(base, ignore_errors=True)
  folder = base / DEPTH
  for name in (INPUT, OUT, TEMPORARY, WORK):
    (folder / name).mkdir(parents=True)
  for name, content in files.items():
    path = folder / INPUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return base


def attempt(target: Target, variant: str, base: Path, *, whole: bool) -> Answer:
  """Runs an input in this process.

  Args:
    target: the target.
    variant: name of the intact input.
    base: folder from `prepare`.
    whole: whether to run the whole command instead of the door.
  """
  folder = base / DEPTH
  before, code, error, content, end = _snapshot(base), 0, "", None, ""
  with _captured(folder) as text, _shown_warnings(), contextlib.chdir(folder / WORK):
    run = target.command if whole else target.door
    try:
      code, content = run(variant, folder / INPUT, folder / OUT)
    except InputError as refusal:  # as the commands do
      print(f"condseg-{target.command_name}: {refusal}", file=sys.stderr)
      code = 2 if refusal.usage else 1
    except OSError as refusal:
      print(f"condseg-{target.command_name}: {refusal.filename or 'system'}: {refusal.strerror}",
            file=sys.stderr)
      code = 1
      error = "" if refusal.strerror else _error(refusal)
    except MemoryError:
      end, error = "memory", f"more than {target.memory >> 20} MiB"
    except (Exception, SystemExit) as unexpected:
      code, error = 1, _error(unexpected)
  outside = sorted(set(_snapshot(base).items()) ^ set(before.items()))
  return Answer(code, tuple(text()), error, content, tuple(dict.fromkeys(
      str(path) for path, _ in outside)), end)


def _snapshot(base: Path) -> dict[str, tuple[int, int]]:
  """Files and folders of the sandbox but those in the output folder: size and time of change."""
  skipped, found = base / DEPTH / OUT, {}
  for parent, folders, names in os.walk(base):
    if Path(parent) == skipped.parent:
      folders.remove(OUT)
    for name in (*names, *folders):
      path = Path(parent, name)
      stat = path.lstat()
      found[str(path.relative_to(base))] = (
          (0, 0) if path.is_dir() and not path.is_symlink() else (stat.st_size, stat.st_mtime_ns))
  return found


@contextlib.contextmanager
def _captured(folder: Path) -> Iterator:
  """Collects stderr, that of libraries in C, too; yields a function that returns its lines."""
  former, saved, stream = sys.stderr, os.dup(2), tempfile.TemporaryFile("w+b")
  temporary, tempfile.tempdir = tempfile.tempdir, str(folder / TEMPORARY)
  lines: list[str] = []
  before = {handler: handler.stream for handler in _handlers()}
  try:
    os.dup2(stream.fileno(), 2)
    sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb", buffering=0), "utf-8",
                                  "backslashreplace", write_through=True)
    for handler in before:
      handler.stream = sys.stderr
    yield lambda: lines
  finally:
    for handler in _handlers():  # some may have been made meanwhile
      if handler.stream is sys.stderr:
        handler.stream = before.get(handler, former)
    sys.stderr.close()
    sys.stderr, tempfile.tempdir = former, temporary
    os.dup2(saved, 2)
    os.close(saved)
    stream.seek(0)
    # The error output may have the size of a traceback at most; a bar is redrawn on its line.
    text = stream.read(100_000).decode("utf-8", "backslashreplace")
    lines += [line.rpartition("\r")[2] for line in text.split("\n") if line.strip()]
    stream.close()


def _handlers() -> list[logging.StreamHandler]:
  """Returns the handlers of all loggers that hold what was stderr when they were made."""
  return [handler for logger in (logging.root, *logging.root.manager.loggerDict.values())
          if isinstance(logger, logging.Logger) for handler in logger.handlers
          if type(handler) is logging.StreamHandler]


@contextlib.contextmanager
def _shown_warnings() -> Iterator[None]:
  """Shows warnings as a command does, in every attempt and not only in the first of a process."""
  with warnings.catch_warnings():
    warnings.simplefilter("default")
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
      warnings.simplefilter("ignore", hidden)
    warnings.showwarning = lambda *details: print(
        warnings.formatwarning(*details[:4]), file=sys.stderr)
    yield


def _error(error: BaseException) -> str:
  """Names an exception and the last line of the project, or of the caller, in its traceback."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f for f in frames if "condseg_jax" in f.filename and "site-packages" not in f.filename]
  frame = (ours or frames)[-1]
  message = " ".join(str(error).split())[:120]
  return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}: {message}"


class Child:
  """A process that runs attempts; started when it is needed, and again after it died.

  Args:
    name: see `find`.
    home: see `find`.
    whole: run the whole command instead of the door.
  """

  def __init__(self, name: str, home: Path, *, whole: bool):
    self._name, self._home, self._whole = name, home, whole
    self._seconds = find(name, home).seconds * (WHOLE_TIMES if whole else 1)
    self._process: subprocess.Popen | None = None

  def attempt(self, variant: str, base: Path) -> Answer:
    """Runs an input, see `attempt`."""
    if self._process is None:
      self._start()
    process = self._process
    assert process is not None and process.stdin is not None
    request = {"variant": variant, "base": str(base)}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = self._line(self._seconds)
    if line is None:
      self.close()
      return Answer(end="hang", error=f"more than {self._seconds:g} s")
    if not line.endswith(b"\n"):
      code = process.wait()
      self.close()
      name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
      return Answer(end="crash", error=name)
    tree = json.loads(line)
    return Answer(**{**tree, "lines": tuple(tree["lines"]), "outside": tuple(tree["outside"])})

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.communicate()
      self._process = None

  def _start(self) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), *sys.path)))
    self._process = subprocess.Popen(
        [sys.executable, "-m", __name__, TARGETS.get(self._name, self._name), str(self._home),
         "whole" if self._whole else "door"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"})
    if self._line(START_SECONDS) != b"ready\n":
      self.close()
      raise RuntimeError(f"the process of {self._name} does not start")

  def _line(self, seconds: float) -> bytes | None:
    """Reads a line; None if it takes longer, an incomplete line if the process ends."""
    assert self._process is not None and self._process.stdout is not None
    stream = self._process.stdout
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else None


def limit_memory(size: int) -> None:
  """Limits the address space of this process to what it has now, and `size` bytes more."""
  now = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
  if now:
    resource.setrlimit(resource.RLIMIT_AS, (int(now[1]) * 1024 + size,) * 2)


def main(name: str, home: str, door: str) -> None:
  """Runs in the child: answers requests until its input ends."""
  events = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what commands print is not judged
  target = find(name, Path(home))
  shell.configure_logging()
  whole = door == "whole"
  target.warm_up()
  # Imports and compiled programs count as memory of the idle process.
  variant, files = min(target.variants().items())
  attempt(target, variant, prepare(Path(home) / f"{door} first", files), whole=whole)
  limit_memory(target.memory + (WHOLE_MEMORY if whole else 0))
  print("ready", file=events, flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    answer = attempt(target, request["variant"], Path(request["base"]), whole=whole)
    print(json.dumps(answer._asdict()), file=events, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
