"""The command condseg-analyse, from a checkout: python -m experiments.analyse --help"""

import sys

from condseg_jax.cli.analyse import main

if __name__ == "__main__":
  sys.exit(main())
