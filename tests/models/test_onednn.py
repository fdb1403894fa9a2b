"""oneDNN's convolutions against XLA's own, when they are used, and how the handlers are built."""

import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.models import build as build_model
from condseg_jax.models import layers
from condseg_jax.models.onednn import build
from condseg_jax.models.onednn import convolution as onednn
from support.tiny import overrides
from support.tiny import write_datasets

ROOT = Path(__file__).parent.parent.parent

@pytest.fixture(scope="module", autouse=True)
def library():
  try:
    build.build()
  except InputError as error:
    pytest.skip(f"oneDNN: {error}")
  assert onednn.load()


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(function, *args):
  def weighted(*args):
    value = function(*args)
    return (value * normal(9, *value.shape)).sum(), value
  return jax.jit(jax.grad(weighted, tuple(range(len(args))), has_aux=True))(*args)


def assert_same(ours, oracle, *args):
  found, expected = value_and_gradients(ours, *args), value_and_gradients(oracle, *args)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("shape, window, channels, features", [
    ((6, 7, 5), (3, 3, 3), 8, 16), ((4, 6, 6), (1, 1, 1), 24, 8), ((1, 5, 4), (3, 3, 3), 1, 3),
    ((5, 4, 6), (5, 1, 3), 3, 2), ((9, 8), (3, 3), 16, 5), ((6, 5), (1, 1), 3, 1)])
def test_it_is_the_native_convolution(shape, window, channels, features):
  assert_same(onednn.convolve, layers.convolve_native,
              normal(0, 2, *shape, channels), normal(1, *window, channels, features))


@pytest.mark.parametrize("shape, window, channels, features", [
    ((6, 7, 5), (3, 3, 3), 8, 16), ((4, 6, 6), (1, 1, 1), 24, 8), ((9, 8), (3, 3), 16, 5)])
def test_bfloat16_is_multiplied_exactly_and_summed_in_float32(shape, window, channels, features):
  """The factors are rounded, nothing else: small whole numbers give the exact convolution."""
  if not onednn.fast_bfloat16():
    pytest.skip("this processor has no bfloat16 instructions")
  draw = lambda seed, *shape: jnp.round(2 * normal(seed, *shape))
  x, kernel = draw(0, 2, *shape, channels), draw(1, *window, channels, features)
  half = lambda function: lambda x, kernel: function(x.astype(jnp.bfloat16), kernel)
  y, gradients = jax.vjp(half(onednn.convolve), x, kernel)
  oracle, of_oracle = jax.vjp(layers.convolve_native, x, kernel)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, oracle.astype(jnp.bfloat16))
  outer = draw(2, *y.shape)
  (image, of_kernel), (image_oracle, kernel_oracle) = (
      gradients(outer.astype(jnp.bfloat16)), of_oracle(outer))
  np.testing.assert_array_equal(image.astype(jnp.bfloat16), image_oracle.astype(jnp.bfloat16))
  np.testing.assert_array_equal(of_kernel, kernel_oracle)  # never rounded


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_it_can_be_vmapped(axes):
  """Over images, over kernels and over both, gradients included."""
  x, kernel = normal(0, 4, 5, 6, 3), normal(1, 3, 3, 3, 2)
  args = [jnp.stack([a, 2 * a, a[::-1]]) if axis == 0 else a
          for a, axis in zip((x, kernel), axes, strict=True)]
  assert_same(jax.vmap(onednn.convolve, axes), jax.vmap(layers.convolve_native, axes), *args)
  outer = [None if axis is None else 1 for axis in axes]
  twice = [a if axis is None else jnp.stack([a, -a], 1)
           for a, axis in zip(args, axes, strict=True)]
  assert_same(jax.vmap(jax.vmap(onednn.convolve, axes), outer),
              jax.vmap(jax.vmap(layers.convolve_native, axes), outer), *twice)


def lowered(*args) -> str:
  jax.clear_caches()  # what was traced under other conditions
  return jax.jit(layers.convolve).lower(*args).as_text()


def test_when_it_is_used(monkeypatch):
  """On one CPU device, in float32, or bfloat16 if it is fast, unless it is turned off."""
  x, kernel = normal(0, 1, 4, 4, 4, 2), normal(1, 3, 3, 3, 2, 2)
  assert build_model.computation_dtype("auto", 16) == jnp.float32
  assert jax.device_count() == 2 and onednn.TARGETS[0] not in lowered(x, kernel)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert onednn.TARGETS[0] in lowered(x, kernel)
  fast = onednn.fast_bfloat16()
  assert (onednn.TARGETS[0] in lowered(x.astype(jnp.bfloat16), kernel)) == fast
  assert build_model.computation_dtype("auto", 16) == (jnp.bfloat16 if fast else jnp.float32)
  assert build_model.computation_dtype("auto", 8) == jnp.float32
  monkeypatch.setenv("CONDSEG_ONEDNN", "0")
  assert onednn.TARGETS[0] not in lowered(x, kernel)


@pytest.mark.parametrize("name, value", [("default_backend", "gpu"), ("device_count", 4)])
def test_nothing_is_built_for_accelerators_or_several_devices(monkeypatch, name, value):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setattr(jax, name, lambda: value)
  monkeypatch.setattr(onednn, "load", lambda: pytest.fail("the handlers are asked for"))
  assert not onednn.usable(normal(0, 1, 4, 4, 2))


def test_other_platforms_keep_plain_jax_without_a_word(monkeypatch, caplog):
  monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
  assert not onednn._load.__wrapped__() and not caplog.records


def test_what_is_missing_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(build.shutil, "which", lambda _: None)
  monkeypatch.delenv("CXX", raising=False)
  with pytest.raises(InputError, match="install g"):
    build.build()
  for compiler in ("false", str(tmp_path / "none" / "g++"), "sh -c 'exit 3'"):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(InputError, match="cannot compile"):
      build.build()
  monkeypatch.setitem(build.PACKAGES, "libdnnl.so", "no-such-package")
  with pytest.raises(InputError, match="no-such-package: is not installed"):
    build.build()
  assert not list(tmp_path.rglob("*.so"))


# --- in processes of their own --------------------------------------------------------------------
# Convolves twice on one device, and prints whether by oneDNN.
CONVOLVE = """
import jax, jax.numpy as jnp
from condseg_jax.cli.shell import configure_logging
from condseg_jax.models import build as build_model
from condseg_jax.models import layers
configure_logging()
for features in (2, 3):
  kernel = jnp.ones((3, 3, 3, 2, features))
  text = jax.jit(layers.convolve).lower(jnp.ones((1, 4, 4, 4, 2)), kernel).as_text()
print("condseg_convolution" in text)
"""
FAILING = """#!/bin/sh
case "$*" in *--version*) echo "g++ $VERSION";; *) echo run >> "$COUNTER"; exit 1;; esac
"""
COUNTING = """#!/bin/sh
echo run >> "$COUNTER"
exec g++ "$@"
"""


@pytest.fixture
def run(tmp_path):
  """Starts a Python process with a cache of its own; returns it."""
  def start(*command, **changes):
    removed = ("CXX", "CONDSEG_ONEDNN", "JAX_NUM_CPU_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache"),
                    "PYTHONPATH": str(ROOT), "COUNTER": str(tmp_path / "compiled")}
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, cwd=ROOT,
                            stderr=subprocess.PIPE, text=True, env=environment | changes)
  return start


def convolve(run, **changes) -> tuple[str, list[str]]:
  """Whether a process used oneDNN, and the lines it logged."""
  out, errors = run("-c", CONVOLVE, **changes).communicate()
  return out.strip(), [line.partition("  ")[2] for line in errors.splitlines()]


def program(path: Path, text: str) -> str:
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return str(path)


@pytest.mark.slow
def test_the_first_use_builds_and_the_second_finds(run):
  assert convolve(run) == ("True", ["building the oneDNN convolution handlers (about 4 s, once)"])
  assert convolve(run, PATH="") == ("True", [])


@pytest.mark.slow
def test_two_processes_at_once_build_once(run, tmp_path):
  compiler = program(tmp_path / "counting", COUNTING)
  processes = [run("-c", CONVOLVE, CXX=compiler) for _ in range(2)]
  ends = [process.communicate() for process in processes]
  assert [out for out, _ in ends] == ["True\n", "True\n"], ends
  assert (tmp_path / "compiled").read_text() == "run\n"


def test_several_devices_build_nothing(run, tmp_path):
  assert convolve(run, JAX_NUM_CPU_DEVICES="2") == ("False", [])
  assert not (tmp_path / "cache").exists()


def test_a_compiler_that_fails_is_not_tried_at_every_start(run, tmp_path):
  program(tmp_path / "bin" / "g++", FAILING)
  changes = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "VERSION": "12"}
  counter = tmp_path / "compiled"

  used, (first, second) = convolve(run, **changes)
  assert used == "False" and first.startswith("building")
  assert "plain JAX" in second and "cannot compile convolution.cc: exit status 1" in second
  assert counter.read_text() == "run\n"

  used, lines = convolve(run, **changes)
  assert used == "False" and len(lines) == 1
  assert "plain JAX" in lines[0] and "before: exit status 1" in lines[0]
  assert counter.read_text() == "run\n"

  convolve(run, **changes | {"VERSION": "13"})  # another compiler deserves a try
  assert counter.read_text() == "run\n" * 2
  process = run("-m", "condseg_jax.models.onednn", **changes | {"VERSION": "13"})
  assert "cannot compile" in process.communicate()[1] and process.returncode == 1
  assert counter.read_text() == "run\n" * 3


@pytest.mark.parametrize("cache", ["file", "/proc"])
def test_a_cache_that_cannot_be_written(run, tmp_path, cache):
  (tmp_path / "file").write_text("a file in place of the folder")
  used, lines = convolve(run, XDG_CACHE_HOME=str(tmp_path / cache))
  assert used == "False" and len(lines) == 1 and "cannot be written" in lines[0]


def test_a_library_that_cannot_be_loaded(run, tmp_path):
  compiler = program(tmp_path / "bad", '#!/bin/sh\nfor last; do case "$last" in *.so) '
                     'echo nothing > "$last";; esac; done\n')
  used, lines = convolve(run, CXX=compiler)
  assert used == "False" and len(lines) == 2 and "plain JAX" in lines[1]


@pytest.mark.slow
def test_training_goes_on_without_a_compiler(run, tmp_path):
  root = write_datasets(tmp_path / "data")
  process = run("-m", "experiments.train", "--config=experiments/configs/base.py",
                f"--workdir={tmp_path / 'run'}", *overrides(root, **{"train.steps": 2}),
                PATH=str(tmp_path))
  errors = process.communicate()[1]
  assert process.returncode == 0, errors
  lines = [line for line in errors.splitlines() if "plain JAX" in line]
  assert len(lines) == 1 and "C++ compiler: not found" in lines[0]
  assert (tmp_path / "run" / "run.json").exists()
