"""Wraps the handlers of `convolution.cc` as one differentiable JAX function."""

import ctypes
import functools
import logging
import os
import threading

import jax
import jax.numpy as jnp

from condseg_jax.errors import InputError
from condseg_jax.models.onednn import build

TARGETS = ("condseg_convolution", "condseg_image_gradient", "condseg_kernel_gradient")
LOG = logging.getLogger("condseg_jax")
_LOADING = threading.Lock()


def usable(*arrays: jax.Array) -> bool:
  """Whether a convolution of these can use oneDNN here; builds the handlers the first time.

  Not with several devices: the compiler cannot split a foreign call over them.
  """
  return (all(a.dtype == jnp.float32 for a in arrays) and jax.default_backend() == "cpu"
          and jax.device_count() == 1 and os.environ.get("CONDSEG_ONEDNN") != "0" and load())


def load() -> bool:
  """Registers the handlers with XLA, built if necessary.

  Returns:
    False if they cannot be had; on a platform with oneDNN one line of the log says why.
  """
  with _LOADING:  # threads may trace at the same time
    return _load()


@functools.cache
def _load() -> bool:
  if not build.supported():
    return False
  try:
    handlers = ctypes.CDLL(str(build.build()))
  except (InputError, OSError) as error:
    LOG.warning("convolutions run in plain JAX, so that training on CPU takes about 1.7 times as "
                "long: %s", error)
    return False
  for name in TARGETS:
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(handlers, name)), platform="cpu")
  return True


@jax.custom_vjp
def convolve(x_BDHWC: jax.Array, kernel: jax.Array) -> jax.Array:
  """`layers.convolve` by oneDNN, float32; can be differentiated once, and vmapped.

  Args:
    x_BDHWC: input; without D in 2-D.
    kernel: [*window, C, O], odd window sizes.
  """
  return _call(TARGETS[0], (*x_BDHWC.shape[:-1], kernel.shape[-1]), x_BDHWC, kernel)


def _forward(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _backward(kept, gradient):
  x, kernel = kept
  return (_call(TARGETS[1], x.shape, gradient, kernel),
          _call(TARGETS[2], kernel.shape, x, gradient))


convolve.defvjp(_forward, _backward)


def _call(target: str, shape, *arrays) -> jax.Array:
  call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, jnp.float32),
                          vmap_method="expand_dims")
  return call(*arrays, rank=len(arrays[0].shape))
