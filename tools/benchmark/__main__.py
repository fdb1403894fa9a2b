"""python -m tools.benchmark SUITE --json=FILE [--data=DIR]

Times the package against a peer, in one run and in turns (A B A B …), and writes the medians:

  {"device": …, "versions": …, "rows": [{"name", "ours", "peer", "ratio", "unit", …}]}

The ratio is how far we are ahead: above 1 is ahead. Suites:

  input    preparing a CT of 512×512×300, and reading random 256×256×32 subvolumes of it

The data that a suite makes stays in --data, by default a temporary folder.
"""

import argparse
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import sys
import tempfile

from tools.benchmark import reading

PACKAGES = ("condseg-jax", "jax", "numpy", "scipy", "nibabel", "tensorstore")
SUITES = {"input": reading.run}


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="tools.benchmark", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("suite", choices=SUITES)
  parser.add_argument("--json", required=True, help="file for the figures")
  parser.add_argument("--data", default="", help="folder for what the suite makes")
  arguments = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as temporary:
    rows = SUITES[arguments.suite](Path(arguments.data or temporary))
  tree = {"device": f"{platform.machine()}, {os.cpu_count()} cores",
          "versions": {"python": platform.python_version(),
                       **{name: importlib.metadata.version(name) for name in PACKAGES}},
          "rows": rows}
  Path(arguments.json).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
  for row in rows:
    print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in row.items()))
  return 0


if __name__ == "__main__":
  sys.exit(main())
