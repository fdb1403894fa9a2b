"""One network from many single-class datasets: class-conditional segmentation in JAX.

    import condseg_jax
    predictor = condseg_jax.load("runs/phantom")
    label = predictor.predict(condseg_jax.read("ct.nii.gz")).label
"""

__version__ = "0.2.0"

__all__ = ["load", "read", "__version__"]


def __getattr__(name: str):
  """Imports the library's front door when it is first used: `--help` must not wait for jax."""
  if name == "load":
    from condseg_jax.loading import load
    return load
  if name == "read":
    from condseg_jax.formats.files import read_volume
    return read_volume
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
