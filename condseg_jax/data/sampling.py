"""Samples batches from prepared stores: case, class and subvolume.

The stream is a pure function of (seed, position in the stream): a grain MapDataset that is mixed,
sharded by process and sliced. Resuming at step n is slicing; no iterator state needs saving.
"""

from collections.abc import Sequence
import dataclasses

import grain
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Data
from condseg_jax.data.batch import Batch
from condseg_jax.data.selection import Dataset
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.plan import Plan


def own_decodes(training: Sequence[Dataset], data: Data) -> int:
  """Returns the annotated classes decoded per image, at most the largest number in a dataset.

  Args:
    training: the datasets.
    data: `classes_per_image` is the maximum, 0 for all; with `batch_class` = single it is 1; with
      `unannotated` = background every class has a mask in every dataset.
  """
  most = max(len(d.annotated) for d in training)
  if data.unannotated == "background":
    most = len({name for d in training for name in d.annotated})
  return min(data.classes_per_image or most, most) if data.batch_class == "mixed" else 1


def decodes_per_image(training: Sequence[Dataset], table: ClassTable, data: Data) -> int:
  """Returns N, the classes decoded per image: `own_decodes`, and one more for pseudo-masks."""
  own, names = own_decodes(training, data), set(table.names)
  more = uses_pseudo(data) and any(names.intersection(case.pseudo) for d in training
                                   for case in d.cases)
  return min(own + more, len(names)) if more else own


def uses_pseudo(data: Data) -> bool:
  """Returns whether pseudo-masks, where a store has any, are learned from."""
  return bool(data.pseudo_weight and data.batch_class == "mixed" and data.unannotated == "ignore")


def batches(training: Sequence[Dataset], table: ClassTable, plan: Plan, data: Data, *, seed: int,
            bare: Sequence[Dataset] = (), start_step: int = 0, process_index: int = 0,
            process_count: int = 1, threads: int = 2) -> grain.DatasetIterator:
  """Returns an endless stream of this process's part of every batch.

  Args:
    training: the datasets, sampled in turn in proportion to their weights.
    table: classes of the network.
    plan: subvolume shape and normalisation.
    data: sampling settings. `batch_size` is the size of the global batch: process p of P gets the
      samples p, p + P, p + 2 P, … `batch_class` = mixed fills a batch from all datasets, single
      takes all samples of a batch from one class of one dataset, as in the paper. Decodes that a
      dataset's annotated classes do not fill, because another dataset annotates more, have β = 0;
      with `unannotated` = background they count as absent (β = 1), which is wrong wherever the
      class is in the image and is provided for comparison only. Where a case has pseudo-masks,
      these come first, with β = `pseudo_weight`.
    seed: seed of the choice of cases, classes and positions.
    bare: datasets without masks, each drawn with the weight `data.bare` into mixed batches; their
      decodes are of pseudo-masks and of random classes, with β = 0.
    start_step: first step of the stream.
    process_index: index of this process.
    process_count: number of processes.
    threads: number of reader threads; each loads one sample at a time.

  Raises:
    InputError: settings that do not fit the data or the processes.
  """
  weights = list(data.weights) or [1.0] * len(training)
  if len(weights) != len(training):
    raise InputError("data.weights", f"{tuple(weights)} for {len(training)} datasets",
                     f"one weight for each of: {', '.join(d.name for d in training)}", usage=True)
  if data.batch_size % process_count:
    raise InputError("data.batch_size", f"{data.batch_size} is not a multiple of {process_count} "
                     "processes", "choose a multiple", usage=True)
  own, decodes = own_decodes(training, data), decodes_per_image(training, table, data)
  part = slice(process_index, None, process_count)

  def stream(dataset, names, number):
    cases = grain.MapDataset.source(dataset.cases).seed(seed + 7919 * number).shuffle().repeat()
    return cases.random_map(_Cutter(dataset.store, dataset.number, names, table, plan, own, decodes,
                                    data))

  def batched(samples):
    numbered = samples.map_with_index(_number(data.batch_size))[part]
    # There is no remainder, but rounding up overflows: the stream has the maximum integer length.
    return numbered.batch(data.batch_size // process_count, drop_remainder=True)

  if data.batch_class == "mixed":
    streams = [stream(d, d.annotated, d.number) for d in (*training, *bare)]
    stepped = batched(grain.MapDataset.mix(streams, [*weights, *[data.bare] * len(bare)]))
  else:
    pairs = [(d, name, w / len(d.annotated)) for d, w in zip(training, weights, strict=True)
             for name in d.annotated]
    streams = [batched(stream(d, (name,), i)) for i, (d, name, _) in enumerate(pairs)]
    stepped = grain.MapDataset.mix(streams, [w for _, _, w in pairs])
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  return iter(stepped[start_step:].to_iter_dataset(options))


def read_box(shape: Sequence[int], size: Sequence[int],
             start: Sequence[int]) -> tuple[tuple[slice, ...], tuple[tuple[int, int], ...]]:
  """Returns the part of a box inside a volume and the padding that restores the box size.

  Args:
    shape: shape of the volume.
    size: size of the box.
    start: first index of the box per axis; may lie outside the volume.
  """
  inside, padding = [], []
  for length, extent, first in zip(shape, size, start, strict=True):
    low, high = max(first, 0), min(first + extent, length)
    inside.append(slice(low, high))
    padding.append((low - first, first + extent - high))
  return tuple(inside), tuple(padding)


@dataclasses.dataclass(frozen=True)
class _Cutter:
  """Extracts a subvolume from a case for some of its classes."""

  store: Store
  dataset: int  # number of the dataset
  names: tuple[str, ...]
  table: ClassTable
  plan: Plan
  own: int  # see `own_decodes`
  decodes: int  # N
  data: Data  # see `batches`

  def __call__(self, case: Case, rng: np.random.Generator) -> Batch:
    n = self.decodes
    annotated = [str(x) for x in rng.permutation(self.names)[:self.own]]
    chosen = annotated + self._pseudo(case, n - len(annotated), rng)
    others = [name for name in self.table.names if name not in (*self.names, *chosen)]
    fillers = [str(x) for x in rng.permutation(others)[:n - len(chosen)]]
    if len(chosen) + len(fillers) < n:  # a case without pseudo-masks that annotates nearly all
      fillers += [name for name in self.names if name not in chosen][:n - len(chosen)]
    ids = np.array([self.table.index(x) for x in (*chosen, *fillers)], np.int32)

    positions = {**case.foreground, **case.pseudo}
    start = self._start(case, positions[chosen[0]] if chosen else (), rng)
    inside, padding = read_box(case.shape, self.plan.subvolume, start)
    image = self.store.read_image(case, inside)
    # Edge padding outside the image, as in augmentation and prediction; the mask is unlabelled
    # there.
    image = np.pad(image, (*padding, (0, 0)), mode="edge")
    masks = np.full((n, *self.plan.subvolume), UNLABELLED, np.uint8)
    within = tuple(slice(low, size - high)
                   for (low, high), size in zip(padding, self.plan.subvolume, strict=True))
    if chosen:
      masks[(slice(0, len(chosen)), *within)] = self.store.read_masks(case, chosen, inside)
    beta = np.zeros(n, np.float32)
    beta[:len(annotated)] = 1
    beta[len(annotated):len(chosen)] = self.data.pseudo_weight
    if self.data.unannotated == "background":
      masks[(slice(len(chosen), n), *within)] = NEGATIVE
      beta[:] = 1
    return Batch(image=self.plan.normalise(image, case.mean, case.sd), class_id=ids,
                 mask=np.moveaxis(masks, 0, -1), beta=beta, index=np.int32(0),
                 dataset=np.int32(self.dataset))

  def _pseudo(self, case: Case, count: int, rng: np.random.Generator) -> list[str]:
    """Draws classes of the network that have a pseudo-mask in a case, at most `count`."""
    names = [name for name in case.pseudo if name in self.table.names]
    if not names or not uses_pseudo(self.data):
      return []
    return [str(x) for x in rng.permutation(names)[:count]]

  def _start(self, case: Case, positions: Sequence[Sequence[int]],
             rng: np.random.Generator) -> list[int]:
    """Draws the start of the box: around one of some positions, or anywhere in the volume."""
    centre = None
    if positions and rng.random() < self.data.foreground_fraction:
      centre = positions[rng.integers(len(positions))]
    start = []
    for axis, (length, size) in enumerate(zip(case.shape, self.plan.subvolume, strict=True)):
      low, high = min(0, length - size), max(0, length - size)
      first = rng.integers(low, high + 1)
      if centre is not None and length > size:
        first = np.clip(centre[axis] - rng.integers(size // 4, size - size // 4), low, high)
      start.append(int(first))
    return start


@dataclasses.dataclass(frozen=True)
class _number:
  """Sets a sample's index within its step."""

  batch_size: int

  def __call__(self, index: int, sample: Batch) -> Batch:
    return sample._replace(index=np.int32(index % self.batch_size))
