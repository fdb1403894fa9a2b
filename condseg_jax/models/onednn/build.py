"""Compiles the handlers of `convolution.cc` against oneDNN, once per user and machine."""

import hashlib
import importlib.metadata
import json
import logging
import os
from pathlib import Path
import platform
import shlex
import shutil
import subprocess
import sys

import jaxlib

from condseg_jax.errors import InputError
from condseg_jax.system import cache
from condseg_jax.system.atomic import replacing
from condseg_jax.system.atomic import write_text
from condseg_jax.system.lock import locked

SOURCE = Path(__file__).parent / "convolution.cc"
PACKAGES = {"libdnnl.so": "onednn-cpu-gomp", "dnnl.hpp": "onednn-devel-cpu-gomp"}
VERSION = "2023.2.0"  # as in setup.cfg
COMPILERS = ("g++", "clang++", "c++")
TIMEOUT_S = 300
LOG = logging.getLogger("condseg_jax")


def supported() -> bool:
  """Whether oneDNN is published for this platform, so that setup.cfg requires it."""
  return sys.platform == "linux" and platform.machine() == "x86_64"


def library() -> Path:
  """Returns the path of the library in the user's cache folder, built or not.

  Its name depends on all that it is compiled from and linked with.

  Raises:
    InputError: oneDNN is not installed.
  """
  parts = (SOURCE.read_text(encoding="utf-8"), jaxlib.__version__, str(_installed("libdnnl.so")),
           "".join(platform.libc_ver()))
  key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
  return cache.folder("onednn") / f"{key}.so"


def build(*, retry: bool = False) -> Path:
  """Returns the library, which one process compiles in about four seconds if it does not exist.

  A failure is recorded beside it, so that the same compiler is not run again at every start.

  Args:
    retry: compile even if this compiler failed before.

  Raises:
    InputError: oneDNN or a C++ compiler is missing, the compiler fails or failed before, or the
      cache folder cannot be written.
  """
  path = library()
  if path.exists():
    return path
  compiler = _compiler()
  failure = path.with_suffix(".failed")
  try:
    with locked(path.with_suffix(".lock")):
      if not path.exists():  # another process may have built it meanwhile
        if not retry:
          _check_earlier_failure(failure, compiler)
        LOG.info("building the oneDNN convolution handlers (about 4 s, once)")
        _compile(compiler, path, failure)
  except OSError as error:
    raise InputError(path.parent, f"cannot be written: {error.strerror or error}",
                     "name another cache folder with XDG_CACHE_HOME") from error
  return path


def _compile(compiler: list[str], path: Path, failure: Path) -> None:
  """Compiles the library; a compiler that fails is recorded in the file `failure`."""
  libraries = _installed("libdnnl.so").parent
  # dnnl.hpp lies in include/ and, complete, in include/oneapi/dnnl/.
  headers = next(p for p in _installed("dnnl.hpp").parents if (p / "oneapi" / "dnnl").is_dir())
  with replacing(path) as temporary:
    command = [*compiler, "-O2", "-std=c++20", "-fPIC", "-shared", "-w",
               f"-I{Path(jaxlib.__file__).parent / 'include'}", f"-I{headers}", str(SOURCE),
               "-o", str(temporary), f"-L{libraries}", "-ldnnl", f"-Wl,-rpath,{libraries}"]
    reason = _run(command)
    if reason:
      write_text(failure, json.dumps({"compiler": _identity(compiler), "reason": reason}))
      raise InputError(shlex.join(compiler), f"cannot compile {SOURCE.name}: {reason}",
                       "use a compiler that supports C++20, named by CXX")
  failure.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
  """Runs a compiler; returns why it failed, in one line, or an empty string."""
  try:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                          timeout=TIMEOUT_S, env={**os.environ, "LC_ALL": "C"})
  except (OSError, subprocess.TimeoutExpired) as error:
    return str(error).splitlines()[0]
  if not done.returncode:
    return ""
  lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
  named = next((line for line in lines if "error" in line), lines[0] if lines else "")
  return named[:300] or f"exit status {done.returncode}"


def _compiler() -> list[str]:
  """Returns the command of the C++ compiler: that of CXX, else the first on PATH."""
  command = shlex.split(os.environ.get("CXX", ""))
  command = command or list(filter(None, map(shutil.which, COMPILERS)))[:1]
  if not command:
    raise InputError("C++ compiler", "not found", "install g++, or name a compiler by CXX")
  return command


def _identity(compiler: list[str]) -> str:
  """Names a compiler and its version; another one deserves another try."""
  try:
    done = subprocess.run([*compiler, "--version"], capture_output=True, encoding="utf-8",
                          errors="replace", timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return shlex.join(compiler)
  return f"{shlex.join(compiler)} {done.stdout.partition(chr(10))[0]}".strip()


def _check_earlier_failure(failure: Path, compiler: list[str]) -> None:
  """Raises InputError if this compiler failed before."""
  try:
    record = json.loads(failure.read_text(encoding="utf-8"))
    same, reason = record["compiler"] == _identity(compiler), record["reason"]
  except (OSError, ValueError, KeyError, TypeError):
    return
  if same:
    raise InputError(shlex.join(compiler), f"could not compile {SOURCE.name} before: {reason}",
                     "to try again, run python -m condseg_jax.models.onednn")


def _installed(name: str) -> Path:
  """Returns the path of a file of one of the packages."""
  try:
    files = importlib.metadata.distribution(PACKAGES[name]).files or []
  except importlib.metadata.PackageNotFoundError:
    files = []
  for file in files:
    if file.name == name:
      return Path(file.locate()).resolve()
  raise InputError(PACKAGES[name], "is not installed", f"pip install {PACKAGES[name]}=={VERSION}")
