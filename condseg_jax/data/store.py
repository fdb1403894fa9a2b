"""The prepared store: cases as chunked arrays, and one manifest that describes them.

    ROOT/manifest.json          modality, spacing, class table, every case's record
    ROOT/cases/ID/image/        zarr v3, [*shape, C], at the store's spacing, canonical axes
    ROOT/cases/ID/masks/        zarr v3, [K, *shape], three-valued, one mask per annotated class
    ROOT/cases/ID/case.json     the case's record, written last: without it the case does not exist

A subvolume reads only the chunks it touches, from a disk or a bucket (`gs://`, `s3://`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import re

from etils import epath
import numpy as np
import tensorstore as ts

from condseg_jax.atomic import write_text
from condseg_jax.classes import ClassTable
from condseg_jax.classes import POSITIVE
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume

MANIFEST = "manifest.json"
VERSION = 2  # raise it when what is written here changes
CHUNK_3D = (32, 64, 64)
CHUNK_2D = (256, 256)
FOREGROUND_POSITIONS = 64
INTENSITY_SAMPLE = 500


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
    mean, sd: of the whole prepared image.
    positives: annotated class → number of positive voxels.
    foreground: annotated class → a random sample of the indices of its positive voxels.
    intensities: a random sample of the intensities of positive voxels.
    sha256: of the prepared arrays.
    source: digest of the source files and of the way they were prepared.
  """

  id: str
  dataset: str
  split: str
  annotated: tuple[str, ...]
  shape: tuple[int, ...]
  affine: tuple[tuple[float, ...], ...]
  mean: float
  sd: float
  positives: Mapping[str, int]
  foreground: Mapping[str, tuple[tuple[int, ...], ...]]
  intensities: tuple[float, ...]
  sha256: str
  source: str

  @classmethod
  def from_json(cls, tree: Mapping) -> "Case":
    tree = dict(tree)
    for key in ("annotated", "shape", "intensities"):
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
  """

  root: epath.Path
  modality: str
  spacing: tuple[float, ...]
  table: ClassTable
  cases: tuple[Case, ...]

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
      tree = json.loads((root / MANIFEST).read_text())
      version = tree["version"]
      if version != VERSION:
        raise InputError(root, f"prepared in format {version}, this program reads {VERSION}",
                         "prepare it again")
      cases = tuple(Case.from_json(c) for c in tree["cases"])
      table = ClassTable.from_json(tree["table"])
      return cls(root, tree["modality"], tuple(tree["spacing"]), table, cases)
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

  def _read(self, case: Case, name: str, index: tuple) -> np.ndarray:
    folder = self.root / "cases" / case.id
    try:
      return _open_array(folder / name)[(*index, ...)].read().result()
    except (ValueError, OSError) as error:
      reason = str(error).splitlines()[0].split(" [")[0]
      raise InputError(folder, f"cannot be read ({reason})",
                       "remove the folder and prepare again") from error


def write_case(root, case_id: str, image: np.ndarray, masks: np.ndarray, *, dataset: str,
               split: str, annotated: Sequence[str], affine: np.ndarray, source: str) -> Case:
  """Writes one case; it exists for readers only once everything of it is written.

  The store has no manifest from here until `write_manifest`.

  Args:
    root: folder of the store.
    case_id: letters, digits, `.`, `_`, `-`.
    image: [*shape, C].
    masks: uint8 [K, *shape], in the order of `annotated`.
    dataset, split, annotated, affine, source: see `Case`.
  """
  if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", case_id):
    raise InputError(f"case {case_id!r}", "cannot be a folder name",
                     "rename the file: letters, digits, '.', '_', '-'")
  folder = epath.Path(root) / "cases" / case_id
  # First what says that the arrays are whole: a kill may come at any time.
  (epath.Path(root) / MANIFEST).unlink(missing_ok=True)
  (folder / "case.json").unlink(missing_ok=True)
  if folder.exists():
    folder.rmtree()
  folder.mkdir(parents=True)
  _open_array.cache_clear()
  chunk = CHUNK_3D if masks.ndim == 4 else CHUNK_2D
  _write_array(folder / "image", image, (*chunk, image.shape[-1]))
  _write_array(folder / "masks", masks, (1, *chunk))
  rng = np.random.default_rng(int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8]))
  positive = masks == POSITIVE
  digest = hashlib.sha256(f"{image.dtype} {image.shape} {masks.shape}".encode())
  for array in (image, masks):
    digest.update(np.ascontiguousarray(array))
  union = positive.any(0)
  inside = image[union].mean(axis=-1, dtype=np.float64)
  sample = rng.choice(inside, min(INTENSITY_SAMPLE, inside.size), replace=False)
  case = Case(
      id=case_id, dataset=dataset, split=split, annotated=tuple(annotated),
      shape=tuple(image.shape[:-1]), affine=tuple(map(tuple, np.asarray(affine).tolist())),
      mean=float(image.mean(dtype=np.float64)), sd=float(image.std(dtype=np.float64)),
      positives={n: int(m.sum()) for n, m in zip(annotated, positive, strict=True)},
      foreground={n: _positions(m, rng) for n, m in zip(annotated, positive, strict=True)},
      intensities=tuple(float(f"{v:.6g}") for v in sample), sha256=digest.hexdigest(),
      source=source)
  write_text(folder / "case.json", json.dumps(dataclasses.asdict(case)))
  return case


def finished_case(root, case_id: str, source: str) -> Case | None:
  """The record of a case that is already written whole from the same source, else None."""
  path = epath.Path(root) / "cases" / case_id / "case.json"
  if not path.exists():
    return None
  try:
    case = Case.from_json(json.loads(path.read_text()))
  except (ValueError, KeyError, TypeError, AttributeError):
    return None  # damaged, or of another version
  return case if case.source == source else None


def write_manifest(root, *, modality: str, spacing: Sequence[float], table: ClassTable,
                   cases: Sequence[Case]) -> Store:
  """Finishes a store. Before this it cannot be opened."""
  cases = sorted(cases, key=lambda c: c.id)
  tree = {"version": VERSION, "modality": modality, "spacing": [float(s) for s in spacing],
          "table": table.to_json(), "cases": [dataclasses.asdict(c) for c in cases]}
  write_text(epath.Path(root) / MANIFEST, json.dumps(tree, indent=1))
  return Store.open(root)


def _positions(mask, rng) -> tuple[tuple[int, ...], ...]:
  flat = np.flatnonzero(mask)
  flat = rng.choice(flat, min(FOREGROUND_POSITIONS, flat.size), replace=False)
  return tuple(map(tuple, np.stack(np.unravel_index(np.sort(flat), mask.shape), -1).tolist()))


def _kvstore(path: epath.Path) -> str | dict:
  """TensorStore's name for a folder; a URL of a local one would trip over `#`, `?` and `%`."""
  text = str(path)
  if "://" in text:
    return f"{text}/"
  return {"driver": "file", "path": f"{os.path.abspath(text)}/"}


@functools.cache
def _context() -> ts.Context:
  return ts.Context({"cache_pool": {"total_bytes_limit": 512 << 20}})


@functools.lru_cache(maxsize=4096)
def _open_array(path: epath.Path) -> ts.TensorStore:
  # A chunk that has gone missing must not pass for one of zeros, which in a mask are negatives.
  spec = {"driver": "zarr3", "kvstore": _kvstore(path), "fill_missing_data_reads": False}
  # Files are written once, so metadata and chunks need no further look at the disk.
  return ts.open(spec, context=_context(), read=True, recheck_cached_metadata="open",
                 recheck_cached_data="open").result()


def _write_array(path: epath.Path, array: np.ndarray, chunk: Sequence[int]) -> None:
  codecs = [{"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5,
                                                "shuffle": "shuffle"}},
            {"name": "crc32c"}]
  if array.dtype.itemsize == 1:
    codecs[0] = {"name": "bytes"}
    codecs[1]["configuration"]["shuffle"] = "noshuffle"
  metadata = {"shape": array.shape, "data_type": array.dtype.name, "fill_value": 0,
              "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
              "codecs": codecs}
  spec = {"driver": "zarr3", "kvstore": _kvstore(path), "metadata": metadata,
          "store_data_equal_to_fill_value": True}
  ts.open(spec, create=True, context=_context()).result().write(array).result()
