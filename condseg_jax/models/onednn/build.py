"""Compiles the handlers of `convolution.cc` against the oneDNN of the extra `onednn`, once."""

import hashlib
import importlib.metadata
import os
from pathlib import Path
import shutil
import subprocess

import jax
import jaxlib

from condseg_jax.errors import InputError
from condseg_jax.system import cache
from condseg_jax.system.atomic import replacing

SOURCE = Path(__file__).parent / "convolution.cc"
PACKAGES = {"libdnnl.so": "onednn-cpu-gomp", "dnnl.hpp": "onednn-devel-cpu-gomp"}


def library() -> Path:
  """Where the library lies in the user's cache folder, built or not."""
  parts = [SOURCE.read_bytes(), jaxlib.__version__.encode()]
  return cache.folder("onednn") / f"{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}.so"


def build() -> Path:
  """Compiles the library where it is not there yet, in about ten seconds.

  Raises:
    InputError: oneDNN or a C++ compiler is missing, or the compiler fails.
  """
  path = library()
  if path.exists():
    return path
  compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
  if not compiler:
    raise InputError("C++ compiler", "is not there", "install g++, or name one by CXX")
  libraries = _installed("libdnnl.so").parent
  # dnnl.hpp stands in include/ and, the whole of it, in include/oneapi/dnnl/.
  headers = [p for p in _installed("dnnl.hpp").parents if (p / "oneapi" / "dnnl").is_dir()][0]
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as temporary:
    done = subprocess.run(
        [compiler, "-O2", "-std=c++20", "-fPIC", "-shared", "-w", f"-I{jax.ffi.include_dir()}",
         f"-I{headers}", str(SOURCE), "-o", str(temporary), f"-L{libraries}", "-ldnnl",
         f"-Wl,-rpath,{libraries}"], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
      line = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[:200])
      raise InputError(compiler, f"cannot compile {SOURCE.name}: {line}",
                       "use a compiler that knows C++20")
  return path


def _installed(name: str) -> Path:
  """A file of one of the packages."""
  try:
    files = importlib.metadata.distribution(PACKAGES[name]).files or []
  except importlib.metadata.PackageNotFoundError:
    files = []
  for file in files:
    if file.name == name:
      return Path(file.locate()).resolve()
  raise InputError(PACKAGES[name], "is not installed", 'pip install "condseg-jax[onednn]"')
