"""python -m condseg_jax.report.page [FILE]: gets the viewer of the page, once.

By npm, into the user's cache folder; or from FILE, the package as npm packs it, where there is no
network.
"""

import sys

from condseg_jax.errors import InputError
from condseg_jax.report.page import viewer

if __name__ == "__main__":
  try:
    print(viewer.fetch(*sys.argv[1:2]))
  except InputError as error:
    sys.exit(f"condseg_jax.report.page: {error}")
