"""A folder of images with their labels, in the layout of MONAI Label's local datastore.

    FOLDER/ID.nii.gz               an image; .nii and .zip (a DICOM series), too
    FOLDER/labels/TAG/ID.nii.gz    its label with a tag; a checked one has the tag `final`
    FOLDER/next.json               the order of annotation that `condseg-next --json` wrote, if any

An id is looked up in the listing of the folder and never becomes part of a path unchecked.
"""

from collections.abc import Callable
from collections.abc import Mapping
import gzip
import json
import os
from pathlib import Path
import random
import re
import shutil
import threading
from typing import NamedTuple
import uuid
import zlib

from condseg_jax.errors import InputError
from condseg_jax.serve import signature
from condseg_jax.serve.request import FREE_BYTES
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import MAX_VALUE

SUFFIXES = (".nii.gz", ".nii", ".zip")
MEDIA = {".nii.gz": "application/gzip", ".nii": "application/octet-stream",
         ".zip": "application/zip"}
LABEL = ".nii.gz"  # suffix of labels
FINAL = "final"  # tag of a label that a person has checked
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,119}")
_TAG = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")

ORDER = "next.json"

# Strategy → what it says of itself, and the choice from the ids without a final label, in order,
# and the rank of those that condseg-next has ranked.
STRATEGIES: dict[str, tuple[str, Callable[[list[str], Mapping[str, int]], str]]] = {
    "first": ("the first image without a final label", lambda ids, _: ids[0]),
    "random": ("any image without a final label", lambda ids, _: random.choice(ids)),
    "next": (f"the first one in the order of condseg-next --json=DATASTORE/{ORDER}",
             lambda ids, ranks: min(ids, key=lambda one: ranks.get(one, len(ranks))))}


class Stored(NamedTuple):
  """An image or label of the datastore.

  Attributes:
    path: the file.
    suffix: one of `SUFFIXES`.
  """

  path: Path
  suffix: str

  @property
  def media(self) -> str:
    """Its media type."""
    return MEDIA[self.suffix]


class Datastore:
  """The images of a folder.

  Args:
    folder: must exist.

  Raises:
    InputError: it does not.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder, self._adding = Path(folder), threading.Lock()
    if not self._folder.is_dir():
      raise InputError(folder, "is not a folder", "name the folder of the images", usage=True)

  def images(self) -> dict[str, Stored]:
    """Returns id → image, in the order of the ids."""
    return self._files(self._folder, SUFFIXES)

  def labels(self) -> dict[str, dict[str, Stored]]:
    """Returns tag → id → label."""
    try:
      tags = sorted(entry.name for entry in os.scandir(self._folder / "labels") if entry.is_dir())
    except FileNotFoundError:
      return {}
    return {tag: self._files(self._folder / "labels" / tag, (LABEL,))
            for tag in tags if _TAG.fullmatch(tag)}

  def image(self, image_id: str) -> Stored:
    """Returns an image.

    Raises:
      HttpError: there is none with this id.
    """
    found = self.images().get(image_id)
    if found is None:
      raise HttpError(404, "image", f"{image_id[:MAX_VALUE]!r} is not in the datastore",
                      "use an id from GET /datastore/?output=all")
    return found

  def label(self, image_id: str, tag: str) -> Stored:
    """Returns the label of an image with a tag.

    Raises:
      HttpError: there is none.
    """
    found = self.labels().get(tag, {}).get(image_id)
    if found is None:
      raise HttpError(404, "label", f"{image_id[:MAX_VALUE]!r} has none with the tag "
                      f"{tag[:MAX_VALUE]!r}", "see GET /datastore/?output=all")
    return found

  def unlabelled(self) -> list[str]:
    """Returns the ids of images without a final label."""
    done = self.labels().get(FINAL, {})
    return [image_id for image_id in self.images() if image_id not in done]

  def ranks(self) -> dict[str, int]:
    """Returns id → place in the order of condseg-next; {} without one that can be read."""
    try:
      rows = json.loads((self._folder / ORDER).read_text(encoding="utf-8"))["images"]
      return {str(row["name"]): number for number, row in enumerate(rows)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
      return {}

  def status(self) -> dict:
    """Returns the numbers of images and labels, as MONAI Label names them."""
    labels, images = self.labels(), self.images()
    return {"total": len(images), "completed": len(images.keys() & labels.get(FINAL, {}).keys()),
            "label_tags": {tag: len(ids) for tag, ids in labels.items()}}

  def to_json(self) -> dict:
    """Returns all images and their labels, as MONAI Label lists them."""
    labels = self.labels()
    objects = {}
    for image_id, image in self.images().items():
      tags = {tag: {"ext": ids[image_id].suffix, "info": {}}
              for tag, ids in labels.items() if image_id in ids}
      objects[image_id] = {"image": {"ext": image.suffix, "info": {}}, "labels": tags}
    return {"name": "images", "description": "", "images_dir": "", "labels_dir": "labels",
            "objects": objects}

  def add_image(self, image_id: str, received: Path) -> None:
    """Adds an image; an existing one is never replaced.

    Args:
      image_id: its new id.
      received: a NIfTI file or a zip archive.

    Raises:
      HttpError: an invalid id, an id that exists, or another format.
    """
    if not _ID.fullmatch(image_id) or image_id.endswith(SUFFIXES):
      raise HttpError(400, "image", f"{image_id[:MAX_VALUE]!r} is not a valid id",
                      "use up to 120 letters, digits, blanks, and . _ -")
    suffix = _suffix(received)
    with self._adding:
      if image_id in self.images():
        raise HttpError(409, "image", f"{image_id[:MAX_VALUE]!r} exists", "choose another id")
      self._store(received, self._folder / f"{image_id}{suffix}")

  def save_label(self, image_id: str, tag: str, received: Path) -> None:
    """Saves a label of an image; one with the same tag is replaced.

    Args:
      image_id: of the image.
      tag: of the label.
      received: a NIfTI file.

    Raises:
      HttpError: an unknown image, an invalid tag, or another format.
    """
    self.image(image_id)
    if not _TAG.fullmatch(tag):
      raise HttpError(400, "tag", f"{tag[:MAX_VALUE]!r} is not a valid tag",
                      "use up to 32 of a-z, 0-9, _ and -")
    suffix = _suffix(received)
    if suffix == ".zip":
      raise _unsupported("label")
    if suffix == ".nii":
      packed = received.with_name(f"{received.name}.gz")
      with received.open("rb") as stream, gzip.open(packed, "wb", compresslevel=1) as file:
        shutil.copyfileobj(stream, file)
      received = packed
    folder = self._folder / "labels" / tag
    folder.mkdir(parents=True, exist_ok=True)
    self._store(received, folder / f"{image_id}{LABEL}")

  def _files(self, folder: Path, suffixes: tuple[str, ...]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    with os.scandir(folder) as entries:
      names = sorted(entry.name for entry in entries if entry.is_file())
    for name in names:
      suffix = next((s for s in suffixes if name.endswith(s)), "")
      image_id = name.removesuffix(suffix)
      if suffix and _ID.fullmatch(image_id):
        found.setdefault(image_id, Stored(folder / name, suffix))
    return dict(sorted(found.items()))

  def _store(self, received: Path, path: Path) -> None:
    """Copies a file; it appears whole or not at all."""
    if shutil.disk_usage(path.parent).free < FREE_BYTES + received.stat().st_size:
      raise HttpError(507, "datastore", "its disk is full", "free some space")
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
      shutil.copyfile(received, temporary)
      temporary.replace(path)
    finally:
      temporary.unlink(missing_ok=True)


def _suffix(path: Path) -> str:
  """Returns the suffix for the format of a received file; raises HttpError for any other format."""
  with path.open("rb") as stream:
    suffix = inner = signature.suffix(stream.read(signature.HEAD_BYTES))
  if suffix == ".nii.gz":
    try:
      with gzip.open(path) as stream:
        inner = signature.suffix(stream.read(signature.HEAD_BYTES))
    except (OSError, EOFError, zlib.error) as error:
      raise HttpError(422, "body", "is a damaged gzip file", "send it again") from error
  if suffix not in SUFFIXES or suffix == ".nii.gz" and inner != ".nii":
    raise _unsupported("image")
  return suffix


def _unsupported(kind: str) -> HttpError:
  return HttpError(415, kind, "is not a NIfTI file", "send .nii or .nii.gz")
