"""What runs in a worker process: one task at a time, as it would run in the client's process."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import functools
from importlib import metadata
import io
import logging
import os
import socket
import threading
from typing import Any
from typing import NamedTuple

import condseg_jax
from condseg_jax.errors import InputError

PACKAGES = ("jax", "jaxlib", "numpy", "tensorstore")  # on which results depend
BAD_CASE = (InputError, OSError, MemoryError)  # what a case may raise without ending the others

# A worker may have several threads, but its device, standard streams and folder are shared.
_alone = threading.Lock()


class Requirements(NamedTuple):
  """What every task requires of the machine that it runs on.

  Attributes:
    folder: current folder of the client, to which relative paths refer.
    versions: package → version.
    shared: folders that all machines see.
  """

  folder: str
  versions: dict[str, str]
  shared: tuple[str, ...] = ()


class Report(NamedTuple):
  """What a task comes to.

  Attributes:
    value: what its function returned.
    error: what it raised, of `BAD_CASE`.
    said: what it wrote to the standard error stream and logged.
    unfit: why no task can run on this machine.
  """

  value: Any = None
  error: Exception | None = None
  said: str = ""
  unfit: InputError | None = None


@functools.cache
def versions() -> dict[str, str]:
  """Returns the versions of this process on which results depend, without importing packages."""
  found = {"condseg_jax": condseg_jax.__version__}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = "none"
  return found


def attempt(function: Callable, arguments: Sequence) -> tuple[Any, Exception | None]:
  """Calls a function; returns its value, or the error of a bad case."""
  try:
    return function(*arguments), None
  except BAD_CASE as error:
    return None, _bare(error)


def work(required: Requirements, function: Callable, arguments: Sequence) -> Report:
  """Runs a task in a worker."""
  with _alone:
    unfit = _unfit(required)
    if unfit is not None:
      return Report(unfit=unfit)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), _logged(said):
      value, error = attempt(function, arguments)
    return Report(value, error, said.getvalue())


def _unfit(required: Requirements) -> InputError | None:
  """Returns why this machine cannot do what the client's would; None if it can."""
  machine = f"worker on {socket.gethostname()}"
  for name, version in required.versions.items():
    own = versions().get(name, "none")
    if own != version:
      return InputError(machine, f"has {name} {own}, but this machine {version}",
                        "install the same versions on all machines", usage=True)
  with contextlib.suppress(OSError):  # if it is missing, relative paths do not exist there
    os.chdir(required.folder)
  for folder in required.shared:
    if "://" not in folder and not os.path.isdir(folder):
      return InputError(folder, f"does not exist for the {machine}",
                        "use a folder that all machines share", usage=True)
  return None


@contextlib.contextmanager
def _logged(stream: io.StringIO):
  """Writes what the package logs to a stream, as a command writes it to the standard error."""
  log = logging.getLogger("condseg_jax")
  handler = logging.StreamHandler(stream)
  handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
  before = log.handlers, log.level, log.propagate
  log.handlers, log.propagate = [handler], False
  log.setLevel(logging.INFO)
  try:
    yield
  finally:
    log.handlers, log.propagate = before[0], before[2]
    log.setLevel(before[1])


def _bare(error: Exception) -> Exception:
  """Returns an error without what it was raised in, whose local variables hold arrays."""
  error.__cause__ = error.__context__ = None
  return error.with_traceback(None)
