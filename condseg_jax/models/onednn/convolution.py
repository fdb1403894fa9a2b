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


def usable(*arrays: jax.Array | jax.ShapeDtypeStruct) -> bool:
  """Whether a convolution of these can use oneDNN here; builds the handlers the first time.

  Not with several devices: the compiler cannot split a foreign call over them. Not in bfloat16 on
  processors without instructions for it.
  """
  types = {a.dtype for a in arrays}
  return (types <= {jnp.dtype("float32"), jnp.dtype("bfloat16")}
          and jax.default_backend() == "cpu" and jax.device_count() == 1
          and os.environ.get("CONDSEG_ONEDNN") != "0" and load()
          and (jnp.dtype("bfloat16") not in types or fast_bfloat16()))


@functools.cache
def fast_bfloat16() -> bool:
  """Whether the processor has instructions for bfloat16 (AVX-512 BF16 or AMX); needs `load`."""
  function = ctypes.CDLL(str(build.build())).condseg_fast_bfloat16
  function.restype = ctypes.c_bool
  return function()


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
  """`layers.convolve` by oneDNN; can be differentiated once, and vmapped.

  Sums are in float32, and so is the gradient of the kernel.

  Args:
    x_BDHWC: input, float32 or bfloat16; without D in 2-D.
    kernel: [*window, C, O], float32, odd window sizes; multiplied in the dtype of the input.
  """
  return _call(TARGETS[0], (*x_BDHWC.shape[:-1], kernel.shape[-1]), x_BDHWC.dtype, x_BDHWC, kernel)


def _forward(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _backward(kept, gradient):
  x, kernel = kept
  return (_call(TARGETS[1], x.shape, x.dtype, gradient, kernel),
          _call(TARGETS[2], kernel.shape, kernel.dtype, x, gradient))


convolve.defvjp(_forward, _backward)


def _call(target: str, shape, dtype, *arrays) -> jax.Array:
  call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, dtype), vmap_method="expand_dims")
  return call(*arrays, rank=len(arrays[0].shape))
