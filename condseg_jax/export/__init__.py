"""A trained model as one file: the bundle, and within it ONNX for runtimes other than JAX."""
