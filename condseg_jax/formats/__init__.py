"""Readers and writers: files to and from `condseg_jax.geometry.Volume`."""
