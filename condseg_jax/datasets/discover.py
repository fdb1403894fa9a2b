"""Opens prepared stores and raw datasets by path; raw datasets are prepared on the way."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import hashlib
import logging
import os
from pathlib import Path

from etils import epath
import tqdm

from condseg_jax.data import store as store_lib
from condseg_jax.datasets import prepare as prepare_lib
from condseg_jax.datasets.carve import partial_labels_by_frames
from condseg_jax.datasets.case import source_of
from condseg_jax.datasets.layouts import FORMATS
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import validated
from condseg_jax.errors import InputError
from condseg_jax.plan import same_spacing
from condseg_jax.system import buckets
from condseg_jax.system import cache as user_cache

TOGETHER_CHARACTERS = 80  # of the name of a folder of several stores

log = logging.getLogger("condseg_jax")


def reader(name: str, modality: str = "", *,
           unlabelled: bool = False) -> Callable[[Path], RawFolder]:
  """Returns the importer of a layout.

  Args:
    name: a key of `FORMATS`.
    modality: `ct`, `mr` or `rgb`, for the layout `folder`, which does not define it.
    unlabelled: read the images without a mask; of the layout `folder` alone.

  Raises:
    InputError: `unlabelled` with another layout.
  """
  read = FORMATS[name].read
  if unlabelled and name != "folder":
    raise InputError("unlabelled", f"does not know the layout {name!r}",
                     "put the images into a folder images/ and use the layout `folder`", usage=True)
  if name != "folder":
    return read
  return functools.partial(read, modality=modality, unlabelled=unlabelled)


def discover(root: str | os.PathLike) -> list[store_lib.Store | RawFolder]:
  """Opens the data at a path: a store, a raw dataset, or a folder that contains some of these.

  Raises:
    InputError: no usable data, or a damaged dataset.
  """
  buckets.connect(root)
  path = epath.Path(root)
  if not str(root) or not path.exists():
    raise InputError(root or "data.root", "does not exist" if str(root) else "is not set",
                     "give the folder of a prepared store or a raw dataset", usage=not str(root))
  dataset = open_layout(path)
  if dataset is not None:
    return [dataset]
  folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")
                   ) if path.is_dir() else []
  found = {folder: open_layout(folder) for folder in folders}
  datasets = [dataset for dataset in found.values() if dataset is not None]
  for folder, dataset in found.items():
    if datasets and dataset is None:
      log.warning("%s: left out, it is neither a prepared store nor a raw dataset of a layout that "
                  "is auto-detected", folder)
  if not datasets:
    detectable = [name for name, layout in FORMATS.items() if layout.detector]
    raise InputError(root, "contains neither a prepared store nor a raw dataset",
                     "raw data must be local: prepare it first" if buckets.is_bucket(root) else
                     f"expected manifest.json, or one of the layouts {', '.join(detectable)}; "
                     "prepare others with condseg-prepare")
  return datasets


def open_stores(root: str | os.PathLike, spacing: Sequence[float] | None = None,
                cache: str | os.PathLike | None = None, *,
                progress: bool = True) -> list[store_lib.Store]:
  """Opens the stores at a path; raw datasets are prepared into a cache first.

  All datasets get the same spacing, since the network could otherwise identify a dataset by it.

  Args:
    root: a store, a raw dataset, or a folder that contains some of these.
    spacing: target spacing along D, H, W in mm; by default that of the stores, or else the median
      over all raw datasets.
    cache: folder for stores prepared here; a folder in the user's cache by default.
    progress: show progress bars.

  Raises:
    InputError: no usable data, an unusable case, or stores of different modality or spacing.
  """
  datasets = discover(root)
  raw = [validated(d) for d in datasets if isinstance(d, RawFolder)]
  stores = [d for d in datasets if not isinstance(d, RawFolder)]
  _check_modality(datasets)
  if not spacing:
    spacing = stores[0].spacing if stores else prepare_lib.median_spacing(raw)
  _check_spacing(stores, spacing)
  for folder in raw:
    key = _key(folder, spacing)
    out = epath.Path(cache or user_cache.folder("prepared")) / f"{folder.root.name}-{key[:16]}"
    complete = (out / store_lib.MANIFEST).exists()
    stores.append(store_lib.Store.open(out) if complete else
                  prepare_lib.prepare(folder, out, spacing, progress=progress))
  return stores


def prepare_together(folders: Sequence[RawFolder], spacing: Sequence[float] | None = None,
                     cache: str | os.PathLike | None = None, *,
                     progress: bool = True) -> epath.Path:
  """Prepares raw datasets as the stores of one folder, which `open_stores` opens as they are.

  The name of the folder depends on all files and settings: what is prepared already is kept, and
  other data never replace it.

  Args:
    folders: the datasets.
    spacing: target spacing along D, H, W in mm; the median over all of them by default.
    cache: folder for stores; a folder in the user's cache by default.
    progress: show progress bars.

  Raises:
    InputError: an unusable case, or datasets of different modality.
  """
  folders = [validated(folder) for folder in folders]
  _check_modality(folders)
  spacing = spacing or prepare_lib.median_spacing(folders)
  keys = [_key(folder, spacing) for folder in
          tqdm.tqdm(folders, desc="reading files", disable=not progress)]
  names = [folder.root.name for folder in folders]
  digest = hashlib.sha256("\n".join([*names, *keys]).encode()).hexdigest()
  together = "+".join(names)[:TOGETHER_CHARACTERS]
  out = epath.Path(cache or user_cache.folder("prepared")) / f"{together}-{digest[:16]}"
  for number, (name, folder) in enumerate(zip(names, folders, strict=True), 1):
    # Two folders may have the same name.
    store = out / (name if names.count(name) == 1 else f"{name}-{number}")
    if not (store / store_lib.MANIFEST).exists():
      prepare_lib.prepare(folder, store, spacing, progress=progress)
  return out


def open_layout(path: epath.Path) -> store_lib.Store | RawFolder | None:
  """Opens a store or a raw dataset of a detectable layout; None if the path is neither.

  Raises:
    InputError: the store is incomplete, or the dataset damaged.
  """
  # An incomplete store is an error: training must not silently continue without it.
  if (path / store_lib.MANIFEST).exists() or any((path / "cases").glob("*/image/zarr.json")):
    return store_lib.Store.open(path)
  if buckets.is_bucket(path):
    return None
  for layout in FORMATS.values():
    if layout.matches(Path(path)):
      folder = layout.read(Path(path))
      return partial_labels_by_frames(folder) if layout.frames else folder
  return None


def _key(folder: RawFolder, spacing: Sequence[float]) -> str:
  """Returns the digest of everything on which the prepared store depends."""
  sources = [source_of(case, folder, spacing) for case in folder.cases]
  return hashlib.sha256("\n".join(sources).encode()).hexdigest()


def _check_modality(datasets: Sequence[store_lib.Store | RawFolder]) -> None:
  first = datasets[0]
  for other in datasets:
    if other.modality != first.modality:
      raise InputError(other.root, f"has the modality {other.modality}, but {first.root} has "
                       f"{first.modality}", "train one network per modality", usage=True)


def _check_spacing(stores: Sequence[store_lib.Store], spacing: Sequence[float]) -> None:
  for store in stores:
    if not same_spacing(store.spacing, spacing):
      wanted = ",".join(f"{s:g}" for s in spacing)
      raise InputError(store.root, f"has the spacing {','.join(f'{s:g}' for s in store.spacing)}, "
                       f"but {wanted} is required", f"prepare all datasets with spacing {wanted}")
