"""Every command starts as a process of its own, and answers --help before jax is imported."""

import configparser
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parent.parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
# As they are installed: name after `condseg-` → module.
COMMANDS = {line.partition(" = ")[0].removeprefix("condseg-"):
            line.partition(" = ")[2].removesuffix(":main") for line in
            SETUP["options.entry_points"]["console_scripts"].strip().splitlines()}
EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))


def run(*command):
  return subprocess.run([sys.executable, *command], capture_output=True, encoding="utf-8", cwd=ROOT,
                        timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_heavy_import(name):
  """The time to answer is that of the imports, so those are what is tested."""
  code = (f"import sys; from {COMMANDS[name]} import main; "
          f"code = main(['condseg-{name}', '--help']); "
          "heavy = {'jax', 'scipy', 'matplotlib', 'orbax', 'grain'} & set(sys.modules); "
          "print(sorted(heavy)); sys.exit(code)")
  done = run("-c", code)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == "[]"
  assert f"condseg-{name}" in done.stdout and "--" in done.stdout


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_start(name):
  done = run("-m", f"experiments.{name}", "--help")
  assert done.returncode == 0 and "Flags:" in done.stdout, done.stderr
  done = run("-m", f"experiments.{name}")
  assert done.returncode == 2 and "is missing" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_console_scripts_are_installed(name):
  script = Path(sys.executable).parent / f"condseg-{name}"
  if not script.exists():
    pytest.skip("the package is not installed in this environment")
  done = subprocess.run([script, "--nonsense"], capture_output=True, text=True, timeout=60)
  assert done.returncode == 2 and done.stderr.startswith(f"condseg-{name}: ")
