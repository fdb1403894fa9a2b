"""ONNX export of trained networks, for runtimes other than JAX."""
