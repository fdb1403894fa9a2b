"""Importer for the simplest layout: images and masks of the same name in two folders.

    DIR/images/ID.*                images of any format, or folders of DICOM series
    DIR/masks/ID.*                 label maps; or masks/CLASS/ID.*, one mask for each class that is
                                   annotated in ID
    DIR/classes.json               {"liver": 1, "spleen": 2}; without it masks contain 0 and 1, and
                                   the class is named after DIR
"""

from collections.abc import Mapping
import os
from pathlib import Path

from condseg_jax.annotation import Annotation
from condseg_jax.classes import checked_name
from condseg_jax.classes import normal_name
from condseg_jax.data.patients import patient_of
from condseg_jax.datasets.layouts.declared import label_value
from condseg_jax.datasets.raw import class_missing_error
from condseg_jax.datasets.raw import label_missing_error
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import read_json
from condseg_jax.errors import InputError
from condseg_jax.formats import files


def read_folder(root: str | os.PathLike, modality: str = "", *,
                unlabelled: bool = False) -> RawFolder:
  """Reads the cases of a folder.

  Args:
    root: the folder.
    modality: `ct` or `mr` for volumes; empty for pictures, which are `rgb`.
    unlabelled: read the images that have no mask, as a dataset without classes; the folder `masks`
      may then be missing.

  Raises:
    InputError: no images, no masks, or volumes without a modality; with `unlabelled`, a mask for
      every image.
  """
  root = Path(os.path.abspath(root))
  for name in ("images",) if unlabelled else ("images", "masks"):
    if not (root / name).is_dir():
      raise InputError(root, f"contains no folder {name}",
                       "put images into images/ and masks into masks/")
  images = _images(root / "images")
  if not images:
    raise InputError(root / "images", "contains no image", f"expected {', '.join(files.READERS)}")
  if not modality:
    first = next(iter(images.values()))
    if first.is_dir() or files.read_header(first).geometry.ndim == 3:
      raise InputError(root, "contains volumes of unknown modality",
                       "set `modality` to ct or mr", usage=True)
    modality = "rgb"
  if unlabelled:
    return _without_masks(root, modality, images)
  masks = _masks(root)
  cases, faults = [], []
  for case_id, image in images.items():
    labels = tuple(RawLabel(paths[case_id], annotation)
                   for paths, annotation in masks if case_id in paths)
    if not labels:
      faults.append(label_missing_error(image, root / "masks" / f"{case_id}.*"))
      continue
    cases.append(RawCase(case_id, image, labels, root.name, "train", patient_of(case_id)))
  for paths, annotation in masks:
    faults += [InputError(paths[i], "has no image", f"expected {root / 'images' / i}.*",
                          kind="no_image") for i in paths if i not in images]
    if not paths:
      faults.append(class_missing_error(root, ", ".join(annotation.classes),
                                        "put masks into its folder"))
  if not cases:
    raise InputError(root, "contains no image with a mask", "give both files the same name")
  return RawFolder(root, modality, tuple(cases), faults=tuple(faults))


def _without_masks(root: Path, modality: str, images: Mapping[str, Path]) -> RawFolder:
  masks = _masks(root) if (root / "masks").is_dir() else []
  labelled = {case_id for paths, _ in masks for case_id in paths}
  cases = tuple(RawCase(case_id, image, (), root.name, "train", patient_of(case_id))
                for case_id, image in images.items() if case_id not in labelled)
  if not cases:
    raise InputError(root, "contains no image without a mask", "omit `unlabelled`", usage=True)
  return RawFolder(root, modality, cases, provenance={"unlabelled": True})


def _masks(root: Path) -> list[tuple[dict[str, Path], Annotation]]:
  """Returns (case id → file, annotation) for each folder of masks."""
  folders = sorted(p for p in (root / "masks").iterdir() if p.is_dir() and p.name[0] != ".")
  if folders:
    return [(_images(p), Annotation({checked_name(p.name, p): (1,)}, (), (0, 1))) for p in folders]
  path = root / "classes.json"
  values = read_json(path) if path.exists() else {root.name: 1}
  labels = {label_value(value, path, name): name for name, value in values.items()}
  if len(labels) < len(values) or len(set(map(normal_name, values))) < len(values):
    raise InputError(path, "has one value for two classes, or two values for one class",
                     "give every class a name and a value of its own")
  subject = path if path.exists() else root
  return [(_images(root / "masks"), Annotation.create(labels, subject=subject))]


def _images(folder: Path) -> dict[str, Path]:
  """Returns case id → path of the image files and subfolders of a folder."""
  paths: dict[str, Path] = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith(".") or not (path.is_dir() or files.is_image(path)):
      continue
    case_id = files.stem(path)
    if case_id in paths:
      raise InputError(path, f"has the same id {case_id!r} as {paths[case_id].name}",
                       "rename one of them")
    paths[case_id] = path
  return paths
