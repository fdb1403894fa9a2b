"""The studies, packaged as condseg_jax.studies."""
