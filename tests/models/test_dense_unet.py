"""The network: where the class enters and has an effect, what is computed once, and shapes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models import layers
from condseg_jax.models.conditioning import MECHANISMS
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import class_logits
from condseg_jax.models.unet import kind_and_level

CODES = (0.7, -0.5, 0.1)
POSITIONS = ("input", "encoder", "decoder", "output_head", "per_class_decoders")
WAYS = [(position, mechanism) for mechanism, m in MECHANISMS.items() for position in m.positions]
WAYS += [("per_class_decoders", "channel")]
# Nothing is jitted below: many nets share their few operations, each of which is compiled once.
FLAT = dict(codes=CODES, strides=((2, 2),), layers_per_level=(1, 1), channels=4, growth=4)
DEEP = dict(codes=CODES, strides=((2, 2), (2, 2)), layers_per_level=(1, 2, 1), channels=4, growth=2)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


IMAGE = normal(0, 2, 48, 48, 1)


@functools.cache
def network(**settings):
  """Returns a small untrained network and its variables."""
  if settings.get("position") == "output_head":
    settings = {"mechanism": "dynamic"} | settings
  model = DenseUNet(**(FLAT | settings))
  return model, model.init(jax.random.key(0), IMAGE, jnp.zeros(2, jnp.int32))


def run(model, variables, image, *class_ids):
  return model.apply(variables, image, jnp.array(class_ids, jnp.int32))


def abstract(model, image_shape, classes=1):
  """Returns shapes of the parameters, of the output of `encode` and of `class_logits`."""
  image, ids = jnp.zeros(image_shape), jnp.zeros((image_shape[0], classes), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image, ids[:, 0])
  features = jax.eval_shape(functools.partial(model.apply, method=model.encode), variables, image,
                            ids[:, 0])
  logits = jax.eval_shape(functools.partial(class_logits, model), variables, image, ids)
  return variables["params"], features, logits


def paths_of(params, part):
  """Returns the modules with parameters named `part`, e.g. "merge_0/join"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  keys = ([k.key for k in path] for path, _ in leaves)
  return {"/".join(k[:k.index(part)]) for k in keys if part in k}


def convolution_work(function, *args):
  """Counts the multiplications of all convolutions of a function."""
  def visit(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "conv_general_dilated":
        # Every output voxel of every output channel meets the kernel of that channel.
        kernel = eqn.invars[1].aval
        outputs = eqn.params["dimension_numbers"].rhs_spec[0]
        yield eqn.outvars[0].aval.size * kernel.size // kernel.shape[outputs]
      for value in eqn.params.values():
        if hasattr(value, "eqns"):
          yield from visit(value)
        elif hasattr(value, "jaxpr"):
          yield from visit(value.jaxpr)
  return sum(visit(jax.make_jaxpr(function)(*args).jaxpr))


# --- the class has an effect -----------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("norm, way, vector", [
    case for case in itertools.product(layers.NORMS, WAYS, ("hash", "embedding"))
    if (case[0] != "none" or not MECHANISMS[case[1][1]].needs_norm)
    and (case[0] == "group" or case[2] == "hash")])
def test_two_classes_differ_inside_the_image_at_initialisation(norm, way, vector):
  """An instance norm erases a condition applied before it, except for the effect of zero padding:
  in such networks the difference was 0.008 to 0.1, decreasing with the size of the image (to 8e-5),
  while these differ by 0.19 to 0.6 at any size. The border is excluded, where padding reveals even
  an erased condition."""
  position, mechanism = way
  model, variables = network(norm=norm, position=position, mechanism=mechanism, vector=vector)
  reach = 5  # of zero padding: 1 each in the stem and block 0, 2 from the coarse block, 1 in merge
  both = np.asarray(run(model, variables, jnp.concatenate([IMAGE, IMAGE]), 0, 0, 1, 1))
  a, b = np.split(both[:, reach:-reach, reach:-reach], 2)
  # A multiplicative condition would be erased completely, with or without padding.
  least = {"dynamic": 0.09, "channel_gate": 0.02, "spatial_gate": 0.02, "spade": 0.02}
  assert np.abs(a - b).mean() > least.get(mechanism, 0.12)
  # The difference is not a constant offset either.
  assert np.std(a - b) > 0.01


def test_position_none_ignores_the_class():
  model, variables = network(position="none")
  np.testing.assert_array_equal(run(model, variables, IMAGE, 0, 0),
                                run(model, variables, IMAGE, 1, 2))
  assert not paths_of(variables["params"], "condition")


@pytest.mark.parametrize("position", POSITIONS)
def test_class_ids_of_one_batch_equal_separate_runs(position):
  model, variables = network(position=position)
  together = run(model, variables, IMAGE, 2, 1)
  for b, class_id in enumerate((2, 1)):
    alone = run(model, variables, IMAGE, class_id, class_id)[b]
    np.testing.assert_allclose(together[b], alone, atol=1e-5)


def test_where_the_condition_has_parameters():
  """Every decoder layer; every encoder layer below the finest level; the first layer."""
  def conditioned(**settings):
    return paths_of(abstract(DenseUNet(**(DEEP | settings)), (1, 4, 8, 1))[0], "condition")

  assert conditioned(position="none") == set()
  assert conditioned(position="input") == {"stem"}
  assert conditioned(position="encoder") == {
      "down_1/layer_0", "down_1/layer_1", "down_1/join", "down_2/layer_0", "down_2/join"}
  finest = {"merge_0/layer_0", "merge_0/join"}
  coarser = {"merge_1/layer_0", "merge_1/layer_1", "merge_1/join"}
  assert conditioned(position="decoder") == finest | coarser
  assert conditioned(position="decoder", from_level=1) == finest | coarser
  assert conditioned(position="decoder", from_level=0) == finest


def test_the_skips_of_cond_enc_are_unconditioned():
  model, variables = network(position="encoder")
  a, b = (model.apply(variables, IMAGE, jnp.full(2, k), method=model.encode) for k in (0, 1))
  np.testing.assert_array_equal(a.skips[0], b.skips[0])
  assert np.abs(a.x - b.x).mean() > 0.05


def test_the_skips_of_cond_2nd_are_conditioned():
  model, variables = network(position="input")
  a, b = (model.apply(variables, IMAGE, jnp.full(2, k), method=model.encode) for k in (0, 1))
  assert np.abs(a.skips[0] - b.skips[0]).mean() > 0.05


def test_unconditioned_decoder_levels_belong_to_encode():
  model = DenseUNet(**DEEP, from_level=0)
  image = jnp.zeros((1, 8, 16, 1))
  features, variables = jax.eval_shape(lambda: model.init_with_output(
      jax.random.key(0), image, method=model.encode))  # no class is asked for
  # x is at level 1, and the finest skip remains.
  assert features.x.shape == (1, 4, 8, 8) and [s.shape for s in features.skips] == [(1, 8, 16, 4)]
  assert set(variables["params"]) == {"stem", "down_0", "down_1", "down_2", "up_1", "merge_1"}


def test_a_dynamic_head_is_the_only_conditioned_part():
  """Three 1×1 layers, written out in numpy from the output of φ for each sample."""
  model, variables = network(position="output_head", vector="embedding", activation="relu")
  # The biases of φ are initialised to zero, so they are perturbed.
  variables = jax.tree.map(lambda p: p + 0.1 * normal(p.size, *p.shape), variables)
  params, ids = variables["params"], jnp.array([1, 2])
  assert not paths_of(params, "condition")
  features = model.apply(variables, IMAGE, method=model.encode)  # no class is asked for
  assert features.skips == () and features.x.shape == (2, 48, 48, 4)
  found = np.asarray(model.apply(variables, features, ids, method=model.decode))

  head = jax.tree.map(np.asarray, params["head"])
  for b, class_id in enumerate((1, 2)):
    context = np.concatenate([np.ravel(features.pooled[b]) / np.sqrt(8),
                              params["class_vector"]["embedding"][class_id] / np.sqrt(8)])
    x = np.asarray(features.x[b])
    for i, (fan_in, features_out) in enumerate(((4, 8), (8, 8), (8, 1))):
      weight = (context @ head[f"weight_{i}"]["kernel"]).reshape(fan_in, features_out)
      bias = context @ head[f"bias_{i}"]["kernel"] + head[f"bias_{i}"]["bias"]
      x = x @ weight + bias
      x = np.maximum(x, 0) if i < 2 else x
    np.testing.assert_allclose(found[b], x[..., 0], atol=1e-4)


def test_a_dynamic_head_pools_the_coarsest_features():
  model, variables = network(position="output_head")
  features, captured = model.apply(variables, IMAGE, method=model.encode,
                                   capture_intermediates=True, mutable=["intermediates"])
  coarsest = captured["intermediates"]["down_1"]["__call__"][0]
  np.testing.assert_allclose(features.pooled, coarsest.mean((1, 2), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("layers, expected", [(None, (1, 2)), ((0, 1), (0, 1))])
def test_the_decoder_can_be_lighter_than_the_encoder(layers, expected):
  params, _, _ = abstract(DenseUNet(**DEEP, decoder_layers_per_level=layers), (1, 8, 16, 1))
  for level, layers_of_level in enumerate(expected):
    assert len(params[f"merge_{level}"]) == layers_of_level + 1  # and the join
  assert [len(params[f"down_{level}"]) - 1 for level in range(3)] == [1, 2, 1]


def test_codes_closer_than_bfloat16_resolves_give_different_logits():
  """Codes 1/1024 apart are one number in bfloat16; with codes in float32 the logits differ."""
  codes = (0.7, 0.7 + 1 / 1024, 0.7)
  assert jnp.bfloat16(codes[0]) == jnp.bfloat16(codes[1])
  model, variables = network(codes=codes, dtype=jnp.bfloat16)
  a, b, c = (run(model, variables, IMAGE, k, k) for k in range(3))
  assert np.any(a != b)
  np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("name, expected", [
    ("stem", ("stem", 0)), ("head", ("head", 0)), ("down_2", ("down", 2)), ("up_0", ("up", 0)),
    ("merge_10", ("merge", 10)), ("class_vector", None), ("coarse_heads_0", None),
    ("decoders", None), ("fuse", None)])
def test_names_of_submodules(name, expected):
  assert kind_and_level(name) == expected


# --- encode once -----------------------------------------------------------------------------
@pytest.mark.parametrize("position", ("none", *POSITIONS))
def test_classes_at_once_equal_single_passes(position):
  model, variables = network(position=position)
  ids = jnp.array([[0, 2, 1], [1, 1, 0]])
  found = class_logits(model, variables, IMAGE, ids)
  for n in range(3):
    np.testing.assert_allclose(found[..., n], model.apply(variables, IMAGE, ids[:, n]), atol=1e-5)


@pytest.mark.parametrize("from_level", [None, 0])
def test_the_encoder_is_computed_once_whatever_the_number_of_classes(from_level):
  """The convolutions take a + n · b operations; a covers the encoder and the skip convolutions."""
  model = DenseUNet(**(DEEP | dict(channels=8)), from_level=from_level)
  image = jnp.zeros((1, 16, 16, 1))
  variables = jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros(1, jnp.int32))

  def work(classes):
    ids = jnp.zeros((1, classes), jnp.int32)
    return convolution_work(functools.partial(class_logits, model), variables, image, ids)

  encode = convolution_work(lambda v: model.apply(v, image, method=model.encode), variables)
  one, two, seven = work(1), work(2), work(7)
  per_class = two - one
  assert seven == one + 6 * per_class
  once = one - per_class
  assert encode > 0 and per_class > 0
  assert once > encode  # the decoder's share of the skips comes on top


def test_an_encoder_that_sees_the_class_runs_for_each():
  """With cond-2nd the work of the encoder grows with the classes, which the count above detects."""
  work = {}
  for position in ("input", "decoder"):
    model = DenseUNet(**DEEP, position=position)
    image = jnp.zeros((1, 16, 16, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros(1, jnp.int32))
    counts = [convolution_work(functools.partial(class_logits, model), variables, image,
                               jnp.zeros((1, n), jnp.int32)) for n in (1, 2)]
    work[position] = counts[1] - counts[0]
  assert work["input"] > 1.5 * work["decoder"]


# --- shapes and numbers ----------------------------------------------------------------------
@pytest.mark.parametrize("strides, shape, shapes", [
    (((2, 2), (2, 2)), (8, 12), [(8, 12), (4, 6), (2, 3)]),
    (((2, 2, 2), (2, 2, 2)), (8, 8, 4), [(8, 8, 4), (4, 4, 2), (2, 2, 1)]),
    (((1, 2, 2), (2, 2, 2)), (4, 8, 8), [(4, 8, 8), (4, 4, 4), (2, 2, 2)]),
    (((1, 3, 2), (2, 1, 2)), (2, 6, 8), [(2, 6, 8), (2, 2, 4), (1, 2, 2)])])
def test_shapes_in_2d_and_3d(strides, shape, shapes):
  model = DenseUNet(codes=CODES, strides=strides, layers_per_level=(1, 2, 1), channels=4, growth=2)
  assert model.ndim == len(shape)
  assert model.stride == tuple(n // m for n, m in zip(shapes[0], shapes[-1], strict=True))
  _, features, logits = abstract(model, (2, *shape, 3), classes=5)
  found = [*(s.shape for s in features.skips), features.x.shape]
  # Features are proportional to depth.
  assert found == [(2, *s, 4 * (level + 1)) for level, s in enumerate(shapes)]
  assert logits.shape == (2, *shape, 5) and logits.dtype == jnp.float32


def test_the_paper_s_network_reaches_an_8x8x1_bottleneck():
  model = DenseUNet(codes=CODES, strides=((2, 2, 2),) * 5, layers_per_level=(1,) * 6, channels=2,
                    growth=2)
  features, _ = jax.eval_shape(lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 32, 256, 256, 1)), method=model.encode))
  assert features.x.shape == (1, 1, 8, 8, 12)


@pytest.mark.parametrize("norm", layers.NORMS)
def test_a_sample_does_not_depend_on_its_batch(norm):
  model, variables = network(norm=norm)
  spoilt = IMAGE.at[1].mul(100.0)
  np.testing.assert_allclose(run(model, variables, spoilt, 0, 1)[0],
                             run(model, variables, IMAGE, 0, 2)[0], atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest():
  model, variables = network(dtype=jnp.bfloat16)
  params, features, logits = abstract(model, IMAGE.shape)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
  assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype(jnp.bfloat16)}
  assert logits.dtype == jnp.float32
  found = np.asarray(run(model, variables, IMAGE, 0, 1))
  # Not computed in bfloat16 and cast: two classes would often tie.
  assert np.any(found != found.astype(jnp.bfloat16).astype(np.float32))
  exact, same = network()
  expected = np.asarray(run(exact, same, IMAGE, 0, 1))
  assert 0 < np.abs(found - expected).mean() < 0.05 * expected.std()


def test_a_decoder_of_the_paper_concatenates_constant_channels():
  """Without normalisation the decoder is, literally, conv over [up, skip, constant] per layer."""
  model, variables = network(norm="none", activation="relu")
  variables = jax.tree.map(lambda p: p + 0.05 * normal(p.size, *p.shape), variables)
  params, ids = variables["params"], jnp.array([1, 2])
  features = model.apply(variables, IMAGE, method=model.encode)
  skip = features.skips[0]
  constant = jnp.asarray(CODES)[ids].reshape(2, 1, 1, 1) * jnp.ones((1, 48, 48, 1))

  def layer(x, p):
    kernel = jnp.concatenate([p["conv"]["kernel"], p["condition"]["kernel"]], axis=2)
    y = layers.convolve_native(jnp.concatenate([x, skip, constant], -1), kernel)
    return jax.nn.relu(y + jnp.broadcast_to(p["conv"]["bias"], y.shape))

  up = layers.Upsample(4, (2, 2)).apply({"params": params["up_0"]}, features.x)
  merge, head = params["merge_0"], params["head"]
  dense = jnp.concatenate([up, layer(up, merge["layer_0"])], -1)
  out = layers.convolve_native(layer(dense, merge["join"]), head["kernel"])[..., 0]
  expected = out + head["bias"].reshape(1, 1, 1)
  np.testing.assert_allclose(run(model, variables, IMAGE, 1, 2), expected, atol=1e-5)
