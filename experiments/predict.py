"""The command condseg-predict, from a checkout: python -m experiments.predict --help"""

import sys

from condseg_jax.cli.predict import main

if __name__ == "__main__":
  sys.exit(main())
