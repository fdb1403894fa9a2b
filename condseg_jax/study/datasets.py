"""The datasets of studies, by name: read from raw folders or synthesised, prepared on first use.

    hippocampus, camvid    single-class datasets over disjoint cases
    NAME_full              the same cases, each fully annotated
    NAME_parts_25          the training masks of NAME damaged at 25 %, or NAME_false_positives_25
    phantom, phantom_full  synthetic phantoms of three organs, 32 cases each
    phantom_five, …_full   of five organs, 16 cases each
    phantom_five_pseudo    the same with pseudo-masks, see `study.pseudo_data`
    any other name         DATA/NAME/train, a folder of raw datasets, scored on DATA/NAME/test
"""

from collections.abc import Callable
import functools
from pathlib import Path
import re
from typing import NamedTuple

from condseg_jax.data import store as store_lib
from condseg_jax.datasets import discover
from condseg_jax.datasets.carve import annotate_in_full
from condseg_jax.datasets.carve import partial_labels_by_frames
from condseg_jax.datasets.corrupt import Corruption
from condseg_jax.datasets.corrupt import KINDS
from condseg_jax.datasets.layouts.camvid import read_camvid
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import median_spacing
from condseg_jax.datasets.prepare import prepare
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.synthetic.anatomy import ORGANS
from condseg_jax.datasets.synthetic.phantom import write_abdomen
from condseg_jax.errors import InputError
from condseg_jax.study.fingerprint import data_digest
from condseg_jax.study.fingerprint import scored_digest
from condseg_jax.study.pseudo_data import TEACHINGS
from condseg_jax.study.pseudo_data import write_pseudo_masks
from condseg_jax.system.lock import locked

# Organs of the phantoms, and cases of each.
PHANTOMS = {"phantom": (("liver", "spleen", "pancreas"), 32), "phantom_five": (ORGANS, 16)}
_DAMAGED = re.compile(rf"(.+)_({'|'.join(KINDS)})_(\d+)")
_PROFILE = re.compile(r"profile-(.+)_case-")


class Raw(NamedTuple):
  """How a folder of raw cases becomes a dataset.

  Attributes:
    read: folder → single-class datasets.
    spacing: common spacing of the prepared images.
  """

  read: Callable[[Path], RawFolder]
  spacing: tuple[float, ...]


RAW = {
    "hippocampus": Raw(read_msd, (1.0, 1.0, 1.0)),
    "camvid": Raw(lambda path: partial_labels_by_frames(read_camvid(path)), (1.0, 1.0)),
}


class Dataset(NamedTuple):
  """A prepared dataset.

  Attributes:
    root: prepared training data.
    scored, split: cases to score on, see `evaluate.raw_cases.labelled_cases`.
    data: digest of the training data.
    truth: digest of the cases scored on.
  """

  root: Path
  scored: Path
  split: str
  data: str
  truth: str


def begun(name: str, work: Path) -> bool:
  """Returns whether any part of a dataset was prepared before."""
  root = work / "data" / name
  return _finished(root) or any(map(_finished, root.glob("*")))


@functools.cache
def dataset(name: str, data: Path, work: Path) -> Dataset:
  """Returns a dataset, preparing it if necessary; cached per process.

  Args:
    name: see the module docstring.
    data: folder of raw datasets.
    work: folder for synthetic and prepared data.

  Raises:
    InputError: missing or unusable raw data, or an unknown name.
  """
  if name in TEACHINGS:
    return _with_pseudo_masks(name, data, work)
  damaged = _DAMAGED.fullmatch(name)
  origin = damaged[1] if damaged else name.removesuffix("_full")
  if origin in RAW:
    folder = RAW[origin].read(_folder(data, origin))
    if name.endswith("_full"):
      folder = annotate_in_full(folder)
    if damaged:
      folder = folder.altered(_damage(damaged))
    stores = [_prepared(folder, work / "data" / name, RAW[origin].spacing)]
    return Dataset(work / "data" / name, folder.root, "val", data_digest(stores),
                   scored_digest(folder.root, "val"))
  whole = damaged[1] if damaged else name
  drawn = whole.removesuffix("_full") in PHANTOMS
  raw = _phantom(whole, work) if drawn else _folder(data, whole)
  folders = discover.discover(raw / "train")
  for found in folders:
    if not isinstance(found, RawFolder):
      raise InputError(found.root, "is prepared already", "studies prepare raw datasets")
  if damaged:
    folders = [found.altered(_damage(damaged)) for found in folders]
  spacing, root = median_spacing(folders), work / "data" / name
  stores = [_prepared(found, root / found.root.name, spacing) for found in folders]
  return Dataset(root, raw / "test", "all", data_digest(stores), scored_digest(raw / "test", ""))


def profile_of(case_id: str) -> str:
  """Returns the scanner of a phantom; "" for other cases."""
  found = _PROFILE.match(case_id)
  return found[1] if found else ""


def _folder(data: Path, name: str) -> Path:
  path = data / name
  if not path.is_dir():
    raise InputError(path, "does not exist", f"put the raw dataset {name!r} under `data`",
                     usage=True)
  return path


def _with_pseudo_masks(name: str, data: Path, work: Path) -> Dataset:
  plain, out = dataset(TEACHINGS[name].dataset, data, work), work / "data" / name
  with locked(work / "locks" / name):
    stores = write_pseudo_masks(TEACHINGS[name], plain.root, work / "teachers" / name, out)
  return plain._replace(root=out, data=data_digest(stores))


def _damage(found: re.Match) -> Corruption:
  return Corruption(found[2], int(found[3]) / 100)


def _phantom(name: str, work: Path) -> Path:
  out, full = work / "raw" / name, name.endswith("_full")
  organs, cases = PHANTOMS[name.removesuffix("_full")]
  with locked(work / "locks" / name):
    if not (out / "test" / "dataset.json").exists():  # written last
      write_abdomen(out, organs=organs, size="quick", cases_per_organ=cases, every_organ=full)
  return out


def _prepared(folder: RawFolder, out: Path, spacing) -> store_lib.Store:
  """Prepares a raw folder, reusing existing output made from the same files."""
  return prepare(folder, out, spacing, progress=not _finished(out))


def _finished(root: Path) -> bool:
  return (root / store_lib.MANIFEST).exists()
