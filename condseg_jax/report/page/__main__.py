"""python -m condseg_jax.report.page [FILE]: installs the viewer of the report page, once.

It is downloaded by npm into the user's cache folder, or copied from FILE, the package as made by
`npm pack`, on a machine without network access.
"""

import sys

from condseg_jax.errors import InputError
from condseg_jax.report.page import viewer

if __name__ == "__main__":
  try:
    print(viewer.fetch(*sys.argv[1:2]))
  except InputError as error:
    sys.exit(f"condseg_jax.report.page: {error}")
