"""condseg-verify DIR [--format=LAYOUT] [--json=FILE]

Reads a raw dataset, a prepared store, or a folder of these, from beginning to end, and prints all
that is wrong with it: errors, which training would stumble over, and warnings, which a person
should look at.

  condseg-verify Task03_Liver
  condseg-verify scans --format=folder --modality=ct --json=findings.json

Exit code 1 if there is an error.
"""

import dataclasses
import json
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.prepare import FORMATS


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv, positional="DIR")


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_enum("format", "", ("", *FORMATS[:-2]), "Layout of a raw dataset; guessed when "
                    "empty.", flag_values=values)
  flags.DEFINE_enum("modality", "", ("", "ct", "mr", "rgb"), "folder: what the images are.",
                    flag_values=values)
  flags.DEFINE_string("json", "", "File for the findings.", flag_values=values)


def _work(values: flags.FlagValues, root: str) -> int:
  from condseg_jax.datasets.discover import reader
  from condseg_jax.datasets.verify.findings import table
  from condseg_jax.datasets.verify.raw_checks import verify
  from condseg_jax.system.atomic import write_text

  read = reader(values.format, values.modality) if values.format else None
  findings, count = verify(root, read)
  if findings:
    print(table(findings, root))
  errors = sum(f.severity == "error" for f in findings)
  print(f"{count} cases read: {errors} errors, {len(findings) - errors} warnings")
  if values.json:
    tree = {"root": root, "cases": count, "findings": [dataclasses.asdict(f) for f in findings]}
    write_text(values.json, json.dumps(tree, indent=1) + "\n")
  return 1 if errors else 0


if __name__ == "__main__":
  sys.exit(main())
