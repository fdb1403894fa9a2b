"""The code of the page's viewer, NiiVue (BSD-2-Clause), kept in the user's cache folder.

No Python package contains it as a standalone script, so it is downloaded from npm: a fixed version
with a known checksum. The npm package contains no licence text; `viewer_licenses.txt` holds the
licences of NiiVue and of the packages bundled with it, and goes into every page with the viewer.
"""

import base64
import hashlib
from importlib import resources
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
             "DIcaNlbd+MhtO/edMbXJkA==")  # SHA-512 of the package in base64, as given by npm
MEMBER = "package/dist/niivue.umd.js"  # defines the global `niivue`
HOW = "install it once with: python -m condseg_jax.report.page"
_TIMEOUT_S = 120


def fetch(source: str | os.PathLike = "") -> Path:
  """Copies the viewer's package into the user's cache folder, unless it is there.

  Args:
    source: file made by `npm pack`; downloaded by npm when empty.

  Returns:
    The package in the cache folder.

  Raises:
    InputError: npm is missing or fails, or the package has another checksum.
  """
  kept = path()
  if not source and _is_whole(kept):
    return kept
  kept.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    package = Path(source) if source else _downloaded(Path(folder))
    if not package.is_file():
      raise InputError(package, "does not exist", f"make it with npm pack {PACKAGE}@{VERSION}")
    if not _is_whole(package):
      raise InputError(package, "checksum differs from that of the viewer's package",
                       f"make it with npm pack {PACKAGE}@{VERSION}")
    with replacing(kept) as temporary:
      shutil.copyfile(package, temporary)
  return kept


def path() -> Path:
  """Returns the location of the package in the cache folder."""
  return cache.folder("viewer") / f"niivue-{VERSION}.tgz"


def code() -> str | None:
  """Returns the viewer's script; None if its package is missing or damaged."""
  if not _is_whole(path()):
    return None
  with tarfile.open(path()) as package:
    return package.extractfile(MEMBER).read().decode("utf-8")


def licenses() -> str:
  """Returns the licences of the viewer and of the packages that its script contains."""
  return resources.files(__package__).joinpath("viewer_licenses.txt").read_text(encoding="utf-8")


def _is_whole(package: Path) -> bool:
  try:
    digest = hashlib.sha512(package.read_bytes()).digest()
  except OSError:
    return False
  return digest == base64.b64decode(INTEGRITY)


def _downloaded(folder: Path) -> Path:
  """Downloads the package into a folder with npm."""
  npm = shutil.which("npm")
  cure = f"install npm, or copy the file made by npm pack {PACKAGE}@{VERSION}"
  if not npm:
    raise InputError("npm", "is not installed", cure)
  command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent",
             "--prefer-offline", "--fetch-retries=1"]
  try:
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                             timeout=_TIMEOUT_S)
  except subprocess.TimeoutExpired:
    raise InputError("npm", f"did not answer within {_TIMEOUT_S} s", cure) from None
  packages = sorted(folder.glob("*.tgz"))
  if process.returncode or not packages:
    lines = (process.stderr or process.stdout).strip().splitlines() or ["no message"]
    raise InputError("npm", f"cannot download {PACKAGE}@{VERSION}: {lines[-1].strip()}", cure)
  return packages[0]
