"""Class probabilities of a volume by sliding window: encode once, decode once per class.

Windows are processed in layers along one axis. Sums of overlapping windows are kept for one layer
only, and finished parts are yielded as `Slab`s, so that all classes of all voxels are never in
memory at once.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.infer.schedule import gaussian_weights
from condseg_jax.infer.schedule import layers
from condseg_jax.infer.schedule import pad_to_window
from condseg_jax.infer.schedule import Schedule
from condseg_jax.models.network import Network
from condseg_jax.system.allocator import lean_memory

CLASSES_AT_ONCE = (16, 4)  # classes per call of `decode`, see `WindowFunctions.at_once`

Box = tuple[slice, ...]  # slices with start and stop


class WindowFunctions(NamedTuple):
  """Encoder and decoder for a batch of windows, compiled once per shape.

  Attributes:
    encode: (variables, image_BDHWC, class_id_K) → features, with a leading axis K if the encoder
      sees the class.
    decode: (variables, features, class_id_K) → probability float32 [K, B, *window]. Negative ids
      pad a call; nothing is computed for them, and their output is undefined.
    encoder_sees_class: whether features depend on the class, so that each class is encoded anew.
    at_once: possible numbers of ids per call, in descending order.
  """

  encode: Callable
  decode: Callable
  encoder_sees_class: bool
  at_once: tuple[int, ...]


class Slab(NamedTuple):
  """Final probabilities of some classes in one box of a volume.

  Attributes:
    class_ids: one id per entry of `planes`.
    box: position in the volume.
    planes: float32 [K, *box shape]; may be modified by the consumer, and is only valid until the
      next slab is requested.
  """

  class_ids: Sequence[int]
  box: Box
  planes: np.ndarray


@functools.lru_cache(maxsize=8)
def window_functions(model: Network) -> WindowFunctions:
  """Returns encoder and decoder of a network for prediction, cached per network."""
  # A CPU is fastest with one class at a time, in its caches; accelerators run several in parallel.
  lanes = 1 if jax.default_backend() == "cpu" else 8

  def encode(variables, image, class_id_K):
    def one(class_id):
      ids = None if class_id is None else jnp.full(image.shape[:1], class_id)
      return model.apply(variables, image, ids, method=model.encode)
    return jax.vmap(one)(class_id_K) if model.encoder_sees_class else one(None)

  def decode(variables, features, class_id_K):
    def one(features, class_id):
      ids = jnp.full(jax.tree.leaves(features)[0].shape[:1], class_id)
      return jax.nn.sigmoid(model.apply(variables, features, ids, method=model.decode))

    if model.encoder_sees_class:
      return jax.vmap(one)(features, class_id_K)
    size = len(class_id_K)
    groups = -(-size // lanes)
    ids = jnp.pad(class_id_K, (0, groups * lanes - size), constant_values=-1)
    ids = ids.reshape(groups, lanes)
    several = jax.vmap(one, in_axes=(None, 0))
    shape = jax.eval_shape(several, features, ids[0]).shape
    # Groups of padding are skipped, so that full and partial calls share one program.
    used = (jnp.sum(class_id_K >= 0) + lanes - 1) // lanes
    planes = jax.lax.fori_loop(
        0, used, lambda i, out: out.at[i].set(several(features, jnp.maximum(ids[i], 0))),
        jnp.zeros((groups, *shape), jnp.float32))
    return planes.reshape(groups * lanes, *shape[1:])[:size]

  at_once = (lanes,) if model.encoder_sees_class else CLASSES_AT_ONCE
  return WindowFunctions(jax.jit(encode), jax.jit(decode), model.encoder_sees_class, at_once)


def probability_slabs(functions: WindowFunctions, variables: Mapping | None,
                      image_DHWC: np.ndarray, class_ids: Sequence[int], window: Sequence[int],
                      schedule: Schedule, *, others: Sequence[Mapping] = (),
                      boxes: Mapping[int, Box] | None = None,
                      progress: Callable[[int], None] = lambda _: None) -> Iterator[Slab]:
  """Computes the probability of every class at every voxel, slab by slab.

  Windows have a fixed shape and come in batches of a fixed size, so that all volumes share one
  compiled program. Each window is encoded once per pass, and its classes are decoded in groups.
  Where windows overlap, their probabilities are averaged with Gaussian weights. The members of an
  ensemble compute each window in turn, and their probabilities are summed where those of a single
  network would be: besides its parameters, a member needs no memory of its own.

  Args:
    functions: from `window_functions`.
    variables: of the network.
    image_DHWC: normalised image at the network's spacing; no D in 2-D. A volume smaller than the
      window is edge-padded, as in training.
    class_ids: classes to decode.
    window: shape of a window.
    schedule: from `make_schedule`, for these classes and this volume.
    others: variables of the further members of an ensemble, whose probabilities are averaged.
    boxes: class → the box to which it is restricted; its probability is 0 elsewhere, and windows
      outside of the box are not computed for it. No restriction when None.
    progress: called with the number of windows finished since the last call.

  Yields:
    Slabs: the whole volume for the first classes, then for the next.
  """
  padding = pad_to_window(image_DHWC.shape[:-1], window)
  image = np.pad(image_DHWC, (*padding, (0, 0)), mode="edge") if any(map(any, padding)) else (
      image_DHWC)
  if boxes is not None:
    boxes = {class_id: tuple(slice(s.start + low, s.stop + low)
                             for s, (low, _) in zip(box, padding, strict=True))
             for class_id, box in boxes.items()}
  with lean_memory(schedule.passes > 1):
    yield from _slabs(functions, (variables, *others), image, image_DHWC.shape[:-1], padding,
                      class_ids, window, schedule, boxes, progress)


def _slabs(functions, members, image, shape, padding, class_ids, window, schedule, boxes,
           progress):
  """Yields the slabs of all passes, with the padding removed."""
  sums = _slab_arrays(image.shape[:-1], window, schedule)
  for first in range(0, len(class_ids), schedule.classes):
    ids = class_ids[first:first + schedule.classes]
    pass_boxes = None if boxes is None else [boxes[class_id] for class_id in ids]
    for box, planes in _one_pass(functions, members, image, ids, window, schedule, pass_boxes,
                                 sums, progress):
      # From the padded volume back to the original.
      start = [max(0, s.start - low) for s, (low, _) in zip(box, padding, strict=True)]
      stop = [min(n, s.stop - low)
              for s, (low, _), n in zip(box, padding, shape, strict=True)]
      if start[schedule.axis] >= stop[schedule.axis]:
        continue
      inside = tuple(slice(a + low - s.start, b + low - s.start)
                     for a, b, s, (low, _) in zip(start, stop, box, padding, strict=True))
      yield Slab(ids, tuple(map(slice, start, stop)), planes[(slice(None), *inside)])


def class_probabilities(functions: WindowFunctions, variables: Mapping | None,
                        image_DHWC: np.ndarray, class_ids: Sequence[int], window: Sequence[int],
                        schedule: Schedule, **options) -> np.ndarray:
  """Collects `probability_slabs` in one array, float32 [K, *shape], of K times the volume."""
  shape = image_DHWC.shape[:-1]
  planes = np.empty((len(class_ids), *shape), np.float32)
  place = {class_id: k for k, class_id in enumerate(class_ids)}
  for slab in probability_slabs(functions, variables, image_DHWC, class_ids, window, schedule,
                                **options):
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      planes[(place[class_id], *slab.box)] = plane
  return planes


def _slab_arrays(shape, window, schedule) -> tuple[np.ndarray, ...]:
  """Allocates sums of scores and of weights, and a work array, once: memory that is allocated
  repeatedly is not fully returned to the system."""
  slab = tuple(window[a] if a == schedule.axis else n for a, n in enumerate(shape))
  return (np.empty((schedule.classes, *slab), np.float32), np.empty(slab, np.float32),
          np.empty(window, np.float32))


def _one_pass(functions, members, image, ids, window, schedule, boxes, sums, progress):
  """Yields the boxes and probabilities of some classes, in the padded volume."""
  axis, shape = schedule.axis, image.shape[:-1]
  weights = gaussian_weights(window)
  total, norm, product = sums
  total = total[:len(ids)]
  total[:] = norm[:] = 0

  def place(start):
    return tuple(slice(0, w) if a == axis else slice(s, s + w)
                 for a, (s, w) in enumerate(zip(start, window, strict=True)))

  window_layers = layers(shape, window, schedule.step, axis)
  for layer, following in zip(window_layers, [*window_layers[1:], None], strict=True):
    for start in layer:
      norm[place(start)] += weights
    for starts, ks, scores in _decoded(functions, members, image, ids, window, schedule, boxes,
                                       layer, progress):
      for b, start in enumerate(starts):
        for k, score in zip(ks, scores, strict=False):
          total[(k, *place(start))] += np.multiply(weights, score[b], out=product)
    first = layer[0][axis]
    rows = window[axis] if following is None else following[0][axis] - first
    done = _along(axis, 0, rows)
    box = tuple(slice(first, first + rows) if a == axis else slice(0, n)
                for a, n in enumerate(shape))
    for k, plane in enumerate(total):
      plane[done] /= norm[done] if len(members) == 1 else len(members) * norm[done]
      if boxes is not None:
        _clear_outside(plane[done], box, boxes[k])
    yield box, total[(slice(None), *done)]
    for plane in (*total, norm):  # shifts the overlap with the next layer to the front
      plane[_along(axis, 0, window[axis] - rows)] = plane[_along(axis, rows, window[axis])]
      plane[_along(axis, window[axis] - rows, window[axis])] = 0


def _along(axis: int, first: int, last: int) -> tuple[slice, ...]:
  return (*(slice(None),) * axis, slice(first, last))


def _clear_outside(plane: np.ndarray, place: Box, box: Box) -> None:
  """Zeroes the voxels of a plane outside of a box; `place` is the plane's box in the volume."""
  inside = tuple(slice(max(b.start - p.start, 0), max(b.stop - p.start, 0))
                 for b, p in zip(box, place, strict=True))
  kept = plane[inside].copy()
  plane[...] = 0
  plane[inside] = kept


def _decoded(functions, members, image, ids, window, schedule, boxes, layer, progress):
  """Yields probabilities of batches of windows; the device computes one while the last is read.

  Members of an ensemble follow each other in every batch: its windows come once for each.
  """
  pending, size = None, schedule.at_once
  for first in range(0, len(layer), schedule.window_batch):
    starts = layer[first:first + schedule.window_batch]
    needed = [k for k in range(len(ids))
              if boxes is None or any(_meets(start, window, boxes[k]) for start in starts)]
    batch = np.zeros((schedule.window_batch, *window, image.shape[-1]), np.float32)
    for b, start in enumerate(starts):
      batch[b] = image[tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))]
    for variables in members:
      features = None
      for group in range(0, len(needed), size):
        ks = needed[group:group + size]
        padded = np.full(size, -1, np.int32)
        padded[:len(ks)] = [ids[k] for k in ks]
        if features is None or functions.encoder_sees_class:
          features = functions.encode(variables, batch, padded)
        scores = functions.decode(variables, features, padded)
        if pending is not None:
          yield *pending[:2], np.asarray(pending[2])
        pending = starts, ks, scores
    progress(len(starts))
  if pending is not None:
    yield *pending[:2], np.asarray(pending[2])


def _meets(start: Sequence[int], window: Sequence[int], box: Box) -> bool:
  return all(s < b.stop and b.start < s + w
             for s, w, b in zip(start, window, box, strict=True))


# --- Test-time augmentation: the mean over a window and its mirror images.
def mirrored(functions: WindowFunctions, axes: Sequence[int]) -> WindowFunctions:
  """Returns functions that average over mirror images; n axes take 2^n times as long.

  Args:
    functions: of the network.
    axes: spatial axes to mirror; training should have mirrored them, too.
  """
  subsets = [subset for n in range(len(axes) + 1) for subset in itertools.combinations(axes, n)]

  def encode(variables, image, class_id_K):
    return tuple(functions.encode(variables, jnp.flip(image, [1 + a for a in subset]), class_id_K)
                 for subset in subsets)

  def decode(variables, features, class_id_K):
    total = 0
    for subset, one in zip(subsets, features, strict=True):
      planes = functions.decode(variables, one, class_id_K)
      total = total + jnp.flip(planes, [2 + a for a in subset])
    return total / len(subsets)

  return functions._replace(encode=encode, decode=decode)
