"""Encode once, decode per class; the result does not depend on the schedule."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.infer.schedule import axis_starts
from condseg_jax.infer.schedule import default_budget
from condseg_jax.infer.schedule import gaussian_weights
from condseg_jax.infer.schedule import make_schedule
from condseg_jax.infer.sliding_window import class_probabilities
from condseg_jax.infer.sliding_window import CLASSES_AT_ONCE
from condseg_jax.infer.sliding_window import probability_slabs
from condseg_jax.infer.sliding_window import window_functions
from condseg_jax.infer.sliding_window import WindowFunctions
from condseg_jax.models.dense_unet import DenseUNet

WINDOW = (4, 8, 8)
CODES = tuple(np.linspace(-1, 1, CLASSES_AT_ONCE[0] + 3).tolist())


def network(position):
  model = DenseUNet(codes=CODES, strides=((2, 2, 2),), layers_per_level=(1, 1), channels=4,
                    growth=4, position=position,
                    mechanism="dynamic" if position == "output_head" else "channel")
  image = jnp.zeros((1, *WINDOW, 1))
  variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))
  return model, variables


@pytest.fixture(scope="module")
def decoder_network():
  return network("decoder")


def noise(seed, *shape):
  return np.random.default_rng(seed).normal(size=(*shape, 1)).astype(np.float32)


def test_classes_at_once_as_on_an_accelerator(decoder_network, monkeypatch):
  """Eight classes in parallel, the last group padded: the same as one at a time."""
  model, variables = decoder_network
  one = window_functions(model)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  eight = window_functions.__wrapped__(model)
  monkeypatch.undo()  # before anything is traced
  ids = np.array([7, 0, 3, 11, 5, 1, 2, 9, 4] + [-1] * 7, np.int32)
  features = one.encode(variables, noise(0, *WINDOW)[None], ids)
  a, b = (np.asarray(f.decode(variables, features, ids))[:9] for f in (one, eight))
  assert np.abs(np.diff(a, axis=0)).mean(tuple(range(1, a.ndim))).min() > 1e-4
  np.testing.assert_allclose(a, b, atol=1e-6)


def probabilities(functions, variables, image, ids, **settings):
  schedule = make_schedule(image.shape[:-1], WINDOW, len(ids), **settings)
  return class_probabilities(functions, variables, image, ids, WINDOW, schedule)


def everything_kept(model, variables, image, ids):
  """Reference sliding window with everything in memory, one window and class at a time."""
  shape = image.shape[:-1]
  missing = [max(0, w - n) for n, w in zip(shape, WINDOW, strict=True)]
  padding = [(m // 2, m - m // 2) for m in missing]
  padded = np.pad(image, (*padding, (0, 0)), mode="edge")
  apply = jax.jit(model.apply)
  weights = gaussian_weights(WINDOW).astype(np.float64)
  total, norm = np.zeros((len(ids), *padded.shape[:-1])), np.zeros(padded.shape[:-1])
  starts = (axis_starts(n, w) for n, w in zip(padded.shape[:-1], WINDOW, strict=True))
  for start in itertools.product(*starts):
    box = tuple(slice(s, s + w) for s, w in zip(start, WINDOW, strict=True))
    norm[box] += weights
    for k, class_id in enumerate(ids):
      logits = apply(variables, padded[box][None], jnp.array([class_id], jnp.int32))
      total[(k, *box)] += weights * np.asarray(jax.nn.sigmoid(logits))[0]
  inside = tuple(slice(low, low + n) for (low, _), n in zip(padding, shape, strict=True))
  return (total / norm)[(slice(None), *inside)]


def counting(functions):
  """The functions, with a count of their calls."""
  calls = {"encode": 0, "decode": 0}

  def count(name):
    def call(*args):
      calls[name] += 1
      return getattr(functions, name)(*args)
    return call

  return functions._replace(encode=count("encode"), decode=count("decode")), calls


@pytest.mark.parametrize("classes", [1, 3, len(CODES)])
def test_the_encoder_runs_once_per_window_whatever_the_class_count(decoder_network, classes):
  model, variables = decoder_network
  functions, calls = counting(window_functions(model))
  probabilities(functions, variables, noise(0, 4, 12, 8), range(classes))
  windows = 2
  assert calls["encode"] == windows
  assert calls["decode"] == windows * -(-classes // CLASSES_AT_ONCE[0])


@pytest.mark.slow
@pytest.mark.parametrize("position", ["decoder", "encoder", "input", "output_head",
                                      "per_class_decoders"])
def test_one_window_equals_the_full_pass(position):
  model, variables = network(position)
  image = noise(1, *WINDOW)
  ids = [7, 0, 3]
  found = probabilities(window_functions(model), variables, image, ids)
  for plane, class_id in zip(found, ids, strict=True):
    logits = model.apply(variables, image[None], jnp.array([class_id], jnp.int32))
    np.testing.assert_allclose(plane, jax.nn.sigmoid(logits)[0], atol=1e-6)


# Of a volume of 9 × 20 × 11 with windows of 4 × 8 × 8 the slab is thinnest along H: per class
# 9 × 8 × 11 float32, 3.2 kB, besides image, result, weights and the outputs of two calls.
SLAB = 4 * 9 * 8 * 11


def fixed(at_once, window_batch=1):
  return 9 * 20 * 11 * 9 + SLAB + 2 * 4 * at_once * window_batch * 4 * 8 * 8


@pytest.mark.parametrize("budget, per_pass, at_once", [
    (None, 19, 16), (fixed(16) + 19 * SLAB, 19, 16), (fixed(16) + 19 * SLAB - 1, 10, 16),
    (fixed(4) + 7 * SLAB, 7, 4), (fixed(4) + SLAB, 1, 4), (0, 1, 4)])
def test_every_way_to_save_memory_equals_keeping_everything(decoder_network, budget, per_pass,
                                                            at_once):
  model, variables = decoder_network
  image, ids = noise(2, 9, 20, 11), list(range(len(CODES)))
  functions = window_functions(model)
  schedule = make_schedule(image.shape[:-1], WINDOW, len(ids), budget=budget,
                       at_once=functions.at_once)
  assert (schedule.axis, schedule.classes, schedule.at_once) == (1, per_pass, at_once)
  assert schedule.bytes == fixed(at_once) + per_pass * SLAB
  assert schedule.whole_bytes == fixed(16) + len(ids) * SLAB
  found = class_probabilities(functions, variables, image, ids, WINDOW, schedule)
  np.testing.assert_allclose(found, everything_kept(model, variables, image, ids), atol=1e-6)


def test_the_batch_of_windows_does_not_matter(decoder_network):
  model, variables = decoder_network
  image, ids = noise(5, 5, 11, 19), [1, 2]
  found = probabilities(window_functions(model), variables, image, ids, window_batch=(3,))
  np.testing.assert_allclose(found, everything_kept(model, variables, image, ids), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 8, 5), (3, 30, 8), (13, 9, 5), (1, 1, 40)])
def test_any_shape_along_any_axis(decoder_network, shape):
  """A volume smaller than the window is edge-padded."""
  model, variables = decoder_network
  image, ids = noise(3, *shape), [5, 1]
  expected = everything_kept(model, variables, image, ids)
  schedule = make_schedule(shape, WINDOW, len(ids))
  for axis in range(3):
    found = class_probabilities(window_functions(model), variables, image, ids, WINDOW,
                                schedule._replace(axis=axis))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_slabs_cover_every_class_and_voxel_once(decoder_network):
  model, variables = decoder_network
  image, ids = noise(4, 6, 21, 9), [3, 1, 2]
  schedule = make_schedule((6, 21, 9), WINDOW, 3)._replace(axis=1, classes=2)
  seen, finished = np.zeros((4, 6, 21, 9), int), []
  for slab in probability_slabs(window_functions(model), variables, image, ids, WINDOW, schedule,
                                progress=finished.append):
    assert slab.planes.shape == (len(slab.class_ids), *(s.stop - s.start for s in slab.box))
    assert len(slab.class_ids) <= 2 and slab.planes.shape[2] <= WINDOW[1]
    for class_id in slab.class_ids:
      seen[(class_id, *slab.box)] += 1
  assert (seen[1:] == 1).all() and not seen[0].any()
  assert sum(finished) == 2 * schedule.windows  # two passes


def test_fewer_windows_per_call_are_the_last_way_before_passes():
  make = functools.partial(make_schedule, (9, 20, 11), WINDOW, 19, at_once=(16, 4),
                           window_batch=(4, 1))
  for at_once, batch in ((16, 4), (4, 4), (4, 1)):
    schedule = make(budget=fixed(at_once, batch) + at_once * SLAB)
    assert (schedule.at_once, schedule.window_batch) == (at_once, batch)
  assert make(budget=0).window_batch == 1


def test_in_a_box_nothing_changes_and_outside_nothing_is_found(decoder_network):
  """Windows outside of all boxes are not encoded."""
  model, variables = decoder_network
  image, ids = noise(6, 9, 20, 11), [4, 2]
  functions, calls = counting(window_functions(model))
  schedule = make_schedule((9, 20, 11), WINDOW, 2)
  plain = class_probabilities(functions, variables, image, ids, WINDOW, schedule)
  everything = dict(calls)
  boxes = {4: (slice(1, 3), slice(2, 9), slice(0, 4)), 2: (slice(8, 9), slice(0, 1), slice(9, 11))}
  found = class_probabilities(functions, variables, image, ids, WINDOW, schedule, boxes=boxes)
  for k, class_id in enumerate(ids):
    inside = np.zeros(plain.shape[1:], bool)
    inside[boxes[class_id]] = True
    np.testing.assert_allclose(found[k], np.where(inside, plain[k], 0), atol=1e-6)
  assert 0 < calls["encode"] - everything["encode"] < everything["encode"]
  empty = {class_id: (slice(0, 0),) * 3 for class_id in ids}
  calls.update(encode=0)
  found = class_probabilities(functions, variables, image, ids, WINDOW, schedule, boxes=empty)
  assert not found.any() and calls["encode"] == 0


def test_volumes_of_any_shape_share_one_program(decoder_network):
  model, variables = decoder_network
  functions = window_functions(model)
  assert window_functions(model) is functions
  counts = []
  for budget in (None, 1 << 20):
    for shape in ((4, 8, 8), (5, 20, 9), (3, 3, 30), (9, 9, 9), (1, 8, 8), (4, 40, 8), (30, 5, 5),
                  (12, 12, 12), (4, 9, 31), (7, 7, 7)):
      probabilities(functions, variables, np.zeros((*shape, 1), np.float32), [0, 1, 2],
                    budget=budget)
      counts.append((functions.encode._cache_size(), functions.decode._cache_size()))
  assert len(set(counts)) == 1


def test_predicted_time_counts_encoding_for_each_pass():
  schedule = make_schedule((9, 20, 11), WINDOW, 19, at_once=(4,), budget=fixed(4, 4) + 7 * SLAB,
                       window_batch=(4,))
  windows = 4 * 4 * 2
  assert schedule.windows == windows and schedule.passes == 3
  assert schedule.seconds(2.0, 0.5, 19) == windows / 4 * (3 * 2.0 + 19 * 0.5)
  assert schedule.seconds(2.0, 0.5, 19, passes=1) == windows / 4 * (2.0 + 19 * 0.5)


def test_the_default_budget_is_a_part_of_the_machine_s_memory():
  assert 1 << 20 < default_budget() <= 4 << 30


def test_an_ensemble_is_the_mean_of_its_members(decoder_network):
  """Over windows that overlap, in several passes; equal members are one network."""
  model, variables = decoder_network
  others = [jax.tree.map(lambda x, f=f: f * x, variables) for f in (0.5, -1.3)]
  image, ids = noise(7, 9, 20, 11), [0, 2, 1]
  functions = window_functions(model)
  schedule = make_schedule((9, 20, 11), WINDOW, 3)._replace(classes=2)
  predict = functools.partial(class_probabilities, functions)
  single = [predict(one, image, ids, WINDOW, schedule) for one in (variables, *others)]
  assert np.ptp(single, axis=0).max() > 0.05, "there must be something to average"
  found = predict(variables, image, ids, WINDOW, schedule, others=others)
  np.testing.assert_allclose(found, np.mean(single, axis=0), atol=1e-6)
  twice = predict(variables, image, ids, WINDOW, schedule, others=[variables])
  np.testing.assert_allclose(twice, single[0], atol=1e-6)


def test_an_ensemble_needs_the_memory_of_one():
  """The features of one window and one member at a time, and the sums of a single network."""
  alive, most, sizes = [0], [0], []

  class Features:
    def __init__(self, value):
      self.value = value
      alive[0] += 1
      most[0] = max(most[0], alive[0])

    def __del__(self):
      alive[0] -= 1

  def decode(variables, features, ids):
    return np.full((len(ids), 1, *WINDOW), features.value * variables, np.float32)
  functions = WindowFunctions(lambda variables, image, ids: Features(variables), decode, False,
                              (4,))
  image = noise(8, 9, 20, 11)
  schedule = make_schedule((9, 20, 11), WINDOW, 2, at_once=(4,))
  progress = []
  for slab in probability_slabs(functions, 0.5, image, [0, 1], WINDOW, schedule,
                                others=(1.0, 0.1, 0.2), progress=progress.append):
    np.testing.assert_allclose(slab.planes, (0.25 + 1 + 0.01 + 0.04) / 4, rtol=1e-6)
    sizes.append(slab.planes.base.nbytes)
  assert most == [1] and sum(progress) == schedule.windows
  plain = probability_slabs(functions, 0.5, image, [0, 1], WINDOW, schedule)
  assert [slab.planes.base.nbytes for slab in plain] == sizes
