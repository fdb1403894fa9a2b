"""The code of the page's viewer, NiiVue (BSD-2-Clause): kept in the user's cache folder.

No package of the Python index holds it in a form that a page of one's own can use, so that it comes
from npm: one version, whose checksum is known.
"""

import base64
import hashlib
import os
from pathlib import Path
import shutil
import subprocess
import tarfile
import tempfile

from condseg_jax.errors import InputError
from condseg_jax.system import cache
from condseg_jax.system.atomic import replacing

PACKAGE, VERSION = "@niivue/niivue", "0.69.0"
INTEGRITY = ("YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDG"
             "DIcaNlbd+MhtO/edMbXJkA==")  # SHA-512 of the package, in base64 as npm states it
MEMBER = "package/dist/niivue.umd.js"  # defines the global `niivue`
HOW = "python -m condseg_jax.report.page gets it, once"
_PATIENCE_S = 120


def fetch(source: str | os.PathLike = "") -> Path:
  """Puts the viewer's package into the user's cache folder, unless it is there.

  Args:
    source: the package as a file, where it was brought along; npm is asked when empty.

  Raises:
    InputError: npm is missing or fails, or the package is not the one expected.
  """
  kept = path()
  if not source and _is_whole(kept):
    return kept
  kept.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    found = Path(source) if source else _packed(Path(folder))
    if not found.is_file():
      raise InputError(found, "does not exist", f"npm pack {PACKAGE}@{VERSION} makes it")
    if not _is_whole(found):
      raise InputError(found, "its checksum is not the one of the viewer's package",
                       f"bring what npm pack {PACKAGE}@{VERSION} makes")
    with replacing(kept) as temporary:
      shutil.copyfile(found, temporary)
  return kept


def path() -> Path:
  """Where the package is kept."""
  return cache.folder("viewer") / f"niivue-{VERSION}.tgz"


def code() -> str | None:
  """The viewer's script, or None where its package is not at hand (or not whole)."""
  if not _is_whole(path()):
    return None
  with tarfile.open(path()) as package:
    return package.extractfile(MEMBER).read().decode("utf-8")


def _is_whole(package: Path) -> bool:
  try:
    digest = hashlib.sha512(package.read_bytes()).digest()
  except OSError:
    return False
  return digest == base64.b64decode(INTEGRITY)


def _packed(folder: Path) -> Path:
  """The package as npm fetches it into a folder."""
  npm = shutil.which("npm")
  cure = f"install npm, or bring what npm pack {PACKAGE}@{VERSION} makes as a file"
  if not npm:
    raise InputError("npm", "is not installed", cure)
  command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent",
             "--prefer-offline", "--fetch-retries=1"]
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE_S)
  except subprocess.TimeoutExpired:
    raise InputError("npm", f"gave no answer in {_PATIENCE_S} s", cure) from None
  found = sorted(folder.glob("*.tgz"))
  if done.returncode or not found:
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    raise InputError("npm", f"could not fetch {PACKAGE}@{VERSION}: {lines[-1].strip()}", cure)
  return found[0]
