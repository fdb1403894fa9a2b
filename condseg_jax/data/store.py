"""The prepared store: cases as chunked arrays, and a manifest that describes them.

    ROOT/manifest.json          modality, spacing, class table, the record of every case
    ROOT/cases/ID/image/        zarr v3, [*shape, C], at the store's spacing, canonical axes
    ROOT/cases/ID/masks/        zarr v3, [K, *shape], three-valued, one mask per annotated class,
                                then one per class with a pseudo-mask (`condseg_jax.pseudo`)
    ROOT/cases/ID/case.json     the record of the case, written last: without it the case is
                                incomplete

Reading a subvolume reads only the chunks that overlap it, from a disk or a bucket (`gs://`,
`s3://`).
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
import numpy.typing as npt
import tensorstore as ts

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.plan import same_spacing
from condseg_jax.system import buckets

MANIFEST = "manifest.json"
VERSION = 3  # increase it when the format changes
CHUNK_3D = (32, 64, 64)
CHUNK_2D = (256, 256)


@dataclasses.dataclass(frozen=True)
class Case:
  """The record of a prepared case.

  Attributes:
    id: unique in its store.
    dataset: the group from which it is sampled; all cases of a dataset annotate the same classes.
    split: `train`, `val` or `test`.
    annotated: the annotated classes, in the order of the masks.
    shape: spatial shape of the prepared image.
    affine: affine of the prepared image, index → RAS+ world.
    native_shape, native_spacing: shape and spacing of the source file, along the same axes.
    mean, sd: mean and standard deviation of the whole prepared image.
    positives: annotated class → number of positive voxels.
    foreground: annotated class → a random sample of the indices of its positive voxels.
    intensities: a random sample of the intensities of positive voxels.
    image_sha256, sha256: digests of the prepared image, and of image and masks.
    source: digest of the source files, and the settings with which they were prepared.
    overlapping: pairs of annotated classes whose masks overlap, see `writer.OVERLAP`; None in
      stores of version 0.1, which did not record them.
    patient: cases of one patient are kept together when the store is split; "" for a patient of its
      own, None in a store that was prepared before it was recorded.
    pseudo: class without annotation, but with a pseudo-mask → a random sample of the indices of its
      positive voxels. Nothing else here describes these classes.
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
  overlapping: tuple[tuple[str, str], ...] | None = None
  patient: str | None = None
  pseudo: Mapping[str, tuple[tuple[int, ...], ...]] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> str:
    """Its name among the cases of all datasets."""
    return f"{self.dataset}/{self.id}"

  @property
  def masked(self) -> tuple[str, ...]:
    """The classes in the order of the stored masks: the annotated ones, then those of `pseudo`."""
    return (*self.annotated, *self.pseudo)

  @classmethod
  def from_json(cls, tree: Mapping) -> "Case":
    """Creates a record from parsed JSON."""
    tree = dict(tree)
    if tree.get("overlapping") is not None:
      tree["overlapping"] = tuple(map(tuple, tree["overlapping"]))
    for key in ("annotated", "shape", "native_shape", "native_spacing", "intensities"):
      tree[key] = tuple(tree[key])
    tree["affine"] = tuple(map(tuple, tree["affine"]))
    tree.setdefault("pseudo", {})  # stores of former versions have none
    for key in ("foreground", "pseudo"):
      tree[key] = {k: tuple(map(tuple, v)) for k, v in tree[key].items()}
    return cls(**tree)


@dataclasses.dataclass(frozen=True)
class Store:
  """An open store; the module's docstring describes its layout.

  Attributes:
    root: its folder.
    modality: `ct`, `mr` or `rgb`.
    spacing: spacing of all its images, in mm along D, H, W (in pixels along H, W in 2-D).
    table: the annotated classes; none if the images have no masks.
    cases: all cases, ordered by id.
    provenance: how the raw dataset was modified before it was prepared: classes kept, split into
      folds, partial labels, corruption, scribbles. Its key in the manifest is "recipe".
  """

  root: epath.Path
  modality: str
  spacing: tuple[float, ...]
  table: ClassTable
  cases: tuple[Case, ...] = dataclasses.field(repr=False)  # grain shows what it runs as text
  provenance: Mapping[str, object] = dataclasses.field(default_factory=dict)

  @classmethod
  def open(cls, root: str | os.PathLike) -> "Store":
    """Opens a complete store.

    Raises:
      InputError: no manifest, a damaged one, or one of another version.
    """
    buckets.connect(root)
    root = epath.Path(root)
    if not (root / MANIFEST).exists():
      raise InputError(root, "is not a prepared dataset: manifest.json is missing",
                       "create it with condseg-prepare, which resumes an interrupted run")
    try:
      tree = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
      version = tree["version"]
      if version != VERSION:
        raise InputError(root, f"has the format version {version}, but {VERSION} is required",
                         "prepare it again")
      raw, cases = tree["cases"][::-1], []
      del tree["cases"]
      while raw:  # one at a time: of thousands of cases there must not be two copies
        cases.append(Case.from_json(raw.pop()))
      table = ClassTable.from_json(tree["table"], empty=True)
      return cls(root, tree["modality"], tuple(tree["spacing"]), table, tuple(cases),
                 tree["recipe"])
    except InputError:
      raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(root / MANIFEST, f"is damaged ({error!r})", "prepare it again") from error

  @property
  def overlapping(self) -> set[tuple[str, str]]:
    """The pairs of classes that overlap in a case; see `check_overlaps`."""
    return {pair for case in self.cases for pair in case.overlapping or ()}

  def check_overlaps(self) -> None:
    """Raises InputError if a case annotates several classes without a record of their overlaps."""
    if any(case.overlapping is None and len(case.annotated) > 1 for case in self.cases):
      raise InputError(self.root, "was prepared before overlapping classes were recorded",
                       "remove the folder and prepare again")

  def read_image(self, case: Case, box: Sequence[slice] | None = None) -> np.ndarray:
    """Reads the image of a case [*shape, C], or the part of it in a box (one slice per axis)."""
    return self._read(case, "image", () if box is None else tuple(box))

  def read_masks(self, case: Case, names: Sequence[str],
                 box: Sequence[slice] | None = None) -> np.ndarray:
    """Reads the three-valued masks of some classes [N, *shape], or a box of them.

    The classes are annotated, or have a pseudo-mask.
    """
    masks = np.array([case.masked.index(name) for name in names], np.int64)
    return self._read(case, "masks", (masks, *(() if box is None else box)))

  def read_volume(self, case: Case) -> Volume:
    """Reads the prepared image with its affine; an image of one channel has no channel axis."""
    image = self.read_image(case)
    return Volume(image[..., 0] if image.shape[-1] == 1 else image, np.asarray(case.affine))

  def digest(self, case: Case) -> tuple[str, str]:
    """Computes `image_sha256` and `sha256` of a case from its stored arrays.

    Raises:
      InputError: a chunk is missing or damaged.
    """
    digests = []
    for rows in slabs(case.shape):
      digests.append(hashlib.sha256(self.read_image(case, (rows,))).hexdigest())
    images = len(digests)
    empty = self._read(case, "image", (slice(0, 0),))
    dtype, shape = empty.dtype, empty.shape
    for name in case.masked:
      for rows in slabs(case.shape):
        digests.append(hashlib.sha256(self.read_masks(case, [name], (rows,))).hexdigest())
    shape = (*case.shape, shape[-1])
    return (combined_digest(dtype, shape, digests[:images]),
            combined_digest(dtype, shape, digests))

  def _read(self, case: Case, name: str, index: tuple) -> np.ndarray:
    folder = self.root / "cases" / case.id
    try:
      return _open_array(folder / name)[(*index, ...)].read().result()
    except (ValueError, OSError) as error:
      if buckets.is_storage_error(error):
        raise buckets.explained(folder, error) from error
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
  buckets.connect(root)
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


def require_prepared(data) -> list[Store]:
  """Returns what `open_prepared` does.

  Raises:
    InputError: there is none.
  """
  stores = open_prepared(data)
  if not stores:
    raise InputError("data", f"{data} is not a prepared store, nor a folder of stores that fit "
                     "each other", "prepare it with condseg-prepare", usage=True)
  return stores


def chunk_shape(ndim: int) -> tuple[int, ...]:
  """Returns the chunk shape along the spatial axes of an array."""
  return CHUNK_3D if ndim == 3 else CHUNK_2D


def slabs(shape: Sequence[int]) -> list[slice]:
  """Returns the ranges of one chunk each along the first spatial axis."""
  step = chunk_shape(len(shape))[0]
  return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def combined_digest(dtype: np.dtype, shape: Sequence[int], digests: Sequence[str]) -> str:
  """Returns the SHA-256 of a case from the digests of its slabs: image first, then each mask."""
  return hashlib.sha256("\n".join([dtype.name, str(tuple(shape)), *digests]).encode()).hexdigest()


def clear_array_cache() -> None:
  """Closes cached arrays; a writer calls it before it replaces arrays."""
  _open_array.cache_clear()


def kvstore(path: epath.Path) -> dict:
  """Returns TensorStore's spec for a folder; as a URL, a local path could not contain #, ? or %."""
  text = str(path)
  if buckets.is_bucket(text):
    return buckets.kvstore(text)
  return {"driver": "file", "path": f"{os.path.abspath(text)}/"}


def create_array(path: epath.Path, shape: Sequence[int], dtype: npt.DTypeLike,
                 chunk: Sequence[int], attributes: Mapping | None = None) -> ts.TensorStore:
  """Creates an array of zeros in zarr v3 and opens it for writing."""
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
  # No cache: written data are not read again soon, and memory is limited.
  return ts.open(spec, create=True, context=ts.Context({})).result()


@functools.cache
def _context() -> ts.Context:
  return ts.Context({"cache_pool": {"total_bytes_limit": 512 << 20}})


@functools.lru_cache(maxsize=4096)
def _open_array(path: epath.Path) -> ts.TensorStore:
  # A missing chunk must not be read as zeros, which in a mask are negatives.
  spec = {"driver": "zarr3", "kvstore": kvstore(path), "fill_missing_data_reads": False}
  # Files are written once, so cached metadata and chunks stay valid.
  return ts.open(spec, context=_context(), read=True, recheck_cached_metadata="open",
                 recheck_cached_data="open").result()
