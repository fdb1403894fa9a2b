"""How long a command takes to answer: --help, the first step, the first prediction, cold and warm.

Cold is with an empty cache, so without compiled programs and oneDNN handlers; warm with what the
cold run left there. Every measurement is the life of a process of its own; the data is prepared
before.
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
SETTINGS: tuple[str, ...] = ()  # --config.FIELD=VALUE beyond those of CONFIG
# Runs a command and tells when, after its start, a function had returned for the first time.
CHILD = """
import importlib, json, sys, time
name, place, attribute, *arguments = sys.argv[1:]
owner = importlib.import_module(place.partition(":")[0])
for part in filter(None, place.partition(":")[2].split(".")):
  owner = getattr(owner, part)
before, first = getattr(owner, attribute), []

def watched(*args, **kwargs):
  result = before(*args, **kwargs)
  first.append(time.time())
  return result

setattr(owner, attribute, watched)
code = importlib.import_module(f"condseg_jax.cli.{name}").main([f"condseg-{name}", *arguments])
print(json.dumps([code, first[0] if first else None, time.time()]))
"""


def run(folder: Path) -> list[dict]:
  """The rows of the suite."""
  rows = [helping(name) for name in COMMANDS]
  data = folder / "phantoms"
  if not data.exists():
    _command("prepare", "--format=phantom", f"--out={data}")
  settings = [f"--config={CONFIG}", f"--config.data.root={data / 'train'}",
              f"--config.data.cache={folder / 'prepared'}", *SETTINGS, "--config.train.steps=1",
              "--config.train.log_every=1", "--config.train.eval_every=1"]
  _command("train", *settings, f"--workdir={folder / 'prepares'}", cache=folder / "unused")
  image = next(iter(sorted((data / "test" / "imagesTr").glob("*.nii.gz"))))
  times = {}
  for turn in range(ROUNDS):
    cache, run_of = folder / f"cache_{turn}", folder / f"run_{turn}"
    for state in ("cold", "warm"):
      train = [*settings, f"--workdir={run_of}_{state}"]
      predict = [f"--workdir={run_of}_cold", f"--input={image}", "--nopicture",
                 f"--output={folder / 'masks'}"]
      for name, watch, arguments in (
          ("first step", ("train", "condseg_jax.train.record:Record", "scalars"), train),
          ("first prediction", ("predict", "condseg_jax.formats.files:", "write_label"), predict)):
        seconds = _first(watch, arguments, cache)
        times.setdefault(f"{name}, {state}", []).append(seconds)
    times.setdefault("a finished run, asked again", []).append(
        _command("train", *settings, f"--workdir={run_of}_warm", cache=cache))
  rows += [_row(name, statistics.median(found), lowest=min(found), highest=max(found))
           for name, found in times.items()]
  return rows


def helping(name: str) -> dict:
  """Seconds until a command has answered --help."""
  return _row(f"condseg-{name} --help",
              statistics.median(_command(name, "--help") for _ in range(ROUNDS)))


def _row(name: str, seconds: float, **more) -> dict:
  return {"name": name, "ours": seconds, "peer": None, "ratio": None, "unit": "s",
          "note": "of a process of its own, imports included", **more}


def _command(name: str, *arguments: str, cache: Path | None = None) -> float:
  """Seconds that a command takes from start to end."""
  start = time.time()
  _spawn([sys.executable, "-m", f"condseg_jax.cli.{name}", *arguments], cache)
  return time.time() - start


def _first(watch: tuple[str, str, str], arguments: list[str], cache: Path) -> float:
  """Seconds from the start of a process to the first return of the watched function."""
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
