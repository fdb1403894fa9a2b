"""The command condseg-train, from a checkout: python -m experiments.train --help"""

import sys

from condseg_jax.cli.train import main

if __name__ == "__main__":
  sys.exit(main())
