"""The user's cache folder, for prepared data and compiled programs."""

import os
from pathlib import Path

LIMIT = 4_000_000_000  # bytes of compiled programs


def folder(name: str) -> Path:
  """Returns a subfolder of the cache, below `$XDG_CACHE_HOME` or `~/.cache`."""
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(base) / "condseg_jax" / name


def enable_compilation_cache() -> None:
  """Enables JAX's persistent compilation cache.

  The cache is the folder `xla` of the user's cache folder; its oldest files are removed above
  `LIMIT`. A folder set by JAX_COMPILATION_CACHE_DIR is used as it is, with JAX's own thresholds.
  If the folder is not writable, programs are compiled in every process.
  """
  import jax  # deferred: --help must not import it

  if jax.config.jax_compilation_cache_dir:
    return
  path = folder("xla")
  try:
    path.mkdir(parents=True, exist_ok=True)
    drop_oldest(path, LIMIT)
  except OSError:
    return
  if not os.access(path, os.W_OK):
    return
  # A run compiles many small programs at its start; by default JAX caches only those that take more
  # than a second.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  jax.config.update("jax_compilation_cache_dir", str(path))


def drop_oldest(path: Path, limit: int) -> None:
  """Removes the oldest files of a folder until the total size is at most `limit` bytes."""
  files = []
  for file in path.iterdir():
    try:
      status = file.stat()
    except FileNotFoundError:  # removed by another process
      continue
    files.append((status.st_mtime, status.st_size, file))
  total = sum(size for _, size, _ in files)
  for _, size, file in sorted(files):
    if total <= limit:
      break
    file.unlink(missing_ok=True)
    total -= size
