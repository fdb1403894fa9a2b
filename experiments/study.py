"""Runs studies, from a checkout: condseg-study --help"""

import sys

from condseg_jax.cli.study import main

if __name__ == "__main__":
  sys.exit(main())
