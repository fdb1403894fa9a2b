"""Large memory pages for commands on Linux, by restarting the process once with GLIBC_TUNABLES.

XLA's CPU backend takes its temporary memory from malloc and returns it, so every training step
faults all pages in; with 2 MB pages a step takes about a fifth less time. The C library uses them
with the tunable `glibc.malloc.hugetlb=1`, which it reads when a process starts and never again.
"""

import os
from pathlib import Path
import sys

TUNABLES = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
GUARD = "CONDSEG_LARGE_PAGES"  # set, to anything, no process restarts itself
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PACKAGES = ("condseg_jax.", "experiments.", "tools.")


def restart_with_large_pages(argv=None) -> None:
  """Replaces the process by itself with large pages, or returns if that is not to be done.

  To be called first in the main function of a command. The process keeps its id, arguments and open
  files; its children inherit the setting. Accelerators are not exempt: whether there is one is
  known only after importing JAX, and the setting is harmless there.

  Args:
    argv: as given to the main function. Only a command that was started by the user (None) restarts
      itself, not a call from a test, a notebook or another program.
  """
  if argv is not None or "--help" in sys.argv or not _is_own_process() or not _has_effect():
    return
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], _environment(os.environ))
  except OSError:  # for example, not permitted in a sandbox
    return


def _is_own_process() -> bool:
  """Whether the interpreter was started for one of our commands, and for nothing else.

  That is `python [OPTIONS] -m MODULE …` or a console script. Under a profiler, a debugger, a test
  runner or a notebook, a restart would repeat what these have done so far.
  """
  command, arguments = list(sys.orig_argv), sys.argv[1:]
  if arguments:
    command, rest = command[:-len(arguments)], command[-len(arguments):]
    if rest != arguments:
      return False
  module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
  module = module.removesuffix(".__main__")
  if command[-2:] == ["-m", module]:
    options, ours = command[1:-2], module.startswith(PACKAGES)
  else:
    options, ours = command[1:-1], os.path.basename(command[-1]).startswith("condseg-")
  return bool(sys.executable) and ours and all(
      option.startswith("-") and option not in ("-m", "-c") for option in options)


def _has_effect() -> bool:
  """Whether the C library supports the tunable, the system leaves it to us, and neither is set."""
  if sys.platform != "linux" or GUARD in os.environ or TUNABLE in os.environ.get(TUNABLES, ""):
    return False
  try:
    library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    numbers = tuple(int(number) for number in version.split(".")[:2])
    # "always" needs no tunable, and "never" heeds none.
    return library == "glibc" and numbers >= (2, 35) and "[madvise]" in THP.read_text()
  except (ValueError, OSError):
    return False


def _environment(environment) -> dict[str, str]:
  """An environment with the tunable added to those that it has."""
  tunables = ":".join(filter(None, (environment.get(TUNABLES), f"{TUNABLE}=1")))
  return {**environment, TUNABLES: tunables, GUARD: "1"}
