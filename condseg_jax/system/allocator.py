"""Settings of the C library's memory allocator (glibc), and of Python's garbage collector."""

from collections.abc import Iterator
import contextlib
import ctypes
import gc

# Parameters of mallopt. Blocks above these thresholds are returned to the system when freed. By
# default glibc raises the mmap threshold up to 32 MB and the trim threshold to twice that, so that
# up to half a CT stays in its heaps.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LEAN, USUAL = ((128 << 10, 1 << 20), (64 << 20, 32 << 20))


@contextlib.contextmanager
def lean_memory(lean: bool = True) -> Iterator[None]:
  """Makes the allocator return freed arrays to the system at once, which takes time.

  Args:
    lean: False changes nothing.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if lean else None

  def set_thresholds(trim: int, mmap: int) -> None:
    if mallopt is not None:
      mallopt(M_TRIM_THRESHOLD, trim)
      mallopt(M_MMAP_THRESHOLD, mmap)
  set_thresholds(*LEAN)
  try:
    yield
  finally:
    set_thresholds(*USUAL)


def freeze_gc() -> None:
  """Exempts all objects that exist now from later garbage collections."""
  gc.collect()
  gc.freeze()


def release_memory() -> None:
  """Returns freed memory to the system, if the C library supports it."""
  gc.collect()
  try:
    ctypes.CDLL(None).malloc_trim(0)
  except (OSError, AttributeError):
    pass
