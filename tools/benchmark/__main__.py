"""python -m tools.benchmark SUITE --json=FILE [--data=DIR]
python -m tools.benchmark table

Times the package against a peer, alternating in one run (A B A B …), and writes the medians:

  {"device": …, "versions": …, "settings": …,
   "rows": [{"name", "ours", "peer", "ratio", "unit", …}]}

The ratio is how far we are ahead: above 1 is ahead. The peer needs the `bench` extra; without it
its figures stay empty. `table` prints benchmarks/*.json and writes the tables of
benchmarks/README.md and README.md. Suites:
"""

import argparse
from collections.abc import Sequence
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
from tools.benchmark import buckets
from tools.benchmark import cluster
from tools.benchmark import conv
from tools.benchmark import cost
from tools.benchmark import export
from tools.benchmark import large
from tools.benchmark import memory
from tools.benchmark import predict
from tools.benchmark import reading
from tools.benchmark import scale
from tools.benchmark import startup
from tools.benchmark import step
from tools.benchmark import table

PACKAGES = ("condseg-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "nibabel", "tensorstore",
            "onednn-cpu-gomp", "torch", "monai", "distributed")
SUITES = {"conv": conv.run, "step": step.run, "predict": predict.run, "cost": cost.run,
          "input": reading.run, "scale": scale.run, "memory": memory.run,
          "startup": startup.run, "export": export.run, "buckets": buckets.run,
          "cluster": cluster.run, "large": large.run}
PICTURES = {"cost": cost.plot}  # suites with a plot next to the JSON file


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a suite and returns the exit code."""
  restart_with_large_pages(argv)  # as the commands do
  suites = (f"\n  {name:9}{sys.modules[suite.__module__].__doc__.splitlines()[0]}"
            for name, suite in SUITES.items())
  parser = argparse.ArgumentParser(prog="tools.benchmark", description=__doc__ + "".join(suites),
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("suite", choices=(*SUITES, "table"))
  parser.add_argument("--json", help="file for the results")
  parser.add_argument("--data", default="", help="folder for the data of the suite")
  arguments = parser.parse_args(argv)
  if arguments.suite == "table":
    print(table.markdown())
    table.write_pages()
    return 0
  if not arguments.json or not Path(arguments.json).absolute().parent.is_dir():
    parser.error("--json=FILE is required, in an existing folder")
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
  """Describes the machine: architecture, cores, accelerators."""
  text = f"{platform.machine()}, {os.cpu_count()} cores"
  if jax.default_backend() != "cpu":
    text += f", {jax.device_count()} {jax.devices()[0].device_kind}"
  return text


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the installed packages."""
  installed = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return installed


def settings() -> dict[str, str]:
  """Returns the settings that affect the results: memory allocation, convolutions on CPU."""
  active = {"malloc": os.environ.get("GLIBC_TUNABLES", "default")}
  if jax.default_backend() == "cpu":
    active["convolutions"] = "oneDNN" if onednn.usable() else "plain JAX"
  return active


if __name__ == "__main__":
  sys.exit(main())
