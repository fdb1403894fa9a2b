"""The measures of several networks as files: analysis.json, and the same numbers as tidy rows."""

from collections.abc import Iterator, Mapping
import csv
import io
import json
from pathlib import Path

from condseg_jax.atomic import write_text
from condseg_jax.errors import InputError

JSON, CSV = "analysis.json", "analysis.csv"
COLUMNS = ("network", "layer", "part", "level", "measure", "class", "value")


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
  """One row per network, measure, class and layer that has a value; see `COLUMNS`."""
  for network, found in study["networks"].items():
    for measure, table in found["measures"].items():
      for of, values in table.items():
        for layer, value in zip(found["layers"], values, strict=True):
          if value is not None:
            yield network, layer["name"], layer["part"], layer["level"], measure, of, value


def write_csv(folder: Path, study: Mapping) -> None:
  """Writes analysis.csv from the tree that analysis.json holds."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(COLUMNS)
  for *names, value in rows(study):
    writer.writerow([*names, f"{value:.10g}"])
  write_text(folder / CSV, text.getvalue())
