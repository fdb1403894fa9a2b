"""The memory allocator of the C library, where it is glibc's: speed or thrift."""

from collections.abc import Iterator
import contextlib
import ctypes
import gc

# Of mallopt: what is as large goes back to the system once it is freed. Left alone, glibc raises
# the first limit up to 32 MB and the second to twice that, and keeps half a CT in its heaps.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LEAN, USUAL = ((128 << 10, 1 << 20), (64 << 20, 32 << 20))


@contextlib.contextmanager
def lean_memory(lean: bool = True) -> Iterator[None]:
  """Has the allocator give freed arrays back at once, which costs time; nothing unless `lean`."""
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if lean else None

  def limits(trim: int, mmap: int) -> None:
    if mallopt is not None:
      mallopt(M_TRIM_THRESHOLD, trim)
      mallopt(M_MMAP_THRESHOLD, mmap)
  limits(*LEAN)
  try:
    yield
  finally:
    limits(*USUAL)


def settle() -> None:
  """What is there now stays for good: no later collection need look at it."""
  gc.collect()
  gc.freeze()


def trim() -> None:
  """Gives freed memory back, where the C library can; it would keep it for the next request."""
  gc.collect()
  try:
    ctypes.CDLL(None).malloc_trim(0)
  except (OSError, AttributeError):
    pass
