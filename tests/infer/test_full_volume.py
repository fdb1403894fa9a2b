"""A volume split over devices gives the same result as undivided, with less memory on each."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from condseg_jax.infer import full_volume
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import class_logits
from condseg_jax.train.state import variables

CODES = (0.7, -0.5, 0.1)


def network(ndim, **settings):
  """A network whose variables are moved away from their symmetric initialisation."""
  model = DenseUNet(codes=CODES, strides=((2,) * ndim,), layers_per_level=(1, 1), channels=4,
                    growth=4, **settings)
  image, ids = jnp.zeros((1, *model.stride, 1)), jnp.zeros(1, jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, ids)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype),
                        shapes["params"])
  # Plausible batch moments: means 0 and squares 1.
  moments = jax.tree.map(lambda s: jnp.zeros(s.shape).at[1].set(1.0), shapes.get("statistics", {}))
  return model, variables(params, moments)


def two_devices():
  return full_volume.make_mesh(jax.devices()[:2])


@pytest.mark.slow
@pytest.mark.parametrize("ndim, norm, position, mechanism", [
    (2, "group", "input", "channel"), (2, "instance", "encoder", "channel"),
    (3, "group", "decoder", "channel"), (3, "instance", "input", "channel"),
    (2, "group", "output_head", "dynamic"), (2, "group", "output_head", "output"),
    (2, "group", "per_class_decoders", "channel"),
    (2, "group", "encoder", "film"), (2, "instance", "decoder", "norm"),
    (2, "group", "decoder", "batch_norm"), (2, "group", "input", "channel_gate"),
    (2, "group", "decoder", "spatial_gate"), (2, "group", "decoder", "spade")])
def test_value_and_gradient_are_those_of_the_undivided_network(ndim, norm, position, mechanism):
  """For every conditioning position, at the borders of the volume and at the cuts."""
  model, weights = network(ndim, norm=norm, position=position, mechanism=mechanism)
  rng = np.random.default_rng(1)
  image = jnp.asarray(rng.normal(size=(1, 8, *(4,) * (ndim - 1), 1)), jnp.float32)
  ids = jnp.array([[2, 0]], jnp.int32)

  def value(logits, variables):
    found = logits(variables, image, ids)
    return jnp.mean((jax.nn.sigmoid(found) - 0.3) ** 2), found

  split = full_volume.partitioned_logits(model, two_devices())
  (_, a), gradient_a = jax.jit(jax.value_and_grad(
      functools.partial(value, functools.partial(class_logits, model)), has_aux=True))(weights)
  (_, b), gradient_b = jax.jit(jax.value_and_grad(
      functools.partial(value, split), has_aux=True))(weights)
  np.testing.assert_allclose(a, b, atol=1e-5)
  assert max(np.abs(g).max() for g in jax.tree.leaves(gradient_a)) > 5e-3
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient_a, gradient_b)


@pytest.mark.parametrize("position", ["decoder", "input", "output_head"])
def test_probabilities_of_a_volume_that_is_no_multiple(position):
  """It is edge-padded and cropped again; classes are in the requested order."""
  model, weights = network(3, position=position,
                             mechanism="dynamic" if position == "output_head" else "channel")
  image = np.random.default_rng(2).normal(size=(6, 4, 5, 1)).astype(np.float32)
  slabs = list(full_volume.full_volume_slabs(model, weights, image, [2, 0], jax.devices()[:2]))
  assert [s.class_ids for s in slabs] == [[2], [0]]
  assert [s.box for s in slabs] == [(slice(0, 6), slice(0, 4), slice(0, 5))] * 2
  found = np.concatenate([s.planes for s in slabs])
  padded = np.pad(image, ((1, 1), (0, 0), (0, 1), (0, 0)), mode="edge")[None]
  logits = jax.jit(functools.partial(class_logits, model))(weights, padded,
                                                           np.array([[2, 0]], np.int32))
  expected = np.moveaxis(jax.nn.sigmoid(logits)[0, 1:7, :, :5], -1, 0)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_two_devices_need_half_the_memory_each():
  """As reported by XLA for the compiled gradient, which is not run."""
  model, weights = network(2)
  temporary = []
  for devices in (jax.devices()[:1], jax.devices()[:2]):
    mesh = full_volume.make_mesh(devices)

    def placed(x, spec, mesh=mesh):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    logits = full_volume.partitioned_logits(model, mesh)
    program = jax.jit(jax.grad(lambda v, *rest, f=logits: jnp.mean(f(v, *rest)))).lower(
        jax.tree.map(lambda x: placed(x, P()), weights),
        placed(jax.ShapeDtypeStruct((1, 512, 64, 1), jnp.float32), full_volume.SPLIT),
        placed(jax.ShapeDtypeStruct((1, 1), jnp.int32), P()))
    temporary.append(program.compile().memory_analysis().temp_size_in_bytes)
  assert temporary[0] > 1e6
  assert temporary[1] < 0.6 * temporary[0]
