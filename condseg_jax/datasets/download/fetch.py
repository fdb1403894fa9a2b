"""Downloads, checks and unpacks datasets of the catalogue."""

import datetime
import json
from pathlib import Path
import posixpath
import re
import urllib.parse

from condseg_jax.datasets.download.catalogue import Archive
from condseg_jax.datasets.download.transfer import check_digest
from condseg_jax.datasets.download.transfer import download
from condseg_jax.datasets.download.transfer import file_digest
from condseg_jax.datasets.download.unpack import unpack
from condseg_jax.errors import InputError
from condseg_jax.system.atomic import write_text


def fetch(name: str, archive: Archive, out: Path, *, sha256: str = "",
          progress: bool = True) -> Path:
  """Downloads, checks and unpacks a dataset.

  Args:
    name: name of the dataset, and of its folder in `out`.
    archive: its entry in the catalogue.
    out: folder for datasets; it also contains the partial download.
    sha256: checked in addition to the published digest, if given.
    progress: show progress bars.

  Returns:
    The dataset's folder, which contains a SOURCE.json with address, licence and digests.

  Raises:
    InputError: the transfer fails, a digest differs, the archive is unsafe, or the folder exists.
  """
  if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
    raise InputError("sha256", f"{sha256!r} is not a SHA-256", "give 64 hexadecimal digits",
                     usage=True)
  target = Path(out) / name
  if target.exists():
    raise InputError(target, "already exists", "remove it, or choose another `out`")
  Path(out).mkdir(parents=True, exist_ok=True)
  file_name = posixpath.basename(urllib.parse.urlsplit(archive.url).path)
  part = Path(out) / f"{name}.part-{file_name}"
  download(archive.url, part, progress=progress)
  check_digest(part, archive.digest)
  if sha256:
    check_digest(part, f"sha256:{sha256}")
  source = {"name": name, "url": archive.url, "licence": archive.licence,
            "published": archive.digest, "sha256": file_digest(part),
            "fetched": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
  unpack(part, target, folder=archive.folder, limit=archive.unpacked)
  write_text(target / "SOURCE.json", json.dumps(source, indent=1) + "\n")
  part.unlink()
  part.with_name(part.name + ".json").unlink(missing_ok=True)
  return target
