"""A subvolume that is split over devices gives the same step, in less memory per device."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from condseg_jax.config import Augment
from condseg_jax.config import Config
from condseg_jax.config import Loss
from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError
from condseg_jax.losses import make_objective
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.res_unet import ResUNet
from condseg_jax.train import parallel
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step

SHAPE = (16, 16)
MODEL = DenseUNet(codes=(-0.5, 0.7), strides=((2, 2),) * 2, layers_per_level=(1, 1, 1),
                  channels=4, growth=4, norm="instance", deep_supervision=1)
AUGMENTATION = Augment(probability=1.0, rotate=0.0, zoom=0.0, shift=0.0, mirror=("W",))


def run_step(partition: int, batch_size: int, shape=SHAPE, model=MODEL):
  """Takes two steps; returns parameters, metrics and the temporary memory of a device in bytes."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(batch_size, *shape, 1)).astype(np.float32)
  batch = Batch(image=image, class_id=(np.arange(batch_size, dtype=np.int32) % 2)[:, None],
                mask=(image > 0.5).astype(np.uint8), beta=np.ones((batch_size, 1), np.float32),
                index=np.arange(batch_size, dtype=np.int32),
                dataset=np.zeros(batch_size, np.int32))
  optimizer = optax.sgd(0.1)  # Adam would magnify rounding where a gradient is nearly zero
  split = {} if partition == 1 else {"logits_of": parallel.partitioned_logits(partition)}
  step = make_train_step(model, optimizer, objective=make_objective(Loss()),
                         augmentation=AUGMENTATION, spacing=(1.0,) * len(shape),
                         lateral_axes=np.zeros((2, len(shape)), bool), alpha_K=(1.0, 2.0),
                         ema_decay=0.0, seed=3, **split)
  driver = parallel.make_driver("jit", step, batch_size, partition=partition)
  variables = jax.jit(model.init)(jax.random.key(0), image[:1], np.zeros(1, np.int32))
  state = driver.place_state(TrainState.create(variables, optimizer, ema=False))
  arguments = driver.place_batch(batch), driver.place_steps(2)
  compiled = driver.step.lower(state, *arguments).compile()
  for _ in range(2):
    state, metrics = compiled(state, *arguments)
  return (jax.device_get((state.params, metrics)),
          compiled.memory_analysis().temp_size_in_bytes)


def largest_difference(a, b) -> float:
  return max(float(np.abs(np.asarray(x) - np.asarray(y)).max())
             for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def four_devices() -> dict:
  """Compares steps on four devices: an image on each; in halves on two of them; in quarters."""
  whole, _ = run_step(1, 4)
  return {n: largest_difference(whole, run_step(n, 4)[0]) for n in (2, 4)}


@pytest.mark.slow
def test_two_devices_take_the_same_step_in_half_the_memory():
  shape, model = (16, 8, 8), MODEL.clone(strides=((2, 2, 2),), layers_per_level=(1, 1),
                                         deep_supervision=0)
  whole, memory = run_step(1, 2, shape, model)
  split, _ = run_step(2, 2, shape, model)
  assert largest_difference(whole, split) < 1e-5 and 0 < whole[1]["loss"] < 10
  _, of_half = run_step(2, 1, shape, model)  # one image on two devices, not one on each
  assert of_half < 0.65 * memory


@pytest.mark.slow
def test_four_devices_take_the_same_step():
  code = ("import json; from train import test_partition as t; "
          "print(json.dumps(t.four_devices()))")
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4",
                              "PYTHONPATH": str(Path(__file__).parent.parent)}
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8",
                        cwd=Path(__file__).parent.parent.parent, env=environment, check=False)
  assert done.returncode == 0, done.stderr
  assert all(value < 1e-5 for value in json.loads(done.stdout.splitlines()[-1]).values())


@pytest.mark.parametrize("changes, partition, said", [
    ({}, 3, "3 devices for an image, but a process has 2"),
    ({"subvolume": (18, 16)}, 2, "18 slices are not a multiple of 2 × stride 4"),
    ({"model": MODEL.clone(decoder="fcn", position="none", deep_supervision=0)}, 2,
     "cannot be split"),
    ({"model": MODEL.clone(mechanism="batch_norm")}, 2, "'batch_norm'"),
    ({"model": ResUNet(codes=(-0.5, 0.7), strides=((2, 2),), layers_per_level=(1, 1),
                       channels=4)}, 2, "'dense_unet'")])
def test_what_cannot_be_split_is_one_line(changes, partition, said):
  with pytest.raises(InputError, match=said) as error:
    parallel.check_partition(partition, changes.get("model", MODEL),
                             changes.get("subvolume", SHAPE))
  assert "\n" not in str(error.value)


def test_what_is_possible_follows_from_network_subvolume_and_batch():
  """On two devices; a single image per step leaves no device idle only if it is split."""
  assert parallel.possible_partitions(MODEL, SHAPE, 2) == [1, 2]
  assert parallel.possible_partitions(MODEL, SHAPE, 1) == [2]
  assert parallel.possible_partitions(MODEL, (12, 16), 2) == [1]
  assert parallel.possible_partitions(MODEL.clone(mechanism="batch_norm"), SHAPE, 2) == [1]


@pytest.mark.parametrize("settings", [{"train.driver": "pmap"}, {"data.plan": "auto"},
                                      {"train.only_classes": ("liver",)}])
def test_settings_that_exclude_a_partition(settings):
  with pytest.raises(InputError, match=r"train\.partition"):
    Config().override({"train.partition": 2, **settings})
