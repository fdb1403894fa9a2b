"""The documents name settings, flags and files that exist."""

import importlib
import json
import re
import subprocess
import sys

from absl import flags
import pytest

from support.documents import pages
from support.documents import ROOT

SECTIONS = ("data", "augment", "model", "conditioning", "loss", "optimizer", "train", "init")
COMMANDS = ("init", "prepare", "verify", "fetch", "train", "evaluate", "predict", "analyse",
            "export", "import_", "serve", "deidentify", "study", "pseudo", "audit", "next",
            "grow", "federate")
# Flags of programs that are not ours.
FOREIGN = {"gres", "help", "config", "8", "data-binary", "from-file", "json", "nthreads",
           "memory-limit", "resources", "lifetime", "lifetime-stagger",
           "xla_cpu_experimental_onednn_custom_call", "xla_cpu_use_onednn", "xla_cpu_use_xnnpack"}
FOLDERS = ("benchmarks", "condseg_jax", "docs", "experiments", "results", "tests", "tools")
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages()}


@pytest.fixture(scope="module")
def settings() -> dict[str, set[str]]:
  """Section of a config → its fields."""
  config = subprocess.run(
      [sys.executable, "-c", "import json; from configs import base; "
       "print(json.dumps(base.get_config().to_dict(), default=str))"],
      cwd=ROOT / "experiments", env={"PYTHONPATH": f"{ROOT}:{ROOT / 'experiments'}"},
      capture_output=True, encoding="utf-8", check=True, timeout=120).stdout
  return {key: set(tree) for key, tree in json.loads(config).items()
          if isinstance(tree, dict)}


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
  """The flags of all commands; a switch has its negation, too."""
  known = set(FOREIGN) | {"seconds", "seed", "corpus", "replay"}  # of tools.fuzz
  for command in COMMANDS:
    values = flags.FlagValues()
    importlib.import_module(f"condseg_jax.cli.{command}")._define(values)
    for name in values:
      known |= {name, f"no{name}"} if values[name].boolean else {name}
  return known


def test_settings(settings):
  unknown = [(page, f"{section}.{field}") for page, text in TEXTS.items() for section, field in
             re.findall(rf"(?:`|config\.)({'|'.join(SECTIONS)})\.(\w+)(?=`| =|=)", text)
             if field not in settings[section]
             and not (ROOT / "condseg_jax" / section / f"{field}.py").exists()]
  assert not unknown


def test_flags(known_flags):
  unknown = [(page, name) for page, text in TEXTS.items() for line in text.splitlines()
             if "pip " not in line for name in re.findall(r"(?<![\w-])--(\w[\w-]*)", line)
             if name not in known_flags]
  assert not unknown


def test_files():
  """Paths in back ticks, but for those with a name in capitals in them."""
  made = ("results/work", "benchmarks/*")
  missing = [(page, path) for page, text in TEXTS.items() for path in
             re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
             if not re.search(r"[A-Z]{3}", path.replace("README", ""))
             and not path.startswith(made) and not (ROOT / path).exists()]
  assert not missing


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_bytes()) <= 10_000
