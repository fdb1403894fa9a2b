"""Shared by all commands: flags, exit codes, one-line errors, log messages.

Exit codes: 0 success, 1 failed job, 2 wrong usage.
"""

from collections.abc import Callable
from collections.abc import Sequence
import io
import logging
import os
import re
import signal
import sys
import threading

from absl import flags

from condseg_jax.cli import config_file
from condseg_jax.errors import InputError
from condseg_jax.system import buckets


def run(doc: str, define: Callable[[flags.FlagValues], None],
        work: Callable[..., int | None], argv: Sequence[str] | None = None, *,
        positional: str = "", several: bool = False, has_config: bool = False,
        in_buckets: Sequence[str] = ()) -> int:
  """Runs a command and returns its exit code.

  Args:
    doc: help text; its first line is the summary.
    define: defines the command's flags. Each command has its own set, so that several can run in
      one process.
    work: the command; InputError becomes one line and exit code 1 or 2.
    argv: program name and arguments; those of the process by default.
    positional: name of the positional argument, if the command takes one; it is passed to `work` as
      the second argument.
    several: whether it may be repeated; `work` then takes a list.
    has_config: whether the command has a flag --config (see `config_file`).
    in_buckets: flags whose files and folders may be at `s3://` or `gs://`; others may not.
  """
  argv = list(sys.argv if argv is None else argv)
  program = os.path.basename(argv[0]).removesuffix(".py")
  values = flags.FlagValues()
  before = sys.argv
  handler = _hear_sigterm()
  configure_logging()
  if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: no name must end a command
    sys.stdout.reconfigure(errors="backslashreplace")
  try:
    argv = config_file.resolved(argv) if has_config else argv
    sys.argv = argv  # ml_collections reads overrides (--config.a.b=c) from there
    define(values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    rest = _parse(values, argv)[1:]
    if values.help:
      print(f"{doc.strip()}\n\nFlags:\n{values.main_module_help() or _help(values)}")
      return 0
    _check_buckets(values, in_buckets)
    if positional and not rest:
      raise InputError(positional, "is missing", f"see {program} --help", usage=True)
    if several:
      return work(values, rest) or 0
    arguments = rest[:1] if positional else []
    for extra in rest[len(arguments):]:
      raise InputError(extra, "is not a flag", f"see {program} --help", usage=True)
    return work(values, *arguments) or 0
  except flags.Error as error:
    return _fail(program, f"{_line(error)} (see {program} --help)", 2)
  except InputError as error:
    return _fail(program, str(error), 2 if error.usage else 1)
  except BrokenPipeError:  # the reader closed the pipe, as in `… --help | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    subject = error.filename or "system"
    return _fail(program, f"{subject}: {error.strerror or _line(error)} (check path, permissions "
                 "and free space)", 1)
  except Exception as error:  # storage libraries let theirs through from anywhere
    if not buckets.is_storage_error(error):
      raise
    return _fail(program, str(buckets.explained("bucket", error)), 1)
  except KeyboardInterrupt:
    return _fail(program, "interrupted", 130)
  except Terminated:
    return _fail(program, "interrupted by SIGTERM; the same command goes on where it can", 143)
  finally:
    sys.argv = before
    if handler is not None:
      signal.signal(signal.SIGTERM, handler)


class Terminated(BaseException):
  """SIGTERM was received; what is half-written is cleaned up on the way out."""


def _hear_sigterm():
  """Lets SIGTERM raise `Terminated`; returns the handler before, None if it is left unchanged."""
  if (threading.current_thread() is not threading.main_thread()
      or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL):
    return None  # a program that calls the command handles signals itself

  def terminate(*_):
    raise Terminated
  return signal.signal(signal.SIGTERM, terminate)


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
  """Parses the flags; a config file that cannot be loaded counts as wrong usage."""
  try:
    return values(argv)
  except InputError:
    raise
  except flags.Error as error:
    if "config file" not in str(error):
      raise
    cause: BaseException = error  # absl and ml_collections wrap what the file raised
    while cause.__cause__ or cause.__context__:
      cause = cause.__cause__ or cause.__context__
    raise config_file.config_error(cause, argv) from error
  except Exception as error:  # a user's config file may raise anything
    raise config_file.config_error(error, argv) from error


def _check_buckets(values: flags.FlagValues, allowed: Sequence[str]) -> None:
  """Raises InputError for an address where a local path is needed, or one that cannot be used."""
  for name in values:
    given = values[name].value
    for text in given if isinstance(given, list) else [given]:
      if not isinstance(text, str) or name.startswith("config"):
        continue  # settings are checked where they are used
      if name in allowed and re.match(r"\w+://", text):  # not dicomweb+http://
        buckets.reach(text)
      elif name not in allowed and text.startswith(tuple(f"{s}://" for s in buckets.PACKAGES)):
        raise InputError(f"--{name}", f"must be a local path, not {text}",
                         "see docs/buckets.md for what may be in a bucket", usage=True)


def require(values: flags.FlagValues, *names: str) -> None:
  """Raises InputError for a missing required flag."""
  for name in names:
    if not values[name].value:
      raise InputError(f"--{name}", "is missing", f"give --{name}=…, see --help", usage=True)


def define_model(values: flags.FlagValues) -> None:
  """Defines the flags of commands that use a trained network."""
  flags.DEFINE_string("workdir", "", "Folder of the training run, or a bundle.", flag_values=values)
  flags.DEFINE_string("checkpoint", "last", "last, best or a step.", flag_values=values)
  flags.DEFINE_integer("members", 0, "Members of an ensemble (condseg-train --folds) to use, the "
                       "first ones; 0 for all.", lower_bound=0, flag_values=values)


def define_verify(values: flags.FlagValues) -> None:
  """Defines the flag of commands that read a checkpoint once."""
  flags.DEFINE_enum("verify", "on", ("on", "off"), "off: load a checkpoint without comparing it "
                    "with its SHA-256 digests, which takes about a second per GB.",
                    flag_values=values)


def define_locator(values: flags.FlagValues) -> None:
  """Defines the locator flag of commands that segment images."""
  flags.DEFINE_string("locator", "", "Folder of another training run, or a bundle: its network "
                      "looks first, and each class is sought where that found it.",
                      flag_values=values)


def define_report(values: flags.FlagValues) -> None:
  """Defines the flags of commands that write the page."""
  flags.DEFINE_bool("report", False, "Write report.html, one page that shows all cases and opens "
                    "without a network.", flag_values=values)
  flags.DEFINE_bool("report_names", False, "Name the cases on the page as their files are named, "
                    "which may name patients; numbers in the order of the run otherwise.",
                    flag_values=values)


def define_cluster(values: flags.FlagValues) -> None:
  """Defines the flag of commands whose cases can be dealt to the workers of a cluster."""
  flags.DEFINE_string("cluster", "", "Dask cluster that does the work: local:N, "
                      "tcp://SCHEDULER[:PORT], tls://SCHEDULER[:PORT] or slurm:FILE.yaml; this "
                      "process if empty.", flag_values=values)


def check_cluster(values: flags.FlagValues, *folders: str) -> None:
  """Raises InputError for an address that is none, before anything else is done.

  Args:
    values: the flags.
    folders: flags whose folders a command without a cluster may stage; all machines share them.
  """
  if values.cluster:
    for name in folders:
      if buckets.is_bucket(values[name].value):
        raise InputError("--cluster", f"needs a folder that all machines share as --{name}",
                         "copy the files there, or omit --cluster", usage=True)
    from condseg_jax.cluster.address import parse  # which trainings do not need
    parse(values.cluster)


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
  # Libraries that log through absl (orbax, grain) raise what matters, after pages of traceback.
  logging.getLogger("absl").addFilter(_fatal_only)  # added once even if called repeatedly


def _fatal_only(record: logging.LogRecord) -> bool:
  return record.levelno >= logging.CRITICAL


def _fail(program: str, message: str, code: int) -> int:
  print(f"{program}: {message}", file=sys.stderr)
  return code


def _line(error: BaseException) -> str:
  """Formats an error as one line: its first line and its last, which names the cause."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
  return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
