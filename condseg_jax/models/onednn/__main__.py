"""python -m condseg_jax.models.onednn: compiles the handlers for this machine."""

import sys

from condseg_jax.errors import InputError
from condseg_jax.models.onednn.build import build

if __name__ == "__main__":
  try:
    print(build())
  except InputError as error:
    sys.exit(f"condseg_jax.models.onednn: {error}")
