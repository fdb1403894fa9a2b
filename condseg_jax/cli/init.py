"""condseg-init FOLDERS… --out=FILE.py [--minutes=60] [--modality=ct|mr|rgb]

Looks at raw datasets, prepares them, times this machine, and writes a config that trains one
network on all of them in the given minutes. Nothing else has to be decided:

  condseg-init RAW/liver RAW/spleen --out=mine.py --minutes=60
  condseg-train --config=mine.py --workdir=RUN

FOLDERS are datasets of any layout that is detected (see condseg-verify), folders of images/ and
masks/, descriptions (.yaml), or folders that contain several of these. A folder of stores of
condseg-prepare is used as it is. What is prepared here is kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.cli.init_config import commands
from condseg_jax.cli.init_config import config_text
from condseg_jax.cli.init_config import counted
from condseg_jax.cli.init_config import NAMES
from condseg_jax.errors import InputError
from condseg_jax.system.atomic import replacing
from condseg_jax.system.large_pages import restart_with_large_pages

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.data.store import Store
  from condseg_jax.datasets.raw import RawFolder

LEAST_MINUTES = 0.5  # in which a run can begin at all: its step is compiled first


@dataclasses.dataclass(frozen=True)
class Source:
  """A dataset that was found.

  Attributes:
    folder: as it was read.
    modality_reason: why it has its modality.
  """

  folder: RawFolder
  modality_reason: str


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv, positional="FOLDERS", several=True)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "", "Config file to write; an existing one is never replaced.",
                      flag_values=values)
  flags.DEFINE_float("minutes", 60.0, "Time for the training.", flag_values=values)
  flags.DEFINE_enum("modality", "", ("", "ct", "mr", "rgb"), "Modality of datasets that do not "
                    "declare it; guessed from their headers and intensities if empty.",
                    flag_values=values)
  flags.DEFINE_list("spacing", [], "Target spacing D,H,W in mm (H,W in pixels in 2-D); the median "
                    "of the training cases if empty.", flag_values=values)


def _work(values: flags.FlagValues, arguments: list[str]) -> int:
  shell.require(values, "out")
  out, spacing = Path(values.out), _spacing(values.spacing)
  _check_out(out)
  if not (math.isfinite(values.minutes) and values.minutes >= LEAST_MINUTES):
    raise InputError("--minutes", f"{values.minutes:g} leave no time for a useful step",
                     f"give {LEAST_MINUTES:g} or more", usage=True)
  from condseg_jax.data.store import open_prepared
  from condseg_jax.datasets.discover import prepare_together
  from condseg_jax.system.cache import enable_compilation_cache
  from condseg_jax.train.candidates import choose
  from condseg_jax.train.candidates import starting_config

  paths = [Path(os.path.abspath(argument)) for argument in arguments]
  stores, sources = _prepared(paths, spacing), list[Source]()
  if not stores:
    try:
      sources = find(paths, values.modality)
    except InputError as error:  # whatever it is, the command was given the wrong folders
      raise InputError(error.subject, error.reason, error.cure, usage=True) from error
    for source in sources:
      print(f"{source.folder.root}: {_summary(source)}", flush=True)
  if not verified(paths, sources):
    return 1
  root: os.PathLike = paths[0]
  if not stores:
    with as_flags(spacing="--spacing"):
      root = prepare_together([source.folder for source in sources], spacing)
    stores = open_prepared(root)
  enable_compilation_cache()
  print("timing steps on this machine", flush=True)
  with as_flags(minutes="--minutes", spacing="--spacing"):
    choice = choose(starting_config(root, stores, values.minutes), stores)
  given = [values[name].serialize() for name in ("modality", "spacing") if values[name].value]
  summaries = [f"{source.folder.root}: {_summary(source)}" for source in sources] or [
      f"{store.root}: {counted(len(store.cases), 'case')}, {', '.join(store.table.names)}"
      for store in stores]
  text = config_text(out, [*arguments, f"--out={out}", *given], summaries, stores, choice)
  _write_new(out, text)
  print(f"wrote {out}: {choice.description}\nnext: {commands(out)[0]}")
  return 0


def _spacing(texts: Sequence[str]) -> tuple[float, ...] | None:
  try:
    spacing = tuple(float(text) for text in texts)
  except ValueError as error:
    raise InputError("--spacing", str(error), "give numbers, e.g. 3,1.5,1.5", usage=True) from error
  return spacing or None


def _check_out(out: Path) -> None:
  """Raises InputError unless a new config can be written."""
  if out.suffix != ".py" or ":" in str(out):
    raise InputError(f"--out={out}", "is not the name of a config file", "name it e.g. mine.py",
                     usage=True)
  if out.exists() or out.is_symlink():
    raise InputError(out, "exists", "choose another --out, or remove it", usage=True)
  if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
    raise InputError(out, "cannot be written", "choose a folder that exists and is writable",
                     usage=True)


# --- data ---------------------------------------------------------------------------------------
def find(paths: Sequence[Path], modality: str = "") -> list[Source]:
  """Finds the datasets at some paths, all of one modality.

  Args:
    paths: absolute; datasets, descriptions, or folders that contain datasets.
    modality: of datasets that do not declare it; guessed if empty.

  Raises:
    InputError: a path without a dataset, a dataset found twice, an unknown modality, or several.
  """
  sources = [source for path in paths for source in _at(path, modality)]
  roots = [source.folder.root.resolve() for source in sources]
  for number, (source, root) in enumerate(zip(sources, roots, strict=True)):
    first, folder = sources[0].folder, source.folder
    if root in roots[:number]:
      raise InputError(folder.root, "is given twice", "name every dataset once")
    if folder.modality != first.modality:
      raise InputError(folder.root, f"is {NAMES[folder.modality]} ({source.modality_reason}), but "
                       f"{first.root} is {NAMES[first.modality]}",
                       "train one network for each modality")
  if not any(case.split == "train" for source in sources for case in source.folder.cases):
    raise InputError(paths[0], "has no case of the split train", "check its splits")
  return sources


def _at(path: Path, modality: str) -> list[Source]:
  """Returns the datasets at a path: itself, or its sub-folders."""
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  source = _open(path, modality)
  if source is not None:
    return [source]
  folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")
             ] if path.is_dir() else []
  found = {folder: _open(folder, modality) for folder in folders}
  sources = [source for source in found.values() if source is not None]
  if not sources:
    empty = path.is_dir() and not any(path.iterdir())
    raise InputError(path, "is empty" if empty else "contains no dataset of a known layout",
                     "expected images/ and masks/ with the same file names, or a layout of "
                     "docs/data.md; a description (.yaml) covers all others")
  for folder, source in found.items():
    if source is None:
      print(f"{folder}: left out, no dataset of a known layout", flush=True)
  return sources


def _open(path: Path, modality: str) -> Source | None:
  """Reads a dataset; None if the path is none."""
  from condseg_jax.data.store import Store
  from condseg_jax.datasets import discover
  from condseg_jax.datasets.layouts import FORMATS

  if path.suffix in (".yaml", ".yml", ".py") and path.is_file():
    return _declared(FORMATS["description"].read(path), modality)
  if not path.is_dir():
    raise InputError(path, "is not a folder", "give the folder of a dataset")
  dataset = discover.open_layout(path)
  if isinstance(dataset, Store):
    raise InputError(path, "is a prepared store", "give the raw dataset instead, or a folder that "
                     "contains only stores, all of one modality and spacing")
  if dataset is not None:
    return _declared(dataset, modality)
  if not any((path / name).is_dir() for name in ("images", "masks")):
    return None
  folder = FORMATS["folder"].read(path, modality=modality or "mr")  # replaced below
  if modality:
    return Source(folder, "--modality")
  from condseg_jax.datasets.modality import guess_modality
  guess = guess_modality(folder.cases)
  if not guess.modality:
    raise InputError(path, f"its modality cannot be known: {guess.reason}",
                     f"give --modality={' or '.join(NAMES)}")
  return Source(dataclasses.replace(folder, modality=guess.modality), f"guessed: {guess.reason}")


def _declared(folder: RawFolder, modality: str) -> Source:
  if modality not in ("", folder.modality):
    raise InputError(folder.root, f"is declared as {NAMES[folder.modality]}",
                     f"leave out --modality={modality}, or correct the declaration")
  return Source(folder, "declared")


def _summary(source: Source) -> str:
  folder = source.folder
  return (f"{counted(len(folder.cases), 'case')}, {', '.join(folder.classes)}; "
          f"{NAMES[folder.modality]}, {source.modality_reason}")


def verified(paths: Sequence[Path], sources: Sequence[Source]) -> bool:
  """Prints all findings of the check of `condseg-verify`; returns whether none is an error."""
  from condseg_jax.datasets.verify import raw_checks
  from condseg_jax.datasets.verify.findings import leak_findings
  from condseg_jax.datasets.verify.findings import table

  if sources:
    findings, images = raw_checks.check_folders([source.folder for source in sources])
    findings += leak_findings(images)
    count = sum(len(source.folder.cases) for source in sources)
  else:
    findings, count = raw_checks.verify(paths[0])
  if findings:
    print(table(findings, os.path.commonpath(paths)))
  errors = sum(finding.severity == "error" for finding in findings)
  print(f"{count} cases read: {errors} errors, {len(findings) - errors} warnings", flush=True)
  return not errors


def _prepared(paths: Sequence[Path], spacing: Sequence[float] | None) -> list[Store]:
  """Returns the stores at a single path that holds nothing else; none otherwise."""
  from condseg_jax.data.store import open_prepared

  if len(paths) > 1 or not paths[0].is_dir():
    return []
  stores = open_prepared(paths[0])
  if stores and spacing and not open_prepared(paths[0], spacing):
    raise InputError("--spacing", "differs from that of the prepared stores",
                     "leave it out, or give raw datasets", usage=True)
  return stores


def _write_new(out: Path, text: str) -> None:
  """Writes a file atomically, unless it exists by now."""
  with replacing(out) as temporary:
    temporary.write_text(text, encoding="utf-8")
    _check_out(out)


if __name__ == "__main__":
  sys.exit(main())
