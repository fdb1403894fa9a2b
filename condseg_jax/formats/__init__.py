"""Files to and from `condseg_jax.geometry.Volume`."""
