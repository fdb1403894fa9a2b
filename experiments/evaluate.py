"""The command condseg-evaluate, from a checkout: python -m experiments.evaluate --help"""

import sys

from condseg_jax.cli.evaluate import main

if __name__ == "__main__":
  sys.exit(main())
