"""ONNX gives the same results as JAX for all supported networks, with native operators."""

import collections
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.export import runtime
from condseg_jax.geometry import Volume
from condseg_jax.infer.sliding_window import window_functions
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from support.networks import CODES
from support.networks import network

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
from condseg_jax.export.network import onnx_halves

WINDOW = (8, 8, 4)


def functions_of(model, params, window=WINDOW, channels=1):
  graphs = onnx_halves(model, params, window, channels)
  return runtime.onnx_functions(graphs, encoder_sees_class=model.encoder_sees_class)


def probabilities(functions, variables, image_BDHWC, ids):
  ids = np.array(ids, np.int32)
  return np.asarray(functions.decode(variables, functions.encode(variables, image_BDHWC, ids), ids))


def assert_same(model, params, window=WINDOW, channels=1, tolerance=1e-5, batch=2):
  """For a batch of windows, and for one, several and repeated classes."""
  functions = functions_of(model, params, window, channels)
  image = np.random.default_rng(2).normal(size=(batch, *window, channels)).astype(np.float32)
  apply, classes = jax.jit(model.apply), [np.full(batch, k, np.int32) for k in range(len(CODES))]
  wanted = jax.nn.sigmoid(jnp.stack([apply({"params": params}, image, k) for k in classes]))
  wanted = np.asarray(wanted)
  for ids in ([3], [0, 4, 1], [2, 2]):
    found = probabilities(functions, None, image, ids)
    assert found.dtype == np.float32 and found.shape == (len(ids), batch, *window)
    np.testing.assert_allclose(found, wanted[ids], atol=tolerance)
  return wanted


NETWORKS = {
    "decoder": {},
    "embedding": {"vector": "embedding", "embedding_size": 3},
    "input": {"position": "input"},
    "head": {"position": "output_head", "mechanism": "dynamic", "vector": "embedding"},
    "head, hash": {"position": "output_head", "mechanism": "dynamic", "activation": "relu"},
    "light decoder": {"decoder_layers_per_level": (0, 1), "from_level": 0},
    "encoder": {"position": "encoder", "vector": "embedding"},
    "none": {"position": "none"},
    "from_level": {"from_level": 0},
    "no layers": {"layers_per_level": (0, 1, 0)},
    "no norm": {"norm": "none"},
    "no norm, input": {"norm": "none", "position": "input"},
    "instance": {"norm": "instance", "activation": "relu"},
    "several groups": {"channels": 16, "growth": 24, "activation": "gelu"},
    "groups of fewer": {"channels": 12, "growth": 6, "activation": "silu"},
    "deep supervision": {"deep_supervision": 1},
    "remat": {"remat": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_probabilities(name):
  model, params = network(**NETWORKS[name])
  found = assert_same(model, params)
  assert found.std() > 0.01, "there must be something to compare"
  across_classes = np.ptp(found, axis=0).max()
  assert across_classes > 1e-3 if model.position != "none" else across_classes == 0


@pytest.mark.slow
@pytest.mark.parametrize("position", ["decoder", "input"])
def test_pictures(position):
  model, params = network((8, 12), 3, strides=((2, 2), (1, 2)), position=position)
  assert_same(model, params, (8, 12), 3)


@pytest.mark.parametrize("settings", [{"encoder_block": "plain"}, {"decoder_block": "residual"},
                                      {"decoder": "fcn", "position": "none"},
                                      {"mechanism": "film"}])
def test_networks_without_an_onnx_form_are_refused(settings):
  model, params = network(**settings)
  with pytest.raises(InputError, match="ONNX export does not support"):
    onnx_halves(model, params, WINDOW, 1)


@pytest.mark.slow
def test_flat_windows():
  """Air: without variation, normalisation divides by almost 0."""
  model, params = network()
  found, plain = functions_of(model, params), window_functions(model)
  for value in (0, -3.7, 1e4):
    image = np.full((1, *WINDOW, 1), value, np.float32)
    np.testing.assert_allclose(probabilities(found, None, image, [1]),
                               probabilities(plain, {"params": params}, image, [1]), atol=1e-4)


@pytest.mark.slow
def test_half_precision_is_exported_in_full():
  model, params = network(dtype=jnp.bfloat16)
  graphs = onnx_halves(model, params, WINDOW, 1)
  assert runtime.check(model, params, graphs, WINDOW, 1) < 1e-5
  assert_same(model.clone(dtype=jnp.float32), params)


def test_operations():
  """One 3-D convolution for each of the network's, however JAX lowers it on this platform."""
  model, params = network()
  encoder, decoder = (onnx.load_from_string(graph) for graph in
                      onnx_halves(model, params, WINDOW, 1))
  counts = [collections.Counter(node.op_type for node in half.graph.node)
            for half in (encoder, decoder)]
  # Stem; one for every layer and join. In the decoder each takes its skip apart; the head.
  assert counts[0]["Conv"] == 1 + (1 + 2 + 1) + 3
  assert counts[1]["Conv"] == 2 * (1 + 2) + 2 * 2 + 1
  assert counts[0]["MaxPool"] == counts[1]["ConvTranspose"] == 2
  assert not {"Loop", "If", "Scan", "Transpose", "Pad"} & (set(counts[0]) | set(counts[1]))
  for half in (encoder, decoder):
    windows = [a.ints for node in half.graph.node if node.op_type == "Conv"
               for a in node.attribute if a.name == "kernel_shape"]
    assert all(len(w) == 3 for w in windows)
  assert [x.name for x in encoder.graph.input] == ["image"]
  assert [x.name for x in decoder.graph.input] == ["x", "skip_0", "skip_1", "class_id"]
  assert decoder.graph.input[-1].type.tensor_type.elem_type == onnx.TensorProto.INT32


def test_the_graph_is_the_same_each_time():
  model, params = network()
  assert onnx_halves(model, params, WINDOW, 1) == onnx_halves(model, params, WINDOW, 1)


@pytest.mark.slow
def test_a_difference_is_found():
  """In one class of five, and for nan."""
  model, params = network(vector="embedding")
  assert runtime.check(model, params, onnx_halves(model, params, WINDOW, 1), WINDOW, 1) < 1e-5
  for value in (10.0, np.nan):
    table = np.array(params["class_vector"]["embedding"])
    table[len(CODES) - 1] = value
    other = {**params, "class_vector": {"embedding": jnp.asarray(table)}}
    with pytest.raises(InputError, match="differs from JAX"):
      runtime.check(model, params, onnx_halves(model, other, WINDOW, 1), WINDOW, 1)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["decoder", "encoder"])
def test_a_volume(position):
  """The same probabilities and label map for a volume of several windows."""
  table = ClassTable.create(["liver", "spleen", "pancreas"])
  model, params = network(position=position, codes=tuple(table.codes.tolist()))
  plan = Plan("mr", (2.0, 1.0, 1.0), WINDOW)
  plain = Predictor(model, {"params": params}, table, plan)
  other = Predictor(model, {"params": params}, table, plan,
                    functions=functions_of(model, params))
  rng = np.random.default_rng(5)
  image = Volume(rng.normal(size=(13, 17, 9)).astype(np.float32), np.diag([1.0, 1.5, 2.5, 1.0]))
  for fusion in ("argmax", "independent"):
    a, b = (p.predict(image, fusion=fusion, threshold=0.45) for p in (plain, other))
    assert 0 < a.label.array.astype(bool).mean() < 1
    assert np.mean(a.label.array == b.label.array) > 0.999
    for name, mask in a.masks.items():
      assert np.mean(mask == b.masks[name]) > 0.999


def test_graphs_that_are_none():
  with pytest.raises(InputError, match="cannot be read by onnxruntime") as error:
    runtime.onnx_functions((b"no", b"graph"), encoder_sees_class=False)
  assert "\n" not in str(error.value)


def test_without_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  with pytest.raises(InputError, match=r"onnxruntime: is not installed \(pip install"):
    runtime.onnx_functions((b"", b""), encoder_sees_class=False)


@pytest.mark.slow
def test_parameters_may_be_on_any_device():
  model, params = network()
  moved = jax.device_put(params, jax.devices()[1])
  assert onnx_halves(model, moved, WINDOW, 1) == onnx_halves(model, params, WINDOW, 1)
