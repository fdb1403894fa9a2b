"""The text of the config that `condseg-init` writes."""

from __future__ import annotations

from collections.abc import Sequence
import datetime
from pathlib import Path
import shlex
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.data.store import Store
  from condseg_jax.train.candidates import Choice

NAMES = {"ct": "CT", "mr": "MR", "rgb": "RGB"}
LITERAL_CHARACTERS = 65  # in a line of a tuple
SHOWN_NAMES = 6  # of classes, in the first line of the config


def config_text(out: Path, arguments: Sequence[str], summaries: Sequence[str],
                stores: Sequence[Store], choice: Choice) -> str:
  """Returns the config file.

  Args:
    out: its path, for the commands in its docstring.
    arguments: of the command, without --minutes.
    summaries: a line on every dataset.
    stores: the prepared data.
    choice: settings and what to expect of them.
  """
  config, modality = choice.config, stores[0].modality
  data, model = config.data, config.model
  cases = sum(case.split == "train" for store in stores for case in store.cases)
  axes, unit = ("H W", "pixels") if modality == "rgb" else ("D H W", "mm")
  extent = " × ".join(f"{n * s:.0f}" for n, s in zip(data.subvolume, data.spacing, strict=True))
  made_by = shlex.join(["condseg-init", *arguments, f"--minutes={config.train.minutes:g}"])
  note = "\n\n".join((
      _filled(f"{_shortened(data.classes)}: one network from {counted(cases, 'training case')} "
              f"({NAMES[modality]})."),
      f"Written on {datetime.date.today():%Y-%m-%d} by",
      f"  {made_by}",
      "from",
      "\n".join(_filled(line, 2) for line in summaries),
      _filled(f"Expected on this machine: {choice.description}. Of {choice.compared} combinations "
              "of network, subvolume and batch the rule in condseg_jax/train/candidates.py prefers "
              "this one."),
      "To train, to segment images, and to score other labelled cases:",
      "\n".join(f"  {command}" for command in commands(out, modality))))
  # Paths may contain anything.
  note = note.encode(errors="backslashreplace").decode().replace("\\", "\\\\").replace('"', '\\"')
  return f'''"""{note}
"""

from condseg_jax.configs import base


def get_config():
  config = base.get_config()
  # Prepared data; after a change of the images or masks, run condseg-init again.
  config.data.root = {_literal(data.root)}
  config.data.classes = {_literal(data.classes)}
  config.data.spacing = {_literal(data.spacing)}  # {unit}, {axes}
  config.data.subvolume = {_literal(data.subvolume)}  # {extent} {unit}
  config.data.batch_size = {data.batch_size}
  config.data.memory_gb = {data.memory_gb:g}  # most that a step may take
  config.model.channels = {model.channels}
  config.model.growth = {model.growth}
  config.model.strides = {_literal(model.strides)}
  config.model.layers_per_level = {_literal(model.layers_per_level)}
  config.conditioning.vector = {_literal(config.conditioning.vector)}  # learned for each class
  config.optimizer.learning_rate = {config.optimizer.learning_rate:g}
  # Fixes the number of steps when the training begins. With 0 it is config.train.steps.
  config.train.minutes = {config.train.minutes:g}
  return config
'''


def commands(out: Path, modality: str = "") -> list[str]:
  """Returns the commands that follow."""
  image = "scan.png" if modality == "rgb" else "scan.nii.gz"
  return [f"condseg-train --config={shlex.quote(str(out))} --workdir=RUN",
          f"condseg-predict --workdir=RUN --input={image} --output=masks --report",
          "condseg-evaluate --workdir=RUN --data=TEST --out=scores --report"]


def _shortened(names: Sequence[str]) -> str:
  more = len(names) - SHOWN_NAMES
  return ", ".join(names) if more <= 1 else f"{', '.join(names[:SHOWN_NAMES])} and {more} more"


def counted(count: int, noun: str) -> str:
  return f"{count} {noun}{'s' * (count != 1)}"


def _filled(text: str, indent: int = 0) -> str:
  return textwrap.fill(text, 100, initial_indent=" " * indent, subsequent_indent=" " * 2 * indent,
                       break_long_words=False, break_on_hyphens=False)


def _literal(value: object) -> str:
  """Returns a text, number or tuple of these as Python source, in lines of limited length."""
  if isinstance(value, str):
    text = repr(value)
    return text if {'"', "'"} & set(text[1:-1]) else f'"{text[1:-1]}"'
  if not isinstance(value, Sequence):
    return repr(value)
  items = [f"{_literal(item)}," for item in value]
  line = " ".join(items)
  one = f"({line if len(items) == 1 else line[:-1]})"
  if len(one) <= LITERAL_CHARACTERS:
    return one
  lines = [""]
  for item in items:
    if len(lines[-1]) + len(item) > LITERAL_CHARACTERS:
      lines.append("")
    lines[-1] += f" {item}" if lines[-1] else item
  return "(\n      " + "\n      ".join(lines) + ")"
