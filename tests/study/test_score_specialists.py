"""Specialists used as one network: each class has the probabilities of its own network."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from condseg_jax.study import score
from condseg_jax.study.score import specialists


def member(seed, names, position="decoder", spacing=(2.0, 1.0, 1.0)):
  table = ClassTable.create(names)
  model = DenseUNet(codes=tuple(table.codes.tolist()), strides=((2, 2, 2),),
                    layers_per_level=(1, 1),
                    channels=4, growth=4, position=position)
  image = jnp.zeros((1, 8, 16, 16, 1))
  variables = jax.jit(model.init)(jax.random.key(seed), image, jnp.zeros(1, jnp.int32))
  return Predictor(model, variables, table, Plan("mr", spacing, (8, 16, 16)))


@pytest.fixture(scope="module")
def members():
  """One of a class, one of two, and one whose encoder sees the class."""
  return [member(0, ["liver"]), member(1, ["spleen", "pancreas"]),
          member(2, ["kidney"], "encoder")]


@pytest.fixture(scope="module")
def volume():
  array = np.random.default_rng(0).normal(size=(21, 18, 9)).astype(np.float32)
  return Volume(array, np.diag([-1.2, -1.2, 2.5, 1.0]))


def planes(predictor, volume, folder, **settings):
  predictor.predict(volume, probabilities=str(folder), **settings)
  store = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}},
                           read=True).result()
  names = json.loads((Path(folder) / "zarr.json").read_text())["attributes"]["classes"]
  return dict(zip(names, store.read().result(), strict=True))


def test_probabilities_are_those_of_the_members(members, volume, tmp_path):
  fused = planes(specialists(members), volume, tmp_path / "all")
  assert list(fused) == ["liver", "spleen", "pancreas", "kidney"]
  for number, one in enumerate(members):
    for name, plane in planes(one, volume, tmp_path / str(number)).items():
      np.testing.assert_allclose(fused[name], plane, atol=1e-3)  # float16
  planes_of = list(fused.values())
  assert min(np.abs(a - b).max() for a, b in zip(planes_of, planes_of[1:], strict=False)) > 0.05


def test_masks_alone_are_those_of_the_members(members, volume):
  shapes = set()
  for threshold in (0.3, 0.45, 0.6):
    fused = specialists(members).predict(volume, fusion="independent", threshold=threshold)
    for one in members:
      found = one.predict(volume, fusion="independent", threshold=threshold)
      for name, mask in found.masks.items():
        np.testing.assert_array_equal(fused.masks[name], mask)
        if mask.any() and not mask.all():
          shapes.add(name)
  assert shapes == {"liver", "spleen", "pancreas", "kidney"}, "masks must have a shape to compare"


def test_they_compete_for_voxels(members, volume):
  """In a part of the classes, too, and whatever the budget of memory."""
  one = specialists(members)
  label = one.predict(volume, threshold=0.3).label.array
  np.testing.assert_array_equal(one.predict(volume, threshold=0.3, memory_bytes=0).label.array,
                                label)
  assert len(set(np.unique(label)) - {0}) >= 2
  part = one.predict(volume, ["kidney", "liver"], threshold=0.3).label.array
  assert set(np.unique(part)) <= {0, 1, 4}


def test_parameters_are_the_sum(members):
  assert score.parameters(specialists(members)) == sum(map(score.parameters, members))


def test_what_does_not_fit_is_refused(members):
  with pytest.raises(InputError, match="see images differently"):
    specialists([members[0], member(3, ["kidney"], spacing=(1.0, 1.0, 1.0))])
  with pytest.raises(InputError, match="two of them know a class"):
    specialists([members[0], member(3, ["liver"])])
