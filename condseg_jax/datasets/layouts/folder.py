"""Importer of the plainest layout: images and masks of the same name, side by side.

    DIR/images/ID.*                images of any format, or folders of DICOM series
    DIR/masks/ID.*                 label maps; or masks/CLASS/ID.*, one mask for each class that is
                                   annotated in ID
    DIR/classes.json               {"liver": 1, "spleen": 2}; without it the masks are 0 and 1 and
                                   the class has the name of DIR
"""

import os
from pathlib import Path

from condseg_jax.classes import Annotation
from condseg_jax.classes import normal_name
from condseg_jax.datasets.raw import no_label
from condseg_jax.datasets.raw import nowhere
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import read_json
from condseg_jax.datasets.splits import patient_of
from condseg_jax.errors import InputError
from condseg_jax.formats import files


def read_folder(root, modality: str = "") -> RawFolder:
  """The cases of a folder.

  Args:
    modality: `ct` or `mr` for volumes; pictures are `rgb` when it is empty.

  Raises:
    InputError: no images, no masks, volumes of unsaid modality.
  """
  root = Path(os.path.abspath(root))
  for part in ("images", "masks"):
    if not (root / part).is_dir():
      raise InputError(root, f"holds no folder {part}", "put images in images/, masks in masks/")
  images = _named(root / "images")
  if not images:
    raise InputError(root / "images", "holds no image", f"expected {', '.join(files.READERS)}")
  if not modality:
    first = next(iter(images.values()))
    if first.is_dir() or files.read_header(first).geometry.ndim == 3:
      raise InputError(root, "does not say whether its volumes are CT or MR",
                       "add --modality=ct or --modality=mr", usage=True)
    modality = "rgb"
  masks = _masks(root)
  cases, faults = [], []
  for case_id, image in images.items():
    labels = tuple(RawLabel(paths[case_id], said) for paths, said in masks if case_id in paths)
    if not labels:
      faults.append(no_label(image, root / "masks" / f"{case_id}.*"))
      continue
    cases.append(RawCase(case_id, image, labels, root.name, "train", patient_of(case_id)))
  for paths, said in masks:
    faults += [InputError(paths[i], "has no image", f"expected {root / 'images' / i}.*",
                          kind="no_image") for i in paths if i not in images]
    if not paths:
      faults.append(nowhere(root, ", ".join(said.classes), "put masks into its folder"))
  if not cases:
    raise InputError(root, "holds no image with a mask", "give both the same name")
  return RawFolder(root, modality, tuple(cases), faults=tuple(faults))


def _masks(root: Path) -> list[tuple[dict[str, Path], Annotation]]:
  """What the masks show: (case id → file, meaning) of each group of files."""
  folders = sorted(p for p in (root / "masks").iterdir() if p.is_dir() and p.name[0] != ".")
  if folders:
    return [(_named(p), Annotation({normal_name(p.name): (1,)}, (), (0, 1))) for p in folders]
  path = root / "classes.json"
  values = read_json(path) if path.exists() else {root.name: 1}
  try:
    labels = {int(value): name for name, value in values.items()}
  except (TypeError, ValueError) as error:
    raise InputError(path, f"is not class → value ({error})", 'write {"liver": 1}') from error
  return [(_named(root / "masks"), Annotation.create(labels))]


def _named(folder: Path) -> dict[str, Path]:
  """Case id → image, of the image files and the sub-folders of a folder."""
  found: dict[str, Path] = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith(".") or not (path.is_dir() or files.is_image(path)):
      continue
    case_id = files.stem(path)
    if case_id in found:
      raise InputError(path, f"is a second {case_id!r} beside {found[case_id].name}",
                       "rename one of them")
    found[case_id] = path
  return found
