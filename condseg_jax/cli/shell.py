"""What the commands share: flags, exit codes, one line for an error, messages for people.

Exit codes: 0 success, 1 a job that failed, 2 wrong usage.
"""

from collections.abc import Callable
from collections.abc import Sequence
import logging
import os
import re
import sys

from absl import flags

from condseg_jax.errors import InputError


def run(doc: str, define: Callable[[flags.FlagValues], None],
        work: Callable[..., int | None], argv: Sequence[str] | None = None, *,
        positional: str = "") -> int:
  """Runs a command and returns its exit code.

  Args:
    doc: help text; its first line is the summary.
    define: defines the command's flags. Each command has its own set, so that several can be used
      in one process.
    work: the command; InputError becomes one line and exit code 1 or 2.
    argv: program name and arguments; those of the process by default.
    positional: name of the one argument that is no flag, for a command that takes one: `work` gets
      it as its second argument.
  """
  argv = list(sys.argv if argv is None else argv)
  program = os.path.basename(argv[0]).removesuffix(".py")
  values = flags.FlagValues()
  # ml_collections reads overrides (--config.a.b=c) from the process's arguments.
  before, sys.argv = sys.argv, argv
  configure_logging()
  try:
    define(values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    rest = _parse(values, argv)[1:]
    if values.help:
      print(f"{doc.strip()}\n\nFlags:\n{values.main_module_help() or _help(values)}")
      return 0
    arguments = rest[:1] if positional else []
    if positional and not rest:
      raise InputError(positional, "is missing", f"see {program} --help", usage=True)
    for extra in rest[len(arguments):]:
      raise InputError(extra, "is not a flag", f"see {program} --help", usage=True)
    return work(values, *arguments) or 0
  except flags.Error as error:
    return _fail(program, f"{_line(error)} (see {program} --help)", 2)
  except InputError as error:
    return _fail(program, str(error), 2 if error.usage else 1)
  except BrokenPipeError:  # the reader of the output has gone, as in `… --help | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    subject = error.filename or "system"
    return _fail(program, f"{subject}: {error.strerror or _line(error)} (check path, permissions "
                 "and free space)", 1)
  except KeyboardInterrupt:
    return _fail(program, "interrupted", 130)
  finally:
    sys.argv = before


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Parses the flags; a config file that cannot be loaded is wrong usage like any other value."""
  try:
    return values(argv)
  except flags.Error:
    raise
  except Exception as error:  # whatever a user's config file raises
    for argument in argv:
      name = argument.partition("=")[0]
      if name.startswith("--config.") and name.rpartition(".")[2] in str(error):
        guess = re.search(r"[Dd]id you mean .(\w+)", str(error))
        raise InputError(name, "is no setting", f"did you mean {guess[1]}?" if guess else
                         "see experiments/configs/base.py", usage=True) from error
    path = next((a.partition("=")[2] for a in argv if a.startswith("--config=")), "--config")
    raise InputError(path, f"cannot be loaded: {type(error).__name__}: {_line(error)}",
                     "correct the config file or its path", usage=True) from error


def need(values: flags.FlagValues, *names: str) -> None:
  """Raises InputError for a flag that must be given and is not."""
  for name in names:
    if not values[name].value:
      raise InputError(f"--{name}", "is missing", f"give --{name}=…, see --help", usage=True)


def define_model(values: flags.FlagValues) -> None:
  """Flags of the commands that use a trained network."""
  flags.DEFINE_string("workdir", "", "Folder of the training run, or a bundle.", flag_values=values)
  flags.DEFINE_string("checkpoint", "last", "last, best or a step.", flag_values=values)


def define_locator(values: flags.FlagValues) -> None:
  """The flag of the commands that segment images."""
  flags.DEFINE_string("locator", "", "Folder of another training run, or a bundle: its network "
                      "looks first, and each class is sought where that found it.",
                      flag_values=values)


def define_report(values: flags.FlagValues) -> None:
  """Flags of the commands that write the page."""
  flags.DEFINE_bool("report", False, "Write report.html, one page that shows all cases and opens "
                    "without a network.", flag_values=values)
  flags.DEFINE_bool("report_names", False, "Name the cases on the page as their files are named, "
                    "which may name patients; numbers in the order of the run otherwise.",
                    flag_values=values)


def _help(values: flags.FlagValues) -> str:
  lines = []
  for name in sorted(n for n in values if n == values[n].name):
    flag = values[name]
    default = "" if flag.default in (None, "", [], False) else f" (default: {flag.default})"
    lines.append(f"  --{name}: {' '.join((flag.help or '').split())}{default}")
  return "\n".join(lines)


def configure_logging() -> None:
  log = logging.getLogger("condseg_jax")
  if not log.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
  # orbax warns of what is as it should be, and absl's own threshold follows flags not used here.
  logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.ERROR)


def _fail(program: str, message: str, code: int) -> int:
  print(f"{program}: {message}", file=sys.stderr)
  return code


def _line(error: BaseException) -> str:
  """An error as one line: of a longer one the first line and the last, which names the cause."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
  return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
