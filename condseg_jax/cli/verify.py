"""condseg-verify DIR [--format=LAYOUT] [--json=FILE]

Reads all files of a raw dataset, a prepared store, or a folder of these, and prints the defects:
errors, which make training fail, and warnings, which should be inspected.

  condseg-verify Task03_Liver
  condseg-verify scans --format=folder --modality=ct --json=findings.json

--cluster deals the cases to the workers of a Dask cluster (extra `cluster`). Exit code 1 if there
is an error.
"""

from collections.abc import Sequence
import dataclasses
import json
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.datasets.layouts import FORMATS


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, positional="DIR")


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_enum("format", "", ("", *FORMATS), "Layout of a raw dataset; detected if empty.",
                    flag_values=values)
  flags.DEFINE_enum("modality", "", ("", "ct", "mr", "rgb"), "folder: modality of the images.",
                    flag_values=values)
  flags.DEFINE_string("json", "", "Output file for the findings.", flag_values=values)
  shell.define_cluster(values)


def _work(values: flags.FlagValues, root: str) -> int:
  shell.check_cluster(values)
  from condseg_jax.cluster.connect import connected
  from condseg_jax.datasets.discover import reader
  from condseg_jax.datasets.verify.findings import table
  from condseg_jax.datasets.verify.raw_checks import verify
  from condseg_jax.system.atomic import write_text

  read = reader(values.format, values.modality) if values.format else None
  with connected(values.cluster) as cluster, as_flags(read="--format"):
    findings, count = verify(root, read, cluster=cluster)
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
