"""python -m condseg_jax.models.onednn: compiles the handlers, even where that failed before."""

import logging
import sys

from condseg_jax.errors import InputError
from condseg_jax.models.onednn import build


def main() -> int:
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  try:
    if not build.supported():
      raise InputError("oneDNN", "is available on Linux x86-64 only", "nothing to do")
    print(build.build(retry=True))
  except InputError as error:
    print(f"condseg_jax.models.onednn: {error}; convolutions run in plain JAX", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
