"""Start-up time of the commands: --help, the first step, the first prediction, cold and warm.

Cold is with an empty cache, without compiled programs and oneDNN handlers; warm is with the cache
of the cold run. Every measurement runs in a new process; the data is prepared beforehand.
"""

import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time

from condseg_jax.system import large_pages

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "experiments" / "configs" / "phantom.py"
COMMANDS = ("train", "evaluate", "predict", "prepare", "verify", "fetch")
ROUNDS = 3
SETTINGS: tuple[str, ...] = ()  # --config.FIELD=VALUE in addition to CONFIG
# Runs a command and prints when a function returned for the first time.
CHILD = """
import importlib, json, sys, time
name, path, attribute, *arguments = sys.argv[1:]
owner = importlib.import_module(path.partition(":")[0])
for part in filter(None, path.partition(":")[2].split(".")):
  owner = getattr(owner, part)
original, first = getattr(owner, attribute), []

def watched(*args, **kwargs):
  result = original(*args, **kwargs)
  first.append(time.time())
  return result

setattr(owner, attribute, watched)
code = importlib.import_module(f"condseg_jax.cli.{name}").main([f"condseg-{name}", *arguments])
print(json.dumps([code, first[0] if first else None, time.time()]))
"""


def run(folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  rows = [help_row(name) for name in COMMANDS]
  data = folder / "phantoms"
  if not data.exists():
    command("prepare", "--format=phantom", f"--out={data}")
  settings = [f"--config={CONFIG}", f"--config.data.root={data / 'train'}",
              f"--config.data.cache={folder / 'prepared'}", *SETTINGS, "--config.train.steps=1",
              "--config.train.log_every=1", "--config.train.eval_every=1"]
  command("train", *settings, f"--workdir={folder / 'prepares'}", cache=folder / "unused")
  image = next(iter(sorted((data / "test" / "imagesTr").glob("*.nii.gz"))))
  times = {}
  for turn in range(ROUNDS):
    cache, run_of = folder / f"cache_{turn}", folder / f"run_{turn}"
    for state in ("cold", "warm"):
      train = [*settings, f"--workdir={run_of}_{state}"]
      predict = [f"--workdir={run_of}_cold", f"--input={image}", "--nopicture",
                 f"--output={folder / 'masks'}"]
      for name, watch, arguments in (
          ("first step", ("train", "condseg_jax.train.run_files:RunFiles", "scalars"), train),
          ("first prediction", ("predict", "condseg_jax.formats.files:", "write_label"), predict)):
        seconds = _first(watch, arguments, cache)
        times.setdefault(f"{name}, {state}", []).append(seconds)
    times.setdefault("a finished run, asked again", []).append(
        command("train", *settings, f"--workdir={run_of}_warm", cache=cache))
  rows += [_row(name, statistics.median(seconds), lowest=min(seconds), highest=max(seconds))
           for name, seconds in times.items()]
  return rows


def help_row(name: str) -> dict:
  """Returns the row for the --help of a command."""
  return _row(f"condseg-{name} --help",
              statistics.median(command(name, "--help") for _ in range(ROUNDS)))


def _row(name: str, seconds: float, **more) -> dict:
  return {"name": name, "ours": seconds, "peer": None, "ratio": None, "unit": "s",
          "note": "of a process of its own, imports included", **more}


def command(name: str, *arguments: str, cache: Path | None = None) -> float:
  """Returns the duration of a command in seconds."""
  start = time.time()
  _spawn([sys.executable, "-m", f"condseg_jax.cli.{name}", *arguments], cache)
  return time.time() - start


def _first(watch: tuple[str, str, str], arguments: list[str], cache: Path) -> float:
  """Returns the seconds from the start of a process to the first return of a function.

  Args:
    watch: command, module and class (`module:class`), name of the function.
    arguments: of the command.
    cache: the user's cache folder for the process.
  """
  start = time.time()
  code, first, _ = json.loads(
      _spawn([sys.executable, "-c", CHILD, *watch, *arguments], cache).splitlines()[-1])
  assert code == 0 and first is not None
  return first - start


def _spawn(command: list[str], cache: Path | None) -> str:
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  for name in ("JAX_COMPILATION_CACHE_DIR", large_pages.TUNABLES, large_pages.GUARD):
    environment.pop(name, None)
  if cache is not None:
    environment["XDG_CACHE_HOME"] = str(cache)
  done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
  if done.returncode:
    raise RuntimeError(f"{' '.join(command[:4])}…: {done.stderr.strip()[-500:]}")
  return done.stdout
