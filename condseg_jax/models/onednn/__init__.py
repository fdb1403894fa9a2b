"""Convolutions on CPU by oneDNN, several times as fast as XLA's own: an optional extra.

    pip install "condseg-jax[onednn]"
    python -m condseg_jax.models.onednn     # compiles the handlers, once

From then on float32 convolutions on one CPU device go this way (see `layers.convolve`); with
CONDSEG_ONEDNN=0 they do not. The plain JAX path stays the default and the oracle.
"""
