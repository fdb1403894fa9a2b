"""The records of a study, one file per row of its results, and the CSV derived from them.

    OUT/records/STUDY/NAME-KEY.json    what was trained and scored, on which data, and the result

Tables and figures are made from these files alone, without networks or images.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import json
import math
import os
from pathlib import Path
import platform

import jax
import jax.numpy as jnp

from condseg_jax.errors import InputError
from condseg_jax.models.onednn import convolution
from condseg_jax.study import statistics
from condseg_jax.system.atomic import write_text

KEY_DIGITS = 16
CURVE_POINTS = 100

# Fields of a record that belong to the study, not to the result, which studies may share.
_OWN = ("study", "label", "variant", "mechanism", "level", "seed", "against", "order",
        "level_name")


def files(folder: Path) -> list[Path]:
  """Returns the record files in a folder, without those still being written."""
  return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def path_of(out: Path, study: str, name: str, key: str) -> Path:
  """Returns the path of a trial's record."""
  return out / "records" / study / f"{name}-{key[:KEY_DIGITS]}.json"


def write(path: Path, record: Mapping) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")


def read(path: Path) -> dict:
  """Reads a record.

  Raises:
    InputError: the record is damaged.
  """
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as error:
    raise InputError(path, f"is not a record ({error})",
                     "remove it and run the study again") from error


def known(path: Path, key: str) -> bool:
  """Returns whether a valid record with this key exists."""
  try:
    return path.exists() and read(path).get("key") == key
  except InputError:
    return False


def borrowed(out: Path, key: str) -> dict:
  """Returns another study's result for the same trainings and cases, or {}."""
  for path in sorted((out / "records").glob(f"*/*-{key[:KEY_DIGITS]}.json")):
    if known(path, key):
      return {name: value for name, value in read(path).items() if name not in _OWN}
  return {}


def of_study(out: Path, study: str) -> list[dict]:
  """Returns the records of a study, ordered by seed, then by name.

  Raises:
    InputError: there are none, they mix source versions, settings or data, or two belong to the
      same trial.
  """
  folder = out / "records" / study
  paths = files(folder)
  found = [read(path) for path in paths]
  cure = f"remove the older ones from {folder}, or run the study with `drop_old`"
  if not found:
    raise InputError(folder, "holds no record", f"run: condseg-study {study}")
  sources = list(dict.fromkeys(record["source"] for record in found))
  if len(sources) > 1:
    by_source = "; ".join(
        f"{s[:12]}: {sum(r['source'] == s for r in found)} record(s), e.g. "
        f"{next(p.name for p, r in zip(paths, found, strict=True) if r['source'] == s)}"
        for s in sources)
    raise InputError(f"study {study}", f"mixes results of different source files ({by_source})",
                     cure)
  seen, alike = {}, {}
  for path, record in zip(paths, found, strict=True):
    settings = [{**config, "seed": None} for config in record["configs"]], record["data"]
    for what, place, value in (("scored on different cases", "", record["truth"]),
                               (f"of {record['label']!r} with different settings or data",
                                record["label"], settings)):
      other, first = alike.setdefault(place, (path.name, value))
      if value != first:
        raise InputError(f"study {study}", f"holds results {what} ({other}, {path.name})", cure)
    place = record["label"], record["seed"]
    if place in seen:
      raise InputError(f"study {study}", f"holds two results of {record['label']!r} with seed "
                       f"{record['seed']} ({seen[place]}, {path.name})", cure)
    seen[place] = path.name
  return sorted(found, key=lambda r: (r["seed"], r["order"]))


def curve(workdir: Path) -> dict:
  """Returns the thinned training curve: {"step": […], "dice": {class: mean soft Dice […]}}."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
  lines = [line for line in lines if "loss" in line]
  starts = [i for i in range(1, len(lines)) if lines[i]["step"] <= lines[i - 1]["step"]]
  lines = lines[starts[-1]:] if starts else lines  # the training was restarted
  every = math.ceil(len(lines) / CURVE_POINTS) if lines else 1
  lines = lines[::-1][::every][::-1]  # keeps the last point
  names = dict.fromkeys(key for line in lines for key in line if key.startswith("dice/"))
  return {"step": [line["step"] for line in lines],
          "dice": {name.removeprefix("dice/"): [_rounded(line.get(name)) for line in lines]
                   for name in names}}


def run_seconds(workdir: Path) -> float:
  """Returns the seconds that a training took over all sessions."""
  return float(json.loads((workdir / "run.json").read_text(encoding="utf-8"))["seconds"])


def machine() -> dict:
  """Describes the machine; the CPU cores are those available to this process."""
  onednn = convolution.usable(jnp.zeros((1,), jnp.float32))
  cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return {"cpus": cpus, "system": f"{platform.system()} {platform.machine()}",
          "platform": jax.default_backend(), "device": jax.devices()[0].device_kind,
          "devices": jax.device_count(), "jax": jax.__version__,
          "convolution": "onednn" if onednn else "xla"}


def write_csv(path: Path, rows: Sequence[Mapping]) -> None:
  """Writes one row per record: trial, scores and provenance.

  `config` holds the settings in which the rows differ; the records hold all settings.
  """
  classes = classes_of(rows)
  flat = statistics.is_flat(rows[0])
  own = list(dict.fromkeys(name for row in rows for name in statistics.own_metrics(row)))
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["study", "dataset", "variant", "mechanism", "level", "seed", "mean_dice",
                   "mean_iou", *(f"mean_{name}" for name in own),
                   *(f"{'iou' if flat else 'dice'} {name}" for name in classes),
                   "parameters", "steps", "config", "key", "source", "git", "machine",
                   "seconds_training", "seconds_scoring"])
  for row, settings in zip(rows, varied(rows), strict=True):
    scores = statistics.row_scores(row)
    of_class = dict(zip(row["scores"]["classes"], scores["classes"], strict=True))
    machine = row["machine"]
    writer.writerow([
        row["study"], row["dataset"], row["variant"], row["mechanism"], _cell(row["level"]),
        row["seed"], _cell(scores["mean_dice"]), _cell(scores["mean_iou"]) if flat else "",
        *(_cell(scores.get(f"mean_{name}")) for name in own),
        *(_cell(of_class.get(name)) for name in classes), row["parameters"],
        "+".join(map(str, row["steps"])),
        json.dumps(settings, separators=(",", ":"), ensure_ascii=False),
        row["key"][:KEY_DIGITS], row["source"][:KEY_DIGITS], row["git"],
        f"{machine['cpus']} {machine['device']} jax {machine['jax']} {machine['convolution']}",
        row["seconds"]["training"], row["seconds"]["scoring"]])
  write_text(path, text.getvalue())


def classes_of(rows: Sequence[Mapping]) -> list[str]:
  """Returns the scored classes in order of appearance."""
  return list(dict.fromkeys(name for row in rows for name in row["scores"]["classes"]))


def varied(rows: Sequence[Mapping]) -> list[dict]:
  """Returns, for every record, the settings in which records differ, by dotted name, without seeds.

  A setting that differs between the members of a record maps to a list of their values.
  """
  flat = [[_flat(config) for config in row["configs"]] for row in rows]
  names = dict.fromkeys(name for members in flat for one in members for name in one)
  found = {name: [[one.get(name) for one in members] for members in flat] for name in names}
  return [{name: values[i][0] if all(v == values[i][0] for v in values[i]) else values[i]
           for name, values in found.items()
           if any(v != values[0][0] for own in values for v in own)}
          for i in range(len(rows))]


def _flat(config: Mapping) -> dict:
  """Returns dotted name → value of the settings in sections; the seed is in none."""
  return {f"{section}.{name}": value for section, tree in config.items()
          if isinstance(tree, Mapping) for name, value in tree.items()}


def _cell(value) -> str:
  return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _rounded(value):
  return None if value is None else round(value, 4)
