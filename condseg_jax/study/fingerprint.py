"""What a result depends on, as a digest: settings, data and the source of what computes it.

Two trainings with one key are the same training, wherever they run; one whose key has changed has
to be done again.
"""

import ast
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import hashlib
import json
from pathlib import Path
import subprocess

from etils import epath

import condseg_jax
from condseg_jax.data.store import Store
from condseg_jax.datasets import discover
from condseg_jax.model_io.bundle import without_paths

ROOT = Path(condseg_jax.__file__).parent
ENTRIES = ("condseg_jax.train.loop", "condseg_jax.study.score")  # training and scoring


def member_key(config: Mapping, data: str, source: str) -> str:
  """SHA-256 of a training: its config without the folders of this machine, data and source."""
  config = without_paths(config)
  if texts := config.get("conditioning", {}).get("text_vectors"):  # what it holds, not where it is
    held = hashlib.sha256(epath.Path(texts).read_bytes()).hexdigest()
    config |= {"conditioning": {**config["conditioning"], "text_vectors": held}}
  return digest_of({"config": config, "data": data, "source": source})


def trial_key(members: Sequence[str], fusion: str, scored: str) -> str:
  """SHA-256 of a row of the results: trainings, fusion, and the cases that it is scored on."""
  return digest_of({"members": list(members), "fusion": fusion, "scored": scored})


def digest_of(tree) -> str:
  """SHA-256 of the canonical JSON of plain containers."""
  text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                    allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def data_digest(stores: Iterable[Store]) -> str:
  """Of prepared data: every case's arrays, and how it is used."""
  return digest_of(sorted([s.modality, list(s.spacing), c.id, c.dataset, c.split,
                           list(c.annotated), c.sha256] for s in stores for c in s.cases))


def scored_digest(root, split: str) -> str:
  """Of the labelled cases under a path: raw files, or prepared arrays."""
  found = [(folder, case) for folder in discover.discover(root) for case in folder.cases
           if split in ("", "all", case.split)]
  return digest_of(sorted([case.id, case.sha256 if isinstance(folder, Store) else case.digest()]
                          for folder, case in found))


@functools.cache
def source_digest(entries: tuple[str, ...] = ENTRIES) -> str:
  """SHA-256 of all source files of the package that some modules import, lazily too."""
  files = source_files(entries)
  return digest_of([[p.relative_to(ROOT).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()]
                    for p in files])


def source_files(entries: Sequence[str] = ENTRIES, root: Path = ROOT) -> list[Path]:
  """The files of a package that some of its modules import, they themselves included, in order.

  Imports are read, not run: those inside of functions count. What is compiled (`*.cc`) counts with
  the modules beside it.

  Args:
    entries: names of modules.
    root: folder of the package.
  """
  found, waiting = set(), [path for name in entries for path in _files(name, root)]
  while waiting:
    path = waiting.pop()
    if path in found:
      continue
    found.add(path)
    waiting += [file for name in _imported(path, root) for file in _files(name, root)]
  compiled = {file for path in found if path.parent != root for file in path.parent.glob("*.cc")}
  return sorted(found | compiled)


def _imported(path: Path, root: Path) -> Iterable[str]:
  inside = path.relative_to(root.parent).with_suffix("").parts
  package = inside[:-1]
  for node in ast.walk(ast.parse(path.read_bytes())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
      module = ".".join(part for part in (base, node.module) if part)
      yield module
      yield from (f"{module}.{alias.name}" for alias in node.names)


def _files(name: str, root: Path) -> list[Path]:
  """The files that run when a module is imported: its packages' and its own."""
  parts = name.split(".")
  if parts[0] != root.name:
    return []
  paths = []
  for end in range(1, len(parts) + 1):
    place = root.joinpath(*parts[1:end])
    paths += [p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()]
  return paths


@functools.cache
def git_hash() -> str:
  """Of the checkout that this package lies in, with a + where its source was changed since."""
  def git(*command):
    return subprocess.run(["git", "-C", str(ROOT.parent), *command], capture_output=True,
                          encoding="utf-8", check=False, timeout=30)
  try:
    inside = git("ls-files", "--error-unmatch", str(ROOT / "__init__.py"))
    if inside.returncode:
      return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", str(ROOT), "experiments")
    return git("rev-parse", "HEAD").stdout.strip() + ("+" if changed.returncode else "")
  except (OSError, subprocess.SubprocessError):
    return "unknown"
