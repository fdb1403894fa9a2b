"""Follows the Dockerfile without Docker: python tools/docker/check.py RUN

Copies the files of the build context, installs as RUN does in an empty virtual environment, starts
ENTRYPOINT with the trained network RUN in place of /model, at port 8000 of the loopback, and
repeats HEALTHCHECK until it succeeds. What needs root, users and permissions, is left out.
"""

import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv

ROOT = Path(__file__).parents[2]
START_SECONDS = 600


def instructions(path: Path) -> list[tuple[str, str]]:
  """Returns the instructions of a Dockerfile: (name, argument)."""
  text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
  lines = text.replace("\\\n", " ").splitlines()
  return [(name, argument) for name, _, argument in (line.partition(" ") for line in lines
                                                     if line.strip())]


def arguments(text: str) -> list[str]:
  """Returns the program and arguments of an instruction in its exec form, ["…", "…"]."""
  return shlex.split(text.strip(" []").replace('",', '"'))


def main(workdir: str) -> int:
  """Runs the check and returns its exit code."""
  found = instructions(ROOT / "tools" / "docker" / "Dockerfile")
  of = dict(found)
  with tempfile.TemporaryDirectory() as name:
    root = Path(name)
    venv.create(root / "venv", with_pip=True)
    environment = {"PATH": f"{root / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(root),
                   "JAX": "jax", "XDG_CACHE_HOME": str(root / "cache")}
    environment |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    for kind, argument in found:
      if kind == "COPY":
        *sources, target = argument.split()
        for source in sources:
          copy(ROOT / source, root / target.strip("/") / ("" if target.endswith("/") else "."))
      elif kind == "RUN":
        commands = [command for command in argument.split("&&") if "useradd" not in command]
        subprocess.run(["bash", "-euc", "&&".join(commands).replace("/src", str(root / "src"))],
                       env=environment, check=True)
    program, *flags = arguments(of["ENTRYPOINT"])
    flags = [flag.replace("/model", str(Path(workdir).resolve())).replace("0.0.0.0", "127.0.0.1")
             for flag in flags]
    service = subprocess.Popen([root / "venv" / "bin" / program, *flags], env=environment, cwd=root)
    try:
      health = arguments(of["HEALTHCHECK"].partition("CMD")[2])
      end = time.monotonic() + START_SECONDS
      while subprocess.run([root / "venv" / "bin" / health[0], *health[1:]], env=environment,
                           stderr=subprocess.DEVNULL).returncode:
        if service.poll() is not None or time.monotonic() > end:
          print("the service did not become healthy", file=sys.stderr)
          return 1
        time.sleep(2)
    finally:
      service.terminate()
      service.wait()
  print(f"installed, started, healthy, and ended with code {service.returncode}")
  return int(service.returncode != 0)


def copy(source: Path, target: Path) -> None:
  """Copies a file into a folder, or the content of a folder to it, as COPY does."""
  target.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    shutil.copytree(source, target, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__"))
  else:
    shutil.copy2(source, target)


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
