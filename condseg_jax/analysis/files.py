"""The measures of several networks as files: analysis.json, analysis.csv and a summary."""

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
  """Writes analysis.json: missing values are null, NaN is an error."""
  text = json.dumps(study, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  write_text(folder / JSON, text + "\n")


def read_json(folder: Path) -> dict:
  """Reads analysis.json.

  Raises:
    InputError: the file is missing or damaged.
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
  """Yields a row of `COLUMNS` per network, run, measure, class and layer with a value."""
  for name, runs in study["networks"].items():
    for run, network in enumerate(runs):
      for measure, table in network["measures"].items():
        for of, values in table.items():
          for layer, value in zip(network["layers"], values, strict=True):
            if value is not None:
              yield name, run, layer["name"], layer["part"], layer["level"], measure, of, value


def write_csv(folder: Path, study: Mapping) -> None:
  """Writes analysis.csv: the rows of analysis.json."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(COLUMNS)
  for *names, value in rows(study):
    writer.writerow([*names, f"{value:.10g}"])
  write_text(folder / CSV, text.getvalue())


def write_summary(folder: Path, study: Mapping) -> None:
  """Writes analysis.md: every measure in the encoder and decoder of every network."""
  values: dict = {}
  for network, run, _, part, _, measure, _, value in rows(study):
    values.setdefault(measure, {}).setdefault((network, part), {}).setdefault(run, []).append(value)
  cells = [(network, part) for network in study["networks"] for part in ("encoder", "decoder")]
  note = "Means over layers and classes; for several runs their mean [minimum, maximum]."
  table = Table("Measures", note, ["measure", *map(", ".join, cells)],
                [[measure, *(_cell(runs_of.get(cell)) for cell in cells)]
                 for measure, runs_of in values.items()])
  write_text(folder / SUMMARY, markdown([table], "Analysis", ""))


def _cell(runs: Mapping | None) -> str:
  if not runs:
    return NO_VALUE
  means = [np.mean(values) for values in runs.values()]
  middle, *ends = (number(value, 2) for value in (np.mean(means), min(means), max(means)))
  return middle if len(means) == 1 else f"{middle} [{', '.join(ends)}]"
