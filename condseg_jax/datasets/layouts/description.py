"""Importer for any other layout, from a description: path patterns and the meaning of label values.

A YAML file, or a Python file whose `get_description()` returns the same as a dict:

    modality: ct                       # ct, mr or rgb
    root: /data/liver                  # optional: by default the folder of this file
    images: "scans/{id}.mhd"           # {id} is the case id; * within a folder, **/ any folders
    labels: "masks/{id}_seg.nii.gz"    # or one mask per class: {liver: "{id}/liver.nii.gz"}
    classes: {1: liver, 2: liver, 3: spleen}      # label value → class; not with masks per class
    annotated: [liver]                 # optional: all classes by default
    void: [255]                        # optional: values that are unlabelled for every class
    void_for: {spleen: [4]}            # optional: values that are unlabelled for one class alone
    splits: {train: ["a*"], val: [b01]}           # optional: ids or patterns; all train by default
    patient: "^([^-]+)"                # optional: regular expression, its group is the patient
    series: {a01: 1.2.840.1}           # optional: DICOM series, if the folder of a case has several
    no_mirror: {left kidney: [W]}      # optional: axes along which a class must not be mirrored
    unlabelled: skip                   # optional: omit images without a label; an error by default

An image may be the folder of a DICOM series. `known` contains descriptions of public datasets.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fnmatch
import importlib.util
import os
from pathlib import Path
import re

import yaml

from condseg_jax.annotation import Annotation
from condseg_jax.classes import checked_name
from condseg_jax.classes import normal_name
from condseg_jax.data.patients import check_pattern
from condseg_jax.data.patients import patient_of
from condseg_jax.datasets.layouts.declared import label_value
from condseg_jax.datasets.layouts.known import KNOWN
from condseg_jax.datasets.raw import class_missing_error
from condseg_jax.datasets.raw import label_missing_error
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.plan import MODALITIES

KEYS = ("modality", "root", "images", "labels", "classes", "annotated", "void", "void_for",
        "splits", "patient", "series", "no_mirror", "unlabelled")


def read_description(path: str | os.PathLike) -> RawFolder:
  """Reads the cases that a YAML or Python file describes.

  Raises:
    InputError: an invalid file, or missing or unusable files that it describes.
  """
  path = Path(os.path.abspath(path))
  if path.suffix not in (".yaml", ".yml", ".py"):
    raise InputError(path, "is not a description", "give a .yaml or .py file", usage=True)
  if not path.is_file():
    raise InputError(path, "does not exist", "check the path", usage=True)
  tree = _python(path) if path.suffix == ".py" else _yaml(path)
  if not isinstance(tree, dict):
    raise InputError(path, "does not describe a dataset", "write keys and values, see docs/data.md")
  return read_described(path.parent / str(tree.get("root") or ""), tree, path, path.stem)


def read_known(name: str, root: str | os.PathLike) -> RawFolder:
  """Reads the cases of one of the `KNOWN` datasets."""
  root = Path(os.path.abspath(root))
  return read_described(root, KNOWN[name], root, root.name)


def read_described(root: Path, tree: Mapping, subject: str | os.PathLike, name: str) -> RawFolder:
  """Reads the cases that a description matches under a folder.

  Args:
    root: folder to which the patterns are relative.
    tree: see the module's docstring.
    subject: subject of error messages.
    name: name of the dataset.

  Raises:
    InputError: an invalid description, or no labelled case.
  """
  _check(tree, subject)
  root = Path(os.path.abspath(root))
  if not root.is_dir():
    raise InputError(root, "is not a folder", "check the path")
  entries = _entries(root)
  images = _matching(root, entries, tree["images"], subject)
  labels = _labels(root, entries, tree, subject)
  splits = {split: list(map(str, ids)) for split, ids in (tree.get("splits") or {}).items()}
  series = {str(k): str(v) for k, v in (tree.get("series") or {}).items()}
  cases, faults = [], []
  for case_id, image in images.items():
    case_labels = tuple(RawLabel(paths[case_id], annotation)
                        for paths, annotation in labels if case_id in paths)
    if not case_labels and tree.get("unlabelled") == "skip":
      continue
    split = _split(case_id, splits, subject)
    if split and not case_labels:
      faults.append(label_missing_error(image, f"{tree['labels']}, or set unlabelled: skip"))
    elif split:
      cases.append(RawCase(case_id, image, case_labels, name, split,
                           patient_of(case_id, tree.get("patient") or ""), series.get(case_id, "")))
  annotated = {name for case in cases for name in case.classes}
  faults += [class_missing_error(subject, name, "correct the pattern of its masks, or remove it")
             for _, annotation in labels for name in annotation.classes if name not in annotated]
  if not cases:
    raise InputError(root, f"contains no labelled case that matches {tree['images']}",
                     f"check the folder, and the patterns and splits in {subject}")
  no_mirror = {normal_name(k): tuple(v) for k, v in (tree.get("no_mirror") or {}).items()}
  return RawFolder(root, tree["modality"], tuple(cases), no_mirror, faults=tuple(faults))


def _labels(root: Path, entries: Sequence[str], tree: Mapping,
            subject: str | os.PathLike) -> list[tuple[dict[str, Path], Annotation]]:
  """Returns (case id → file, annotation) for each pattern of labels."""
  void = tuple(label_value(value, subject, "void") for value in tree.get("void") or ())
  keep = [normal_name(name) for name in tree.get("annotated") or ()]
  if isinstance(tree["labels"], dict):
    masks = {checked_name(name, subject): pattern for name, pattern in tree["labels"].items()}
    _check_classes(keep, masks, "annotated", "has no masks", subject)
    _check_classes(tree.get("no_mirror") or (), masks, "no_mirror", "has no masks", subject)
    return [(_matching(root, entries, pattern, subject),
             Annotation({name: (1,)}, void, tuple(sorted({0, 1, *void}))))
            for name, pattern in masks.items() if not keep or name in keep]
  values = {label_value(value, subject, "classes"): name
            for value, name in tree["classes"].items()}
  known = Annotation.create(values, void=void, subject=subject).classes
  _check_classes(keep, known, "annotated", "is not in classes", subject)
  _check_classes(tree.get("no_mirror") or (), known, "no_mirror", "is not in classes", subject)
  annotation = Annotation.create(values, keep=keep, void=void, subject=subject)
  void_for = tree.get("void_for") or {}
  _check_classes(void_for, known, "void_for", "is not in classes", subject)
  void_for = {normal_name(name): tuple(label_value(value, subject, "void_for") for value in found)
              for name, found in void_for.items()}
  declared = sorted({*annotation.known, *(v for found in void_for.values() for v in found)})
  annotation = dataclasses.replace(annotation, known=tuple(declared), void_for=void_for)
  return [(_matching(root, entries, tree["labels"], subject), annotation)]


def _check_classes(names: Iterable[str], known: Collection[str], key: str, reason: str,
                   subject: str | os.PathLike) -> None:
  for name in names:
    if normal_name(name) not in known:
      raise InputError(subject, f"{key}: class {name!r} {reason}", f"classes: {', '.join(known)}")


def _entries(root: Path) -> list[str]:
  """Returns the paths of all images and folders under a folder, relative to it and sorted."""
  entries = []
  for parent, folders, names in os.walk(root):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    inside = os.path.relpath(parent, root)
    entries += [name if inside == "." else f"{Path(inside).as_posix()}/{name}"
                for name in sorted([*folders, *filter(files.is_image, names)])]
  return entries


def _matching(root: Path, entries: Sequence[str], pattern: str,
              subject: str | os.PathLike) -> dict[str, Path]:
  """Returns case id → path of all entries that match a pattern."""
  if str(pattern).count("{id}") < 1:
    raise InputError(subject, f"pattern {pattern!r} has no {{id}}",
                     'write e.g. "scans/{id}.nii.gz"')
  text = re.escape(str(pattern))
  for glob, expression in ((r"\*\*/", "(?:.*/)?"), (r"\*", "[^/]*")):
    text = text.replace(glob, expression)
  text = text.replace(r"\{id\}", "(?P<id>[^/]+?)", 1).replace(r"\{id\}", "(?P=id)")
  paths: dict[str, Path] = {}
  for entry in entries:
    match = re.fullmatch(text, entry)
    if match and match["id"] in paths:
      raise InputError(root / entry, f"has the same id {match['id']!r} as {paths[match['id']]}",
                       "make the pattern more specific, or rename one of them")
    if match:
      paths[match["id"]] = root / entry
  return paths


def _split(case_id: str, splits: Mapping[str, list[str]], subject: str | os.PathLike) -> str:
  """Returns the split of a case, "" if it is in none."""
  if not splits:
    return "train"
  matching = [split for split, patterns in splits.items()
              if any(fnmatch.fnmatchcase(case_id, pattern) for pattern in patterns)]
  if len(matching) > 1:
    raise InputError(subject, f"case {case_id!r} is in several splits: {', '.join(matching)}",
                     "assign every case to one split")
  return matching[0] if matching else ""


def _check(tree: Mapping, subject: str | os.PathLike) -> None:
  unknown = sorted(str(key) for key in set(tree) - set(KEYS))
  if unknown:
    raise InputError(subject, f"unknown key {unknown[0]!r}", f"keys: {', '.join(KEYS)}")
  for key in ("modality", "images", "labels"):
    if not tree.get(key):
      raise InputError(subject, f"{key!r} is missing", "see docs/data.md")
  for key in ("modality", "root", "images"):
    if not isinstance(tree.get(key) or "", str):
      raise InputError(subject, f"{key!r} must be a text", "see docs/data.md")
  if tree["modality"] not in MODALITIES:
    raise InputError(subject, f"unknown modality {tree['modality']!r}",
                     f"choose from: {', '.join(MODALITIES)}")
  if not isinstance(tree["labels"], dict) and not isinstance(tree.get("classes"), dict):
    raise InputError(subject, "'classes' is missing", "write e.g. classes: {1: liver}")
  kinds = {"splits": dict, "series": dict, "no_mirror": dict, "annotated": list, "void": list,
           "void_for": dict}
  for key, kind in kinds.items():
    if tree.get(key) is not None and not isinstance(tree[key], kind):
      raise InputError(subject, f"{key!r} must be a {'list' if kind is list else 'mapping'}",
                       "see docs/data.md")
  for split, ids in (tree.get("splits") or {}).items():
    if not isinstance(ids, list | tuple) or not all(isinstance(x, str | int) for x in ids):
      raise InputError(subject, f"splits: {split}: {ids!r:.60} is not a list of ids",
                       'write e.g. splits: {train: ["a*"], val: [b01]}')
  for name, axes in (tree.get("no_mirror") or {}).items():
    if not isinstance(axes, list | tuple) or not set(map(str, axes)) <= set("DHW"):
      raise InputError(subject, f"no_mirror: {name}: {axes!r:.60} is not a list of axes",
                       "axes: D, H, W")
  for name, values in (tree.get("void_for") or {}).items():
    if not isinstance(values, list | tuple):
      raise InputError(subject, f"void_for: {name}: {values!r:.60} is not a list of label values",
                       "write e.g. void_for: {liver: [3]}")
  if tree.get("void_for") and isinstance(tree["labels"], dict):
    raise InputError(subject, "void_for: needs a label map, not one mask per class",
                     "declare the values as `void`, or leave it out")
  if tree.get("unlabelled") not in (None, "skip"):
    raise InputError(subject, f"unlabelled: {tree['unlabelled']!r:.60} is not known",
                     "write unlabelled: skip, or leave it out")
  check_pattern(tree.get("patient") or "", subject)
  unknown = sorted(str(key) for key in set(tree.get("splits") or ()) - {"train", "val", "test"})
  if unknown:
    raise InputError(subject, f"unknown split {unknown[0]!r}", "choose from: train, val, test")


def _yaml(path: Path) -> object:
  try:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
  except (yaml.YAMLError, ValueError, OSError) as error:
    line = " ".join(str(error).split())
    raise InputError(path, f"is not valid YAML ({line})", "correct the file") from error
  except RecursionError as error:
    raise InputError(path, "is not valid YAML (nested too deeply)", "correct the file") from error


def _python(path: Path) -> object:
  spec = importlib.util.spec_from_file_location("condseg_description", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_description()
  except Exception as error:  # the user's code may raise anything
    raise InputError(path, f"cannot be run: {type(error).__name__}: {error}",
                     "it must define get_description()") from error
