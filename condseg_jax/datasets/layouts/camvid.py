"""Importer for the CamVid layout of street scenes.

    DIR/classes.json    {"classes": [names in the order of their label values], "ignore": value}
    DIR/train/*.png     colour images; DIR/trainannot/*.png their label pictures
    DIR/val/*.png       likewise, and DIR/test
"""

import os
from pathlib import Path

from condseg_jax.annotation import Annotation
from condseg_jax.classes import checked_name
from condseg_jax.datasets.layouts.declared import label_value
from condseg_jax.datasets.raw import label_missing_error
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import read_json
from condseg_jax.errors import InputError
from condseg_jax.formats import files

NO_MIRROR = ("H",)  # street scenes are never upside down


def matches(root: Path) -> bool:
  """Returns whether a folder has this layout."""
  return (root / "classes.json").exists() and (root / "trainannot").is_dir()


def read_camvid(root: str | os.PathLike) -> RawFolder:
  """Reads the labelled frames of a folder; each annotates every class.

  Raises:
    InputError: damaged `classes.json`, or no labelled pictures.
  """
  root = Path(os.path.abspath(root))  # the path "." has no name
  tree = read_json(root / "classes.json")
  path = root / "classes.json"
  listed = tree.get("classes")
  if not isinstance(listed, list) or "ignore" not in tree:
    raise InputError(path, 'has no list "classes", or no value "ignore"',
                     'write {"classes": [NAME, …], "ignore": VALUE}')
  names = [checked_name(name, path) for name in listed]
  ignore = label_value(tree["ignore"], path, "ignore")
  # In this layout 0 is a class, not background.
  values = {name: (value,) for value, name in enumerate(names)}
  known = tuple(sorted({*range(len(names)), ignore}))
  annotation = Annotation(values, (ignore,), known)

  cases, faults = [], []
  for split in ("train", "val", "test"):
    if not (root / split).is_dir():
      continue
    for image in files.list_images(root / split):
      label = root / f"{split}annot" / image.name
      if not label.exists():
        faults.append(label_missing_error(image, label))
        continue
      cases.append(RawCase(files.stem(image), image, (RawLabel(label, annotation),), root.name,
                           split))
  if not cases:
    raise InputError(root, "contains no labelled pictures",
                     "expected train/*.png and trainannot/*.png")
  return RawFolder(root, "rgb", tuple(cases), {name: NO_MIRROR for name in names},
                   faults=tuple(faults))
