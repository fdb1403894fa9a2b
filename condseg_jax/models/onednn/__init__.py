"""Convolutions on CPU by oneDNN, several times as fast as XLA's own.

float32 convolutions on a single CPU device use it (see `layers.convolve`), on Linux x86-64 with a
C++ compiler. The handlers are compiled when they are first needed, or by

    python -m condseg_jax.models.onednn

Without them, or with CONDSEG_ONEDNN=0, convolutions run in plain JAX, which is also the oracle of
the tests.
"""
