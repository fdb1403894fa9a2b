"""condseg-fetch NAME --out=DIR [--sha256=HEX]

Downloads a public dataset into DIR/NAME, checks it and unpacks it. Running it again resumes an
interrupted transfer. `condseg-fetch list` lists the datasets.

  condseg-fetch msd_spleen --out=data

For a dataset that requires registration it prints the address and the expected files, with exit
code 1, since nothing was downloaded.
"""

from collections.abc import Sequence
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, positional="NAME")


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "", "Folder for datasets.", flag_values=values)
  flags.DEFINE_string("sha256", "", "Expected SHA-256 of the archive, checked in addition to the "
                      "published digest.", flag_values=values)


def _work(values: flags.FlagValues, name: str) -> int:
  from pathlib import Path

  from condseg_jax.datasets.download.catalogue import Archive
  from condseg_jax.datasets.download.catalogue import DATASETS
  from condseg_jax.datasets.download.fetch import fetch

  if name == "list":
    for known, dataset in DATASETS.items():
      address = dataset.url if isinstance(dataset, Archive) else f"{dataset.page} (registration)"
      print(f"{known:<18} {address}")
    return 0
  if name not in DATASETS:
    raise InputError(f"dataset {name!r}", "unknown dataset",
                     f"choose from: {', '.join(DATASETS)}", usage=True)
  dataset = DATASETS[name]
  step = f"condseg-prepare --format={dataset.format} --out=PREPARED --source="
  if not isinstance(dataset, Archive):
    print(f"{name} requires registration: download it from {dataset.page}\n"
          f"expected files: {dataset.expected}\nthen: {step}FOLDER")
    return 1
  shell.require(values, "out")
  with as_flags(out="--out", sha256="--sha256"):
    folder = fetch(name, dataset, Path(values.out), sha256=values.sha256)
  print(f"fetched {name} ({dataset.licence}) to {folder}\nthen: {step}{folder}")
  if dataset.note:
    print(f"note: {dataset.note}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
