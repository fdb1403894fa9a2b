"""Runs the ONNX encoder and decoder in onnxruntime, with the same interface as in JAX."""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.infer import sliding_window
from condseg_jax.infer.sliding_window import WindowFunctions
from condseg_jax.models.dense_unet import DenseUNet

TOLERANCE = 1e-4  # largest allowed difference of probabilities between the runtimes
CHUNK = 4  # classes decoded at once in the comparison


def require(package: str) -> types.ModuleType:
  """Imports a package of the extra `onnx`.

  Raises:
    InputError: it is not installed.
  """
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise InputError(package, "is not installed",
                     'pip install "condseg-jax[onnx]"') from error


def onnx_functions(graphs: Sequence[bytes], *, encoder_sees_class: bool) -> WindowFunctions:
  """Returns encoder and decoder on the CPU for `infer.sliding_window`; they ignore `variables`.

  Args:
    graphs: encoder and decoder, from `network.onnx_halves` or a bundle.
    encoder_sees_class: see `WindowFunctions`.

  Raises:
    InputError: onnxruntime is not installed or cannot load the graphs.
  """
  encoder, decoder = map(_session, graphs)
  names = [feature.name for feature in encoder.get_outputs()]
  takes_class = {session: any(i.name == "class_id" for i in session.get_inputs())
                 for session in (encoder, decoder)}

  def run(session, inputs, class_id_K):
    if takes_class[session]:
      inputs = {**inputs, "class_id": np.asarray(class_id_K, np.int32)}
    return session.run(None, inputs)

  def encode(_variables, image_BDHWC, class_id_K):
    images_BCDHW = np.moveaxis(np.asarray(image_BDHWC, np.float32), -1, 1)
    return [dict(zip(names, run(encoder, {"image": image[None]}, class_id_K), strict=True))
            for image in images_BCDHW]

  def decode(_variables, features, class_id_K):
    ids = class_id_K if encoder_sees_class else class_id_K[class_id_K >= 0]
    windows = []
    for window in features:
      prob_KDHW, = run(decoder, window, ids)
      # An unconditioned network returns a single plane for all classes.
      windows.append(np.broadcast_to(prob_KDHW, (len(ids), *prob_KDHW.shape[1:])))
    return np.stack(windows, axis=1)

  at_once = (1,) if encoder_sees_class else sliding_window.CLASSES_AT_ONCE
  return WindowFunctions(encode, decode, encoder_sees_class, at_once)


def largest_difference(model: DenseUNet, params: Mapping, functions: WindowFunctions,
                       window: Sequence[int], channels: int) -> float:
  """Returns the largest difference from the probabilities of JAX in float32, over all classes.

  Two windows are compared: white noise, and smoothed noise, which resembles images.

  Args:
    model: the network.
    params: its parameters.
    functions: from `onnx_functions`.
    window: spatial shape of the input.
    channels: of the input.
  """
  noise = np.random.default_rng(0).normal(size=(*window, channels)).astype(np.float32)
  smooth = noise
  for axis in range(len(window)):
    smooth = smooth + np.roll(smooth, 1, axis) + np.roll(smooth, 2, axis)
  smooth /= smooth.std()
  plain, count = sliding_window.window_functions(model.clone(dtype=jnp.float32)), len(model.codes)
  differences = []
  for image in (noise[None], smooth[None]):
    with jax.default_matmul_precision("highest"):
      expected = _all_classes(plain, {"params": params}, image, count)
    actual = _all_classes(functions, None, image, count)
    differences.append(np.max(np.abs(actual - expected)))
  return float(np.max(differences))


def _all_classes(functions: WindowFunctions, variables, image_BDHWC: np.ndarray,
                 count: int) -> np.ndarray:
  """Computes the probabilities of classes 0 to count - 1: float32 [count, B, *window]."""
  chunk, features, chunks = min(CHUNK, count), None, []
  for first in range(0, count, chunk):
    ids = np.minimum(np.arange(first, first + chunk, dtype=np.int32), count - 1)
    if features is None or functions.encoder_sees_class:
      features = functions.encode(variables, image_BDHWC, ids)
    chunks.append(np.asarray(functions.decode(variables, features, ids)))
  return np.concatenate(chunks)[:count]


def check(model: DenseUNet, params: Mapping, graphs: Sequence[bytes], window: Sequence[int],
          channels: int) -> float:
  """Compares graphs with JAX and returns the largest difference, see `largest_difference`.

  Raises:
    InputError: the difference exceeds `TOLERANCE`.
  """
  functions = onnx_functions(graphs, encoder_sees_class=model.encoder_sees_class)
  difference = largest_difference(model, params, functions, window, channels)
  if not difference <= TOLERANCE:
    raise InputError("ONNX", f"differs from JAX by {difference:.2g}, more than {TOLERANCE:g}",
                     "export without ONNX")
  return difference


def _session(graph: bytes):
  onnxruntime = require("onnxruntime")
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  # Spinning threads would compete with the other session and with numpy.
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  try:
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
  except Exception as error:  # the errors of onnxruntime have no public base class
    reason = " ".join(str(error).split())[:160]
    raise InputError("ONNX", f"cannot be read by onnxruntime {onnxruntime.__version__} ({reason})",
                     "export again, or use the runtime jax") from error
