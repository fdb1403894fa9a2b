"""The prepared store: cases as chunked arrays, and one manifest that describes them.

    ROOT/manifest.json          modality, spacing, class table, every case's record
    ROOT/cases/ID/image/        zarr v3, [*shape, C], at the store's spacing, canonical axes
    ROOT/cases/ID/masks/        zarr v3, [K, *shape], three-valued, one mask per annotated class
    ROOT/cases/ID/case.json     the case's record, written last: without it the case does not exist

A subvolume reads only the chunks it touches, from a disk or a bucket (`gs://`, `s3://`).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os

from etils import epath
import numpy as np
import tensorstore as ts

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.plan import same_spacing

MANIFEST = "manifest.json"
VERSION = 3  # raise it when what is written here changes
CHUNK_3D = (32, 64, 64)
CHUNK_2D = (256, 256)


@dataclasses.dataclass(frozen=True)
class Case:
  """The record of a prepared case.

  Attributes:
    id: unique in its store.
    dataset: the group that it is sampled with; the cases of a dataset annotate the same classes.
    split: `train`, `val` or `test`.
    annotated: the classes that its masks show, in the order of the masks.
    shape: spatial shape of the prepared image.
    affine: of the prepared image, index → RAS+ world.
    native_shape, native_spacing: of the file, along the same axes.
    mean, sd: of the whole prepared image.
    positives: annotated class → number of positive voxels.
    foreground: annotated class → a random sample of the indices of its positive voxels.
    intensities: a random sample of the intensities of positive voxels.
    image_sha256, sha256: of the prepared image, and of image and masks.
    source: digest of the source files and of the way they were prepared.
  """

  id: str
  dataset: str
  split: str
  annotated: tuple[str, ...]
  shape: tuple[int, ...]
  affine: tuple[tuple[float, ...], ...]
  native_shape: tuple[int, ...]
  native_spacing: tuple[float, ...]
  mean: float
  sd: float
  positives: Mapping[str, int]
  foreground: Mapping[str, tuple[tuple[int, ...], ...]]
  intensities: tuple[float, ...]
  image_sha256: str
  sha256: str
  source: str

  @classmethod
  def from_json(cls, tree: Mapping) -> "Case":
    tree = dict(tree)
    for key in ("annotated", "shape", "native_shape", "native_spacing", "intensities"):
      tree[key] = tuple(tree[key])
    tree["affine"] = tuple(map(tuple, tree["affine"]))
    tree["foreground"] = {k: tuple(map(tuple, v)) for k, v in tree["foreground"].items()}
    return cls(**tree)


@dataclasses.dataclass(frozen=True)
class Store:
  """An open store; see the module's docstring for its layout.

  Attributes:
    root: its folder.
    modality: `ct`, `mr` or `rgb`.
    spacing: of every image in it.
    table: the classes its cases annotate.
    cases: all its cases, ordered by id.
    recipe: what was done to the raw cases on the way: classes kept, carving, damage, scribbles.
  """

  root: epath.Path
  modality: str
  spacing: tuple[float, ...]
  table: ClassTable
  cases: tuple[Case, ...]
  recipe: Mapping[str, object] = dataclasses.field(default_factory=dict)

  @classmethod
  def open(cls, root) -> "Store":
    """Opens a finished store.

    Raises:
      InputError: no manifest, or one of another version.
    """
    root = epath.Path(root)
    if not (root / MANIFEST).exists():
      raise InputError(root, "is not a prepared dataset: it holds no manifest.json",
                       "make one with condseg-prepare; it resumes where it stopped")
    try:
      tree = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
      version = tree["version"]
      if version != VERSION:
        raise InputError(root, f"prepared in format {version}, this program reads {VERSION}",
                         "prepare it again")
      cases = tuple(Case.from_json(c) for c in tree["cases"])
      table = ClassTable.from_json(tree["table"])
      return cls(root, tree["modality"], tuple(tree["spacing"]), table, cases,
                 tree["recipe"])
    except InputError:
      raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(root / MANIFEST, f"is damaged ({error!r})", "prepare it again") from error

  def read_image(self, case: Case, box: Sequence[slice] | None = None) -> np.ndarray:
    """The image of a case, or the part of it in a box of one slice per axis: [*shape, C]."""
    return self._read(case, "image", () if box is None else tuple(box))

  def read_masks(self, case: Case, names: Sequence[str],
                 box: Sequence[slice] | None = None) -> np.ndarray:
    """Three-valued masks of some annotated classes, or their part in a box: [N, *shape]."""
    rows = np.array([case.annotated.index(name) for name in names], np.int64)
    return self._read(case, "masks", (rows, *(() if box is None else box)))

  def read_volume(self, case: Case) -> Volume:
    """The prepared image with its place in the world; single-channel ones without that axis."""
    image = self.read_image(case)
    return Volume(image[..., 0] if image.shape[-1] == 1 else image, np.asarray(case.affine))

  def digest(self, case: Case) -> tuple[str, str]:
    """`image_sha256` and `sha256` of a case as its arrays now are.

    Raises:
      InputError: a chunk is missing or damaged.
    """
    digests = []
    for rows in slabs(case.shape):
      digests.append(hashlib.sha256(self.read_image(case, (rows,))).hexdigest())
    images = len(digests)
    nothing = self._read(case, "image", (slice(0, 0),))
    dtype, shape = nothing.dtype, nothing.shape
    for name in case.annotated:
      for rows in slabs(case.shape):
        digests.append(hashlib.sha256(self.read_masks(case, [name], (rows,))).hexdigest())
    shape = (*case.shape, shape[-1])
    return tuple(combined_digest(dtype, shape, part) for part in (digests[:images], digests))

  def _read(self, case: Case, name: str, index: tuple) -> np.ndarray:
    folder = self.root / "cases" / case.id
    try:
      return _open_array(folder / name)[(*index, ...)].read().result()
    except (ValueError, OSError) as error:
      reason = str(error).splitlines()[0].split(" [")[0]
      raise InputError(folder, f"cannot be read ({reason})",
                       "remove the folder and prepare again") from error


def open_prepared(root, spacing: Sequence[float] = ()) -> list[Store]:
  """The stores under a path where it holds nothing else: itself, or all of its sub-folders.

  Args:
    root: the path.
    spacing: wanted, in mm per axis; any when empty.

  Returns:
    Stores of one modality and spacing; none where there is anything that `datasets.discover` has to
    look at: raw data, or stores that do not fit each other.
  """
  path = epath.Path(root)
  folders = [path]
  if not (path / MANIFEST).exists():
    folders = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
  if not str(root) or not folders or not all((p / MANIFEST).exists() for p in folders):
    return []
  stores = [Store.open(folder) for folder in folders]
  alike = all(s.modality == stores[0].modality and
              same_spacing(s.spacing, spacing or stores[0].spacing) for s in stores)
  return stores if alike else []


def chunk_shape(ndim: int) -> tuple[int, ...]:
  """Of the spatial axes of an array."""
  return CHUNK_3D if ndim == 3 else CHUNK_2D


def slabs(shape: Sequence[int]) -> list[slice]:
  """The rows of chunks along the first spatial axis."""
  step = chunk_shape(len(shape))[0]
  return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def combined_digest(dtype: np.dtype, shape: Sequence[int], digests: Sequence[str]) -> str:
  """SHA-256 of a case from those of its slabs: of the image, then of each mask."""
  return hashlib.sha256("\n".join([dtype.name, str(tuple(shape)), *digests]).encode()).hexdigest()


def clear_array_cache() -> None:
  """For a writer: arrays read before may be others now."""
  _open_array.cache_clear()


def kvstore(path: epath.Path) -> str | dict:
  """TensorStore's name for a folder; a URL of a local one would trip over `#`, `?` and `%`."""
  text = str(path)
  if "://" in text:
    return f"{text}/"
  return {"driver": "file", "path": f"{os.path.abspath(text)}/"}


def create_array(path: epath.Path, shape, dtype, chunk: Sequence[int],
                 attributes: Mapping | None = None) -> ts.TensorStore:
  """A new array of zeros in zarr v3, for writing."""
  dtype = np.dtype(dtype)
  codecs = [{"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5,
                                                "shuffle": "shuffle"}},
            {"name": "crc32c"}]
  if dtype.itemsize == 1:
    codecs[0] = {"name": "bytes"}
    codecs[1]["configuration"]["shuffle"] = "noshuffle"
  metadata = {"shape": shape, "data_type": dtype.name, "fill_value": 0,
              "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
              "codecs": codecs, "attributes": dict(attributes or {})}
  spec = {"driver": "zarr3", "kvstore": kvstore(path), "metadata": metadata,
          "store_data_equal_to_fill_value": True}
  # Without a cache: what is written is not read again soon, and memory is short.
  return ts.open(spec, create=True, context=ts.Context({})).result()


@functools.cache
def _context() -> ts.Context:
  return ts.Context({"cache_pool": {"total_bytes_limit": 512 << 20}})


@functools.lru_cache(maxsize=4096)
def _open_array(path: epath.Path) -> ts.TensorStore:
  # A chunk that has gone missing must not pass for one of zeros, which in a mask are negatives.
  spec = {"driver": "zarr3", "kvstore": kvstore(path), "fill_missing_data_reads": False}
  # Files are written once, so metadata and chunks need no further look at the disk.
  return ts.open(spec, context=_context(), read=True, recheck_cached_metadata="open",
                 recheck_cached_data="open").result()
