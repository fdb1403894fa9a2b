"""The user's cache folder: prepared data and compiled programs."""

import os
from pathlib import Path

LIMIT = 4_000_000_000  # bytes of compiled programs that are kept


def folder(part: str) -> Path:
  """Where a part of the cache lies: below `$XDG_CACHE_HOME` or `~/.cache`."""
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(base) / "condseg_jax" / part


def enable_compilation_cache() -> None:
  """From here on, compiled programs are kept on the disk and found there by later processes.

  They lie in `xla` of the user's cache folder, the oldest of which are dropped at `LIMIT`; a
  folder given by JAX_COMPILATION_CACHE_DIR is used as it is, with the thresholds that jax has or
  was given. Where the folder cannot be written, everything is compiled anew.
  """
  import jax  # --help must not wait for it

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
  # The start of a run compiles many small programs; jax would keep those of more than a second.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  jax.config.update("jax_compilation_cache_dir", str(path))


def drop_oldest(path: Path, limit: int) -> None:
  """Removes the oldest files of a folder until the rest is within a limit, in bytes."""
  found = []
  for file in path.iterdir():
    try:
      status = file.stat()
    except FileNotFoundError:  # another process was faster
      continue
    found.append((status.st_mtime, status.st_size, file))
  total = sum(size for _, size, _ in found)
  for _, size, file in sorted(found):
    if total <= limit:
      break
    file.unlink(missing_ok=True)
    total -= size
