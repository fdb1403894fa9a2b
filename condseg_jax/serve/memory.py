"""Memory that is not needed any more, back to the system."""

import ctypes
import gc


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
