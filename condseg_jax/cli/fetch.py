"""condseg-fetch NAME --out=DIR [--sha256=HEX]

Downloads a public dataset into DIR/NAME, checks it and unpacks it. The same command goes on where a
transfer broke off. `condseg-fetch list` names the datasets.

  condseg-fetch msd_spleen --out=data

For a dataset behind a licence form it says where to get it and what to expect, with exit code 1,
since nothing was downloaded.
"""

import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv, positional="NAME")


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "", "Folder for datasets.", flag_values=values)
  flags.DEFINE_string("sha256", "", "Demand this SHA-256 of the archive, besides the published "
                      "digest.", flag_values=values)


def _work(values: flags.FlagValues, name: str) -> int:
  from pathlib import Path

  from condseg_jax.datasets.download.catalogue import Archive
  from condseg_jax.datasets.download.catalogue import DATASETS
  from condseg_jax.datasets.download.fetch import fetch

  if name == "list":
    for known, dataset in DATASETS.items():
      place = dataset.url if isinstance(dataset, Archive) else f"{dataset.page} (licence form)"
      print(f"{known:<18} {place}")
    return 0
  if name not in DATASETS:
    raise InputError(f"dataset {name!r}", "is not known", f"one of {', '.join(DATASETS)}",
                     usage=True)
  dataset = DATASETS[name]
  step = f"condseg-prepare --format={dataset.format} --out=PREPARED --source="
  if not isinstance(dataset, Archive):
    print(f"{name} is behind a licence form: get it at {dataset.page}\n"
          f"its folder should hold {dataset.expected}\nthen: {step}FOLDER")
    return 1
  shell.require(values, "out")
  folder = fetch(name, dataset, Path(values.out), sha256=values.sha256)
  print(f"fetched {name} ({dataset.licence}) to {folder}\nthen: {step}{folder}")
  if dataset.note:
    print(f"note: {dataset.note}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
