"""The user's cache folder, and that a second process compiles nothing that the first compiled."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from condseg_jax.system import cache

# Compiles one program and prints the hits and misses of the compilation cache.
CHILD = """
from condseg_jax.system.cache import enable_compilation_cache
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
enable_compilation_cache()
step = jax.jit(lambda x, y: jnp.tanh(x) @ y, donate_argnums=0)
print(float(step(jnp.ones((8, 8)), jnp.ones((8, 8)))[0, 0]))
print(sum(name.endswith("cache_hits") for name in found),
      sum(name.endswith("cache_misses") for name in found))
"""


@pytest.fixture(autouse=True)
def no_cache_of_the_tests(monkeypatch):
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    monkeypatch.delenv(name, raising=False)


def run(folder, **environment):
  variables = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder), **environment}
  done = subprocess.run([sys.executable, "-W", "error", "-c", CHILD], text=True,
                        capture_output=True, env=os.environ | variables)
  assert done.returncode == 0 and not done.stderr, done.stderr
  value, counts = done.stdout.splitlines()
  return value, *map(int, counts.split())


def test_a_second_process_compiles_nothing(tmp_path):
  value, hits, misses = run(tmp_path)
  assert hits == 0 and misses > 0
  assert list((tmp_path / "condseg_jax" / "xla").iterdir())
  assert run(tmp_path) == (value, misses, 0)


def test_a_folder_that_the_user_named_is_used(tmp_path):
  mine = tmp_path / "mine"
  run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(mine),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
  assert list(mine.iterdir()) and not (tmp_path / "condseg_jax").exists()


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path):
  (tmp_path / "condseg_jax").write_text("a file in its place")
  assert run(tmp_path) == run(tmp_path)


def test_where_it_lies(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache.folder("prepared") == tmp_path / "condseg_jax" / "prepared"
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  for unset in (monkeypatch.delenv, lambda name: monkeypatch.setenv(name, "")):
    unset("XDG_CACHE_HOME")
    assert cache.folder("xla") == tmp_path / "home" / ".cache" / "condseg_jax" / "xla"


@pytest.mark.parametrize(("limit", "kept"), [(30, "abc"), (29, "bc"), (10, "c"), (0, "")])
def test_the_oldest_are_dropped(limit, kept, tmp_path):
  for age, name in enumerate("cba"):
    Path(tmp_path / name).write_bytes(bytes(10))
    os.utime(tmp_path / name, (1000 - age, 1000 - age))
  cache.drop_oldest(tmp_path, limit)
  assert "".join(sorted(p.name for p in tmp_path.iterdir())) == kept
