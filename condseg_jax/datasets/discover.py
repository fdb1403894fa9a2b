"""Data as a user names it, a prepared store or raw folders, to open stores."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

from etils import epath

from condseg_jax.data import store as store_lib
from condseg_jax.datasets import prepare as prepare_lib
from condseg_jax.datasets.carve import carve_frames
from condseg_jax.datasets.case import source_of
from condseg_jax.datasets.layouts import camvid
from condseg_jax.datasets.layouts import cityscapes
from condseg_jax.datasets.layouts import description
from condseg_jax.datasets.layouts import folder as plain
from condseg_jax.datasets.layouts import msd
from condseg_jax.datasets.layouts import nnunet
from condseg_jax.datasets.layouts import totalsegmentator
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import ready
from condseg_jax.errors import InputError
from condseg_jax.plan import same_spacing
from condseg_jax.system import cache as user_cache


class Layout(NamedTuple):
  """A layout of raw datasets.

  Attributes:
    read: folder (or file of a description) → what is there.
    matches: whether a folder looks like it.
    frames: a fully labelled set of frames, which training takes as single-class datasets.
  """

  read: Callable[..., RawFolder]
  matches: Callable[[Path], bool] | None = None
  frames: bool = False


# What a folder can be. Those without `matches` are read only when they are named.
FORMATS = {
    "msd": Layout(msd.read_msd, msd.matches),
    "nnunet": Layout(nnunet.read_nnunet, nnunet.matches),
    "totalsegmentator": Layout(totalsegmentator.read_totalsegmentator, totalsegmentator.matches),
    "camvid": Layout(camvid.read_camvid, camvid.matches, frames=True),
    "cityscapes": Layout(cityscapes.read_cityscapes, cityscapes.matches, frames=True),
    "folder": Layout(plain.read_folder),
    "description": Layout(description.read_description),
    **{name: Layout(functools.partial(description.read_known, name))
       for name in description.KNOWN},
}


def reader(name: str, modality: str = "") -> Callable[[Path], RawFolder]:
  """The importer of a format; `modality` is told to those that cannot know it."""
  read = FORMATS[name].read
  return functools.partial(read, modality=modality) if name == "folder" else read


def find(root) -> list[store_lib.Store | RawFolder]:
  """The data under a path: itself if it is a store or a known layout, else its sub-folders.

  Raises:
    InputError: nothing usable there.
  """
  path = epath.Path(root)
  if not str(root) or not path.exists():
    raise InputError(root or "data.root", "does not exist" if str(root) else "is not set",
                     "name a prepared store or a raw dataset, e.g. --config.data.root=DIR",
                     usage=not str(root))
  found = at(path)
  if found is not None:
    return [found]
  inside = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
  found = [f for f in map(at, inside) if f is not None]
  if not found:
    known = [name for name, layout in FORMATS.items() if layout.matches is not None]
    raise InputError(root, "holds neither a prepared store nor a raw dataset",
                     f"expected manifest.json, or a layout of {', '.join(known)}; prepare others "
                     "with condseg-prepare")
  return found


def open_stores(root, spacing: Sequence[float] | None = None, cache=None, *,
                progress: bool = True) -> list[store_lib.Store]:
  """Opens the stores under a path; raw folders are prepared into the cache first.

  All folders get one spacing, the given one or the median over all of them, since the network
  must not know a dataset by its spacing.

  Args:
    root: a store, a raw folder, or a folder of these.
    spacing: target spacing along D, H, W in mm.
    cache: folder for what is prepared here; by default in the user's cache folder.
    progress: show progress bars.

  Raises:
    InputError: nothing usable there, a case that is not, or stores of different modality or
      spacing.
  """
  found = find(root)
  raw = [ready(f) for f in found if isinstance(f, RawFolder)]
  stores = [f for f in found if not isinstance(f, RawFolder)]
  _check_modality(found)
  if not spacing:
    spacing = stores[0].spacing if stores else prepare_lib.median_spacing(raw)
  _check_spacing(stores, spacing)
  for folder in raw:
    key = _key(folder, spacing)
    out = epath.Path(cache or user_cache.folder("prepared")) / f"{folder.root.name}-{key[:16]}"
    finished = (out / store_lib.MANIFEST).exists()
    stores.append(store_lib.Store.open(out) if finished else
                  prepare_lib.prepare(folder, out, spacing, progress=progress))
  return stores


def at(path: epath.Path) -> store_lib.Store | RawFolder | None:
  """What a path itself is; None where it is neither a store nor of a layout known by its looks.

  Raises:
    InputError: it is one, and unusable.
  """
  # One that is not finished is no reason to train without it: opening it says so.
  if (path / store_lib.MANIFEST).exists() or any((path / "cases").glob("*/image/zarr.json")):
    return store_lib.Store.open(path)
  if "://" in str(path):
    return None
  for layout in FORMATS.values():
    if layout.matches is not None and layout.matches(Path(path)):
      folder = layout.read(Path(path))
      return carve_frames(folder) if layout.frames else folder
  return None


def _key(folder: RawFolder, spacing) -> str:
  """Digest of all that the prepared store depends on."""
  parts = [source_of(case, folder, spacing) for case in folder.cases]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_modality(found) -> None:
  first = found[0]
  for other in found:
    if other.modality != first.modality:
      raise InputError(other.root, f"modality {other.modality}, but {first.root} is "
                       f"{first.modality}", "train one network per modality")


def _check_spacing(stores, wanted) -> None:
  for store in stores:
    if not same_spacing(store.spacing, wanted):
      text = ",".join(f"{s:g}" for s in wanted)
      raise InputError(store.root, f"spacing {store.spacing} where {tuple(wanted)} is wanted",
                       f"prepare all datasets with the same --spacing={text}")
