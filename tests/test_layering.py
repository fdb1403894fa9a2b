"""Imports go downward: every module has a floor and imports nothing from a higher one."""

import ast
import os
from pathlib import Path
import subprocess
import sys

import condseg_jax
from condseg_jax.datasets import discover
from support.tiny import overrides
from support.tiny import write_datasets

ROOT = Path(condseg_jax.__file__).parent

# The longest prefix of a module's name decides.
FLOORS = {
    "annotation": 0, "classes": 0, "cluster": 0, "config": 0, "errors": 0, "former_settings": 0,
    "geometry": 0, "plan": 0, "settings": 0, "system": 0,
    "dicomweb": 1, "formats": 1, "losses": 1, "metrics": 1, "models": 1, "resample": 1,
    "data": 2, "datasets": 2,
    "train": 3, "infer": 3, "model_io": 3,
    "train.loop": 4, "train.folds": 4, "predictor": 4, "loading": 4, "evaluate": 4, "report": 4,
    "export": 4, "analysis": 4, "pseudo": 4, "grow": 4, "federated": 4,
    "cli": 5, "serve": 5, "study": 5,
}


def modules():
  for path in sorted(ROOT.rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(p for p in parts if p != "__init__")
    if name:
      yield name, path


def floor(name: str) -> int:
  prefixes = [p for p in FLOORS if name == p or name.startswith(p + ".")]
  assert prefixes, f"{name} has no floor: give its room one in FLOORS"
  return FLOORS[max(prefixes, key=len)]


def imports(path: Path) -> set[str]:
  """Modules of the package that a file imports, at any depth."""
  known = {name for name, _ in modules()}
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    inside = [n.removeprefix("condseg_jax.") for n in names if n.startswith("condseg_jax.")]
    found |= {n for n in inside if n in known}
  return found


def test_imports_go_downward():
  upward = [f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"
            for name, path in modules() for other in imports(path) if floor(other) > floor(name)]
  assert not upward, "\n".join(upward)


def test_no_circles():
  graph = {name: imports(path) for name, path in modules()}
  done, path = set(), []

  def visit(name):
    assert name not in path, " → ".join([*path[path.index(name):], name])
    if name not in done:
      path.append(name)
      for other in graph[name]:
        visit(other)
      path.pop()
      done.add(name)

  for name in graph:
    visit(name)


def test_only_one_file_imports_orbax():
  users = [name for name, path in modules()
           for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
           if isinstance(node, ast.Import | ast.ImportFrom) and "orbax" in ast.unparse(node)]
  assert set(users) == {"train.checkpoint", "train.orbax_patches"}


def test_the_front_door_is_lazy():
  """The package imports nothing before it is used: --help must not wait for jax."""
  tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
  top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
  assert top == []


def closure(name: str) -> set[str]:
  """Modules that one imports, early or lazily, with all that these import, and their packages."""
  graph = dict(modules())
  found, waiting = set(), [name]
  while waiting:
    name = waiting.pop()
    if name in graph and name not in found:
      found.add(name)
      waiting += [name.rpartition(".")[0], *imports(graph[name])]
  return found


def test_the_trainer_stands_on_little():
  """What a reader of the step, and of the trainer, has to know at most; no importer of raw data."""
  assert len(closure("train.step")) <= 14
  trainer = closure("train.loop")
  assert len(trainer) <= 78  # those of options that are off, too
  rooms = {name.partition(".")[0] for name in trainer}
  assert not {"cli", "datasets", "formats", "report", "export", "serve", "study"} & rooms


def test_a_training_from_stores_loads_no_importer(tmp_path):
  """`condseg-train` on prepared data, in a process of its own: what it has imported at the end."""
  root = write_datasets(tmp_path / "raw")
  stores = discover.open_stores(root / "train", cache=tmp_path / "stores", progress=False)
  flags = overrides(root, **{"data.root": stores[0].root.parent, "train.steps": 1})
  command = ["condseg-train", "--config=base", f"--workdir={tmp_path / 'run'}", *flags]
  code = ("import sys; from condseg_jax.cli.train import main; code = main(sys.argv[1:]); "
          "print(*(n for n in sys.modules if n.startswith('condseg_jax'))); sys.exit(code)")
  done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True,
                        encoding="utf-8", cwd=ROOT.parent,
                        env=os.environ | {"CONDSEG_ONEDNN": "0", "CONDSEG_LARGE_PAGES": "0"})
  assert done.returncode == 0, done.stderr
  loaded = {name for name in done.stdout.splitlines()[-1].split()
            if not name.startswith("condseg_jax.configs")}
  files = {name: path for name, path in modules()}
  loaded = {name for name in loaded  # a package without code is nothing to read
            if (path := files.get(name.removeprefix("condseg_jax."))) and path.stat().st_size}
  assert "condseg_jax.train.step" in loaded and len(loaded) <= 73, sorted(loaded)
  assert not any(name.startswith(("condseg_jax.datasets", "condseg_jax.formats"))
                 for name in loaded)
