"""Archives of datasets and of requests: what is unpacked, and where.

Members have checksums in zip and .tar.gz, so that only a change with a checksum made anew cannot be
known. Voxels in a plain .tar have none. `content` reads the archives strictly.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import gzip
import hashlib
import io
from pathlib import Path
import tarfile
import zipfile

from condseg_jax.datasets.download import unpack as datasets
from condseg_jax.errors import InputError
from tools.fuzz import content as standard
from tools.fuzz.members import tar_members
from tools.fuzz.members import zip_members
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target

MEMBERS = {"data/dataset.json": b'{"labels": {"0": "background", "1": "liver"}}' * 4,
           "data/imagesTr/a.nii.gz": bytes(range(256)) * 5, "data/labelsTr/a.nii.gz": b"ab" * 300}
LIMIT = 1 << 24  # bytes that an archive may unpack to


class Archive(Target):
  """Zip and tar as condseg-fetch unpacks them, and zip as the service does."""

  name = "zip"
  command_name = "fetch"
  every = 0

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the archives."""
    return {"zip": {"a.zip": _zip(zipfile.ZIP_DEFLATED)},
            "stored zip": {"a.zip": _zip(zipfile.ZIP_STORED)},
            "service": {"a.zip": _zip(zipfile.ZIP_DEFLATED)},
            "tar": {"a.tar": _tar()}, "tgz": {"a.tar.gz": gzip.compress(_tar(), mtime=0)}}

  def places(self, files: Files) -> list[Place]:
    """Returns the archive, its members, and its directory."""
    name, = files
    if name == "a.zip":
      return [Place(name, "bytes", (), 2), Place(name, "zip", (), 3),
              *(Place(name, "bytes", (f"zip/{member}",)) for member in MEMBERS)]
    return [Place(name), *([Place(name, "bytes", ("gzip",), 2)] if name.endswith(".gz") else [])]

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Unpacks, and describes the files."""
    path = next(folder.iterdir())
    if variant == "service":
      return self._door_of_the_service(path, out / "series")
    datasets.unpack(path, out / "data", limit=LIMIT)
    left = [p.name for p in out.iterdir() if p.name != "data"]
    members = [[p.relative_to(out / "data").as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()]
               for p in sorted((out / "data").rglob("*")) if p.is_file()]
    return 0, {"members": members, **({"unsound": f"left {left}"} if left else {})}

  def _door_of_the_service(self, path: Path, out: Path) -> tuple[int, dict]:
    from condseg_jax.serve import archive
    from condseg_jax.serve.request import HttpError
    from condseg_jax.serve.request import Limits
    try:
      names = archive.unpack(path, out, Limits(body=LIMIT, members=50))
    except HttpError as error:
      raise InputError(path, error.reason, error.cure) from error
    files = sorted(out.iterdir())
    return 0, {"members": [[name, hashlib.sha256(file.read_bytes()).hexdigest()]
                           for name, file in zip(names, files, strict=True)]}

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Compares with the strict reading, without the one top folder that `unpack` takes off."""
    (name, data), = files.items()
    members = (zip_members(data) if name == "a.zip"
               else tar_members(data, name.endswith(".gz")))
    if variant != "service" and len({name for name, _ in members}) < len(members):
      raise standard.Damaged("a name is given twice")
    members = _shown(members)
    tops = {name.partition("/")[0] for name, _ in members}
    if variant != "service" and len(tops) == 1 and all("/" in name for name, _ in members):
      members = [(name.partition("/")[2], digest) for name, digest in members]
    if members != _shown(content["members"]):
      raise standard.Damaged("the archive holds something else")
    return "another valid archive: its checksums are right"


def _shown(members: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
  """Sorts members, without what operating systems add, which the package leaves out, too."""
  return sorted((name, digest) for name, digest in members if not name.startswith("__MACOSX")
                and not name.rpartition("/")[2].startswith("."))


def _zip(method: int) -> bytes:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", method) as opened:
    for name, content in MEMBERS.items():
      info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
      info.compress_type = method
      opened.writestr(info, content)
  return stream.getvalue()


def _tar() -> bytes:
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as opened:
    for name, content in MEMBERS.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      opened.addfile(info, io.BytesIO(content))
  return stream.getvalue()
