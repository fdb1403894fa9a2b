"""The network's halves in onnxruntime, with the interface that they have in JAX."""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.infer import sliding_window
from condseg_jax.infer.sliding_window import WindowFunctions
from condseg_jax.models.dense_unet import DenseUNet

TOLERANCE = 1e-4  # between the probabilities of the two runtimes
CHUNK = 4  # classes decoded at once where the two are compared


def require(package: str):
  """A package of the extra `onnx`.

  Raises:
    InputError: it is not installed.
  """
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise InputError(package, "is not installed",
                     'pip install "condseg-jax[onnx]"') from error


def onnx_functions(graphs: Sequence[bytes], *, encoder_sees_class: bool) -> WindowFunctions:
  """Encoder and decoder for `infer.sliding_window`, on the CPU; `variables` are not looked at.

  Args:
    graphs: of `network.onnx_halves`, or a bundle's.
    encoder_sees_class: of the network.

  Raises:
    InputError: onnxruntime is not installed, or cannot read the graphs.
  """
  encoder, decoder = map(_session, graphs)
  names = [feature.name for feature in encoder.get_outputs()]
  takes_class = {session: any(i.name == "class_id" for i in session.get_inputs())
                 for session in (encoder, decoder)}

  def run(session, inputs, class_id_K):
    if takes_class[session]:
      inputs = {**inputs, "class_id": np.asarray(class_id_K, np.int32)}
    return session.run(None, inputs)

  def encode(variables, image_BDHWC, class_id_K):
    images_BCDHW = np.moveaxis(np.asarray(image_BDHWC, np.float32), -1, 1)
    return [dict(zip(names, run(encoder, {"image": image[None]}, class_id_K), strict=True))
            for image in images_BCDHW]

  def decode(variables, features, class_id_K):
    wanted = class_id_K if encoder_sees_class else class_id_K[class_id_K >= 0]
    found = []
    for window in features:
      prob_KDHW, = run(decoder, window, wanted)
      # One plane for all classes, where the network knows of none.
      found.append(np.broadcast_to(prob_KDHW, (len(wanted), *prob_KDHW.shape[1:])))
    return np.stack(found, axis=1)

  at_once = (1,) if encoder_sees_class else sliding_window.CLASSES_AT_ONCE
  return WindowFunctions(encode, decode, encoder_sees_class, at_once)


def largest_difference(model: DenseUNet, params: Mapping, functions: WindowFunctions,
                       window: Sequence[int], channels: int) -> float:
  """The largest difference to the probabilities that JAX finds in float32, over all classes.

  Two windows are looked at: white noise, and noise that is smooth as images are.

  Args:
    model, params: the network.
    functions: of `onnx_functions`.
    window, channels: of its input.
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
      wanted = _all_classes(plain, {"params": params}, image, count)
    found = _all_classes(functions, None, image, count)
    differences.append(np.max(np.abs(found - wanted)))
  return float(np.max(differences))


def _all_classes(functions: WindowFunctions, variables, image_BDHWC: np.ndarray,
                 count: int) -> np.ndarray:
  """The probabilities of classes 0 to count - 1, a few at a time: float32 [count, B, *window]."""
  chunk, features, found = min(CHUNK, count), None, []
  for first in range(0, count, chunk):
    ids = np.minimum(np.arange(first, first + chunk, dtype=np.int32), count - 1)
    if features is None or functions.encoder_sees_class:
      features = functions.encode(variables, image_BDHWC, ids)
    found.append(np.asarray(functions.decode(variables, features, ids)))
  return np.concatenate(found)[:count]


def check(model: DenseUNet, params: Mapping, graphs: Sequence[bytes], window: Sequence[int],
          channels: int) -> float:
  """Compares graphs with JAX and returns the largest difference.

  Raises:
    InputError: it is more than `TOLERANCE`.
  """
  functions = onnx_functions(graphs, encoder_sees_class=model.encoder_sees_class)
  difference = largest_difference(model, params, functions, window, channels)
  if not difference <= TOLERANCE:
    raise InputError("ONNX", f"differs from JAX by {difference:.2g}, more than {TOLERANCE:g}",
                     "export without --onnx")
  return difference


def _session(graph: bytes):
  onnxruntime = require("onnxruntime")
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  # Threads that wait by spinning would take the processor from the other half and from numpy.
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  try:
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
  except Exception as error:  # onnxruntime's own kinds, none of which has a public base
    reason = " ".join(str(error).split())[:160]
    raise InputError("ONNX", f"cannot be read by onnxruntime {onnxruntime.__version__} ({reason})",
                     "export anew, or leave --runtime out") from error
