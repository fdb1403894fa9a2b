"""python -m tools.benchmark SUITE --json=FILE [--data=DIR]
python -m tools.benchmark table

Times the package against a peer, in one run and in turns (A B A B …), and writes the medians:

  {"device": …, "versions": …, "settings": …,
   "rows": [{"name", "ours", "peer", "ratio", "unit", …}]}

The ratio is how far we are ahead: above 1 is ahead. The peer needs the `bench` extra; without it
its figures stay empty. `table` prints benchmarks/*.json and puts them into the README. Suites:
"""

import argparse
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import sys
import tempfile

import jax

from condseg_jax.models.onednn import convolution as onednn
from condseg_jax.system.large_pages import restart_with_large_pages
from tools.benchmark import conv
from tools.benchmark import cost
from tools.benchmark import export
from tools.benchmark import memory
from tools.benchmark import predict
from tools.benchmark import reading
from tools.benchmark import scale
from tools.benchmark import startup
from tools.benchmark import step
from tools.benchmark import table

PACKAGES = ("condseg-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "nibabel", "tensorstore",
            "onednn-cpu-gomp", "torch", "monai")
SUITES = {"conv": conv.run, "step": step.run, "predict": predict.run, "cost": cost.run,
          "input": reading.run,
          "scale": scale.run, "memory": memory.run, "startup": startup.run,
          "export": export.run}
PICTURES = {"cost": cost.plot}  # drawn beside the figures


def main(argv=None) -> int:
  restart_with_large_pages(argv)  # as the commands do
  said = (f"\n  {name:9}{sys.modules[suite.__module__].__doc__.splitlines()[0]}"
          for name, suite in SUITES.items())
  parser = argparse.ArgumentParser(prog="tools.benchmark", description=__doc__ + "".join(said),
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("suite", choices=(*SUITES, "table"))
  parser.add_argument("--json", help="file for the figures")
  parser.add_argument("--data", default="", help="folder for what the suite makes")
  arguments = parser.parse_args(argv)
  if arguments.suite == "table":
    print(table.markdown())
    table.into_readme()
    return 0
  if not arguments.json or not Path(arguments.json).absolute().parent.is_dir():
    parser.error("--json=FILE is needed, in a folder that exists")
  with tempfile.TemporaryDirectory() as temporary:
    rows = SUITES[arguments.suite](Path(arguments.data or temporary))
  tree = {"device": device(), "versions": versions(), "settings": settings(), "rows": rows}
  path = Path(arguments.json)
  path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
  if arguments.suite in PICTURES:
    PICTURES[arguments.suite](rows, path.with_suffix(".png"))
  for row in rows:
    print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in row.items()))
  return 0


def device() -> str:
  """The machine as the figures depend on it."""
  text = f"{platform.machine()}, {os.cpu_count()} cores"
  if jax.default_backend() != "cpu":
    text += f", {jax.device_count()} {jax.devices()[0].device_kind}"
  return text


def versions() -> dict[str, str]:
  """Of Python and of the packages that are there."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found


def settings() -> dict[str, str]:
  """What else the figures depend on: by what we convolve on a CPU, and how memory is given."""
  found = {"malloc": os.environ.get("GLIBC_TUNABLES", "default")}
  if jax.default_backend() == "cpu":
    found["convolutions"] = "oneDNN" if onednn.usable() else "plain JAX"
  return found


if __name__ == "__main__":
  sys.exit(main())
