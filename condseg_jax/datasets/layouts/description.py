"""Importer of anything that can be described: patterns of paths, and what label values mean.

A YAML file, or a Python file whose `get_description()` returns the same as a dict:

    modality: ct                       # ct, mr or rgb
    root: /data/liver                  # optional; the folder of this file
    images: "scans/{id}.mhd"           # {id} names the case; * within a folder, **/ any folders
    labels: "masks/{id}_seg.nii.gz"    # or one mask for each class: {liver: "{id}/liver.nii.gz"}
    classes: {1: liver, 2: liver, 3: spleen}      # label value → class; not for masks
    annotated: [liver]                 # optional; all classes when absent
    void: [255]                        # optional: values that say nothing about any class
    splits: {train: ["a*"], val: [b01]}           # optional: ids or patterns; all train when absent
    patient: "^([^-]+)"                # optional: regular expression, its group names the patient
    series: {a01: 1.2.840.1}           # optional: DICOM series of a case whose folder holds several
    no_mirror: {left kidney: [W]}      # optional
    unlabelled: skip                   # optional: images without label are left out, not an error

An image may be the folder of a DICOM series. Three public datasets are described here.
"""

from collections.abc import Mapping
import fnmatch
import importlib.util
import os
from pathlib import Path
import re

import yaml

from condseg_jax.classes import Annotation
from condseg_jax.classes import normal_name
from condseg_jax.datasets.raw import no_label
from condseg_jax.datasets.raw import nowhere
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.splits import patient_of
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.plan import MODALITIES

KEYS = ("modality", "root", "images", "labels", "classes", "annotated", "void", "splits", "patient",
        "series", "no_mirror", "unlabelled")
BTCV = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
        "aorta", "inferior vena cava", "portal vein and splenic vein", "pancreas",
        "right adrenal gland", "left adrenal gland")
KNOWN = {
    # https://sliver07.grand-challenge.org: 20 CTs as MetaImage.
    "sliver07": {"modality": "ct", "images": "**/liver-orig{id}.mhd",
                 "labels": "**/liver-seg{id}.mhd", "classes": {1: "liver"}},
    # https://www.cancerimagingarchive.net/collection/pancreas-ct: DICOM images, and labels as
    # NIfTI whose y axis runs the other way.
    "nih_pancreas": {"modality": "ct", "images": "**/PANCREAS_{id}",
                     "labels": "**/label{id}.nii.gz", "classes": {1: "pancreas"},
                     "unlabelled": "skip"},
    # https://www.synapse.org/Synapse:syn3193805: the test images have no labels.
    "btcv": {"modality": "ct", "images": "**/img{id}.nii.gz", "labels": "**/label{id}.nii.gz",
             "classes": dict(enumerate(BTCV, 1)), "unlabelled": "skip"},
}


def read_description(path) -> RawFolder:
  """The cases that a YAML or Python file describes.

  Raises:
    InputError: the file is not as above, or what it describes is not there.
  """
  path = Path(os.path.abspath(path))
  if path.suffix not in (".yaml", ".yml", ".py"):
    raise InputError(path, "is no description", "name a .yaml or .py file", usage=True)
  if not path.is_file():
    raise InputError(path, "does not exist", "check the path", usage=True)
  tree = _python(path) if path.suffix == ".py" else _yaml(path)
  if not isinstance(tree, dict):
    raise InputError(path, "does not describe a dataset", "give keys and values, see the README")
  return read_described(path.parent / str(tree.get("root", "")), tree, path, path.stem)


def read_known(name: str, root) -> RawFolder:
  """The cases of one of the `KNOWN` datasets under a folder."""
  root = Path(os.path.abspath(root))
  return read_described(root, KNOWN[name], root, root.name)


def read_described(root: Path, tree: Mapping, subject, name: str) -> RawFolder:
  """The cases that a description finds under a folder.

  Args:
    root: where the patterns begin.
    tree: see the module's docstring.
    subject: named in errors.
    name: of the dataset.
  """
  _check(tree, subject)
  root = Path(os.path.abspath(root))
  if not root.is_dir():
    raise InputError(root, "is no folder", "check the path")
  known = _paths(root)
  images = _matching(root, known, tree["images"], subject)
  labels = _labels(root, known, tree, subject)
  splits = {split: list(map(str, ids)) for split, ids in (tree.get("splits") or {}).items()}
  series = {str(k): str(v) for k, v in (tree.get("series") or {}).items()}
  cases, faults = [], []
  for case_id, image in images.items():
    found = tuple(RawLabel(paths[case_id], said) for paths, said in labels if case_id in paths)
    if not found and tree.get("unlabelled") == "skip":
      continue
    split = _split(case_id, splits, subject)
    if split and not found:
      faults.append(no_label(image, f"{tree['labels']}, or say unlabelled: skip"))
    elif split:
      cases.append(RawCase(case_id, image, found, name, split,
                           patient_of(case_id, tree.get("patient") or ""), series.get(case_id, "")))
  shown = {name for case in cases for name in case.classes}
  faults += [nowhere(subject, name, "correct the pattern of its masks, or leave it out")
             for _, said in labels for name in said.classes if name not in shown]
  if not cases:
    raise InputError(root, f"holds no labelled case like {tree['images']}",
                     f"check the folder, the patterns and the splits of {subject}")
  no_mirror = {normal_name(k): tuple(v) for k, v in (tree.get("no_mirror") or {}).items()}
  return RawFolder(root, tree["modality"], tuple(cases), no_mirror, faults=tuple(faults))


def _labels(root: Path, known, tree, subject) -> list[tuple[dict[str, Path], Annotation]]:
  void = tuple(map(int, tree.get("void") or ()))
  keep = [normal_name(name) for name in tree.get("annotated") or ()]
  if isinstance(tree["labels"], dict):
    masks = {normal_name(k): v for k, v in tree["labels"].items()}
    for name in keep:
      if name not in masks:
        raise InputError(subject, f"annotated class {name!r} has no masks",
                         f"labels: {', '.join(masks)}")
    return [(_matching(root, known, pattern, subject),
             Annotation({name: (1,)}, void, tuple(sorted({0, 1, *void}))))
            for name, pattern in masks.items() if not keep or name in keep]
  values = {int(value): str(name) for value, name in tree["classes"].items()}
  annotation = Annotation.create(values, keep=keep, void=void)
  return [(_matching(root, known, tree["labels"], subject), annotation)]


def _paths(root: Path) -> list[str]:
  """The images and folders under a folder, as paths relative to it, in order."""
  found = []
  for parent, folders, names in os.walk(root):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    inside = os.path.relpath(parent, root)
    found += [name if inside == "." else f"{Path(inside).as_posix()}/{name}"
              for name in sorted([*folders, *filter(files.is_image, names)])]
  return found


def _matching(root: Path, known, pattern: str, subject) -> dict[str, Path]:
  """Case id → path of everything that a pattern names."""
  if str(pattern).count("{id}") < 1:
    raise InputError(subject, f"pattern {pattern!r} has no {{id}}",
                     'write e.g. "scans/{id}.nii.gz"')
  text = re.escape(str(pattern))
  for glob, expression in ((r"\*\*/", "(?:.*/)?"), (r"\*", "[^/]*")):
    text = text.replace(glob, expression)
  text = text.replace(r"\{id\}", "(?P<id>[^/]+?)", 1).replace(r"\{id\}", "(?P=id)")
  found: dict[str, Path] = {}
  for path in known:
    match = re.fullmatch(text, path)
    if match and match["id"] in found:
      raise InputError(root / path, f"is a second {match['id']!r} beside {found[match['id']]}",
                       "make the pattern narrower, or rename one of them")
    if match:
      found[match["id"]] = root / path
  return found


def _split(case_id: str, splits: Mapping[str, list[str]], subject) -> str:
  if not splits:
    return "train"
  named = [split for split, patterns in splits.items()
           if any(fnmatch.fnmatchcase(case_id, pattern) for pattern in patterns)]
  if len(named) > 1:
    raise InputError(subject, f"case {case_id!r} stands in the splits {', '.join(named)}",
                     "give every case one place")
  return named[0] if named else ""


def _check(tree: Mapping, subject) -> None:
  unknown = sorted(set(tree) - set(KEYS))
  if unknown:
    raise InputError(subject, f"unknown key {unknown[0]!r}", f"keys: {', '.join(KEYS)}")
  for key in ("modality", "images", "labels"):
    if not tree.get(key):
      raise InputError(subject, f"lacks {key!r}", "see the README, \"Your data\"")
  if tree["modality"] not in MODALITIES:
    raise InputError(subject, f"modality {tree['modality']!r}", f"one of {', '.join(MODALITIES)}")
  if not isinstance(tree["labels"], dict) and not isinstance(tree.get("classes"), dict):
    raise InputError(subject, "lacks 'classes'", "write e.g. classes: {1: liver}")
  kinds = {"splits": dict, "series": dict, "no_mirror": dict, "annotated": list, "void": list}
  for key, kind in kinds.items():
    if tree.get(key) is not None and not isinstance(tree[key], kind):
      raise InputError(subject, f"{key!r} is no {'list' if kind is list else 'mapping'}",
                       "see the README, \"Your data\"")
  unknown = sorted(set(tree.get("splits") or ()) - {"train", "val", "test"})
  if unknown:
    raise InputError(subject, f"unknown split {unknown[0]!r}", "train, val or test")


def _yaml(path: Path):
  try:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
  except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
    line = " ".join(str(error).split())
    raise InputError(path, f"is not valid YAML ({line})", "correct the file") from error


def _python(path: Path):
  spec = importlib.util.spec_from_file_location("condseg_description", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_description()
  except Exception as error:  # whatever a user's file raises
    raise InputError(path, f"cannot be run: {type(error).__name__}: {error}",
                     "it should define get_description()") from error
