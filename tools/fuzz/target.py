"""What a target of the fuzzer is: inputs, the places where they are mutated, and its doors."""

import abc
from collections.abc import Mapping
from pathlib import Path

from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place

INPUT = "in"  # folder of the input in the sandbox of an attempt


class Target(abc.ABC):
  """A kind of input and the code that reads it; a subclass for each.

  Args:
    home: folder for what is kept between attempts, e.g. a model.

  Attributes:
    name: on the command line.
    command_name: command whose errors are judged: "predict" for condseg-predict.
    codes: exit codes with which a damaged input may be refused.
    seconds: limit of the time of an attempt.
    memory: limit of the memory of an attempt in bytes, besides that of the idle process.
    every: the whole command runs for every so many inputs, and for those that a door reads
      differently; 0 for never.
    isolated: whether attempts run in a process of their own.
  """

  name = ""
  command_name = "predict"
  codes: tuple[int, ...] = (1,)
  seconds = 20.0
  memory = 1 << 30
  every = 50
  isolated = True

  def __init__(self, home: Path):
    self.home = home

  def warm_up(self) -> None:  # noqa: B027, since few need it
    """Imports what attempts need, so that it does not count as their time and memory."""

  @abc.abstractmethod
  def variants(self) -> Mapping[str, Files]:
    """Returns small intact inputs by name."""

  @abc.abstractmethod
  def places(self, files: Files) -> list[Place]:
    """Returns where an input is mutated."""

  @abc.abstractmethod
  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Reads an input as the commands do.

    Args:
      variant: name of the intact input.
      folder: folder of the files.
      out: folder that may be written to.

    Returns:
      The exit code (0, where errors are raised), and what was read, for JSON. Its entry `unsound`
      names a contradiction that makes it a find.
    """

  def command(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Runs the whole command; arguments and result as for `door`, which may be all of it."""
    return self.door(variant, folder, out)

  def close(self) -> None:  # noqa: B027, since few need it
    """Ends what the target has started."""

  @abc.abstractmethod
  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Returns why no reader can know that a result is not that of the intact input.

    Raises:
      content.Damaged: a reader can know it; the text says from what.
    """

  def subjects(self, files: Files) -> list[str]:
    """Returns texts of which the line of a failure has to contain one."""
    return [*files, f"/{INPUT}"]
