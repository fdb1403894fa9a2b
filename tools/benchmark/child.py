"""Runs a benchmark in a child process, with its own peak memory or number of devices."""

import json
import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parents[2]


def start(module: str, *arguments: object) -> subprocess.Popen:
  """Starts `python -m module arguments`, whose last line of output is JSON."""
  path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
  return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], encoding="utf-8",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": path})


def result(process: subprocess.Popen) -> object:
  """Waits for a process and parses the last line of its output.

  Raises:
    RuntimeError: the process failed; with the end of its error output.
  """
  out, errors = process.communicate()
  if process.returncode:
    raise RuntimeError(errors[-2000:])
  return json.loads(out.splitlines()[-1])
