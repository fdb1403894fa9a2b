"""The configs of the experiments, packaged as condseg_jax.configs."""
