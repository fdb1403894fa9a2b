"""The measures of several networks as files: analysis.json, the same as rows, and a summary."""

from collections.abc import Iterator
from collections.abc import Mapping
import csv
import io
import json
from pathlib import Path

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.report.markup import markdown
from condseg_jax.report.markup import NO_VALUE
from condseg_jax.report.markup import number
from condseg_jax.report.markup import Table
from condseg_jax.system.atomic import write_text

JSON, CSV, SUMMARY = "analysis.json", "analysis.csv", "analysis.md"
COLUMNS = ("network", "run", "layer", "part", "level", "measure", "class", "value")


def write_json(folder: Path, study: Mapping) -> None:
  """Writes analysis.json; a value that is not there is null, and NaN an error."""
  text = json.dumps(study, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  write_text(folder / JSON, text + "\n")


def read_json(folder: Path) -> dict:
  """What `write_json` wrote.

  Raises:
    InputError: it is not there, or is something else.
  """
  path = folder / JSON
  if not path.is_file():
    raise InputError(path, "does not exist", "analyse runs into this folder first")
  try:
    study = json.loads(path.read_text(encoding="utf-8"))
    list(rows(study))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(path, f"is damaged ({error!r})", "analyse the runs again") from error
  return study


def rows(study: Mapping) -> Iterator[tuple]:
  """One row per network, run, measure, class and layer that has a value; see `COLUMNS`."""
  for network, runs in study["networks"].items():
    for run, found in enumerate(runs):
      for measure, table in found["measures"].items():
        for of, values in table.items():
          for layer, value in zip(found["layers"], values, strict=True):
            if value is not None:
              yield network, run, layer["name"], layer["part"], layer["level"], measure, of, value


def write_csv(folder: Path, study: Mapping) -> None:
  """Writes analysis.csv from the tree that analysis.json holds."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(COLUMNS)
  for *names, value in rows(study):
    writer.writerow([*names, f"{value:.10g}"])
  write_text(folder / CSV, text.getvalue())


def write_summary(folder: Path, study: Mapping) -> None:
  """Writes analysis.md: a table of every measure in encoder and decoder of every network."""
  values: dict = {}
  for network, run, _, part, _, measure, _, value in rows(study):
    values.setdefault(measure, {}).setdefault((network, part), {}).setdefault(run, []).append(value)
  cells = [(network, part) for network in study["networks"] for part in ("encoder", "decoder")]
  note = "Means over layers and classes; of several runs their mean [least, most]."
  table = Table("Measures", note, ["measure", *map(", ".join, cells)],
                [[measure, *(_cell(found.get(cell)) for cell in cells)]
                 for measure, found in values.items()])
  write_text(folder / SUMMARY, markdown([table], "Analysis", ""))


def _cell(runs: Mapping | None) -> str:
  if not runs:
    return NO_VALUE
  means = [np.mean(values) for values in runs.values()]
  middle, *ends = (number(value, 2) for value in (np.mean(means), min(means), max(means)))
  return middle if len(means) == 1 else f"{middle} [{', '.join(ends)}]"
