"""Digests of what a result depends on: settings, data and the source code that computes it.

Two trainings with equal keys are the same training, wherever they run; a training whose key has
changed must be repeated.
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
from condseg_jax.config import Config
from condseg_jax.data.store import Store
from condseg_jax.datasets import discover
from condseg_jax.former_settings import ADDED
from condseg_jax.model_io.bundle import without_paths

ROOT = Path(condseg_jax.__file__).parent
# Training and scoring.
ENTRIES = ("condseg_jax.train.loop", "condseg_jax.study.score")
# What else computes the results of trials that grow or are federated.
FURTHER_ENTRIES = {
    "growth": ("condseg_jax.grow.ladder", "condseg_jax.study.growth"),
    "federated": ("condseg_jax.federated.federation", "condseg_jax.study.federated")}
# Imported modules that affect neither: file readers, whose output the data digest covers; records
# and logs; settings, whose values are part of the key.
NOT_COMPUTING = (
    "config", "configs", "former_settings", "settings", "errors", "system", "formats", "datasets",
    "model_io", "data.writer", "data.fingerprint", "export", "report", "train.checkpoint",
    "train.run_files", "train.timing", "models.memory", "models.onednn.build")
# Digests of sources that compute the same results as an earlier one, see `lineage`.
LINEAGE = Path(__file__).with_name("lineage.json")


def member_key(config: Config, data: str, source: str) -> str:
  """Returns the SHA-256 of a training: its config without local paths, its data and source.

  Settings added later are left out at their neutral value, so that older keys stay valid.
  """
  tree = without_paths(config).to_dict()
  if texts := config.conditioning.text_vectors:  # the content, independent of the file's path
    held = hashlib.sha256(epath.Path(texts).read_bytes()).hexdigest()
    tree["conditioning"]["text_vectors"] = held
  for name, neutral in ADDED.items():
    section, _, key = name.partition(".")
    if tree[section][key] == neutral:
      del tree[section][key]
  tree = {name: part for name, part in tree.items() if part != {}}  # a section added as a whole
  return digest_of({"config": tree, "data": data, "source": source})


def trial_key(members: Sequence[str], fusion: str, scored: str) -> str:
  """Returns the SHA-256 of a row of the results: trainings, fusion and the cases scored on."""
  return digest_of({"members": list(members), "fusion": fusion, "scored": scored})


def further_key(key: str, how: Mapping, source: str) -> str:
  """Returns the SHA-256 of a row whose network grows or is federated.

  Args:
    key: see `trial_key`.
    how: `growth` or `federated` → the fields of its declaration.
    source: digest of the modules of `FURTHER_ENTRIES`.
  """
  return digest_of({"trial": key, **how, "source": source})


def digest_of(tree) -> str:
  """Returns the SHA-256 of the canonical JSON of plain containers."""
  text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                    allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def data_digest(stores: Iterable[Store]) -> str:
  """Returns the digest of prepared data: every case's content hash, split and annotation."""
  return digest_of(sorted([s.modality, list(s.spacing), c.id, c.dataset, c.split,
                           list(c.annotated), c.sha256] for s in stores for c in s.cases))


def scored_digest(root, split: str) -> str:
  """Returns the digest of the labelled cases under a path: raw files or prepared arrays."""
  found = [(folder, case) for folder in discover.discover(root) for case in folder.cases
           if split in ("", "all", case.split)]
  return digest_of(sorted([case.id, case.sha256 if isinstance(folder, Store) else case.digest()]
                          for folder, case in found))


@functools.cache
def source_digest(entries: tuple[str, ...] = ENTRIES) -> str:
  """Returns the digest of the current source, or the earliest that computes the same results."""
  return lineage().get(digest := meaning_digest(entries), digest)


@functools.cache
def lineage() -> dict[str, str]:
  """Returns source digest → earliest digest with the same results, as verified by training."""
  entries = json.loads(LINEAGE.read_text(encoding="utf-8"))["equal"]
  return {entry["source"]: entry["as"] for entry in entries}


def meaning_digest(entries: Sequence[str] = ENTRIES, root: Path = ROOT) -> str:
  """Returns the SHA-256 of the semantics of some modules and everything they import.

  For Python this is the syntax tree without docstrings, annotations, and error and log messages;
  comments and layout are not part of it. Compiled sources (`*.cc`) count byte by byte.
  """
  digests = [hashlib.sha256(meaning(path.read_text(encoding="utf-8")).encode()).hexdigest()
             if path.suffix == ".py" else hashlib.sha256(path.read_bytes()).hexdigest()
             for path in source_files(entries, root)]
  return digest_of(sorted(digests))


def meaning(text: str) -> str:
  """Returns the syntax tree of a module as text, without parts that cannot affect a result."""
  tree = _Bare().visit(ast.parse(text))
  return ast.dump(tree)


class _Bare(ast.NodeTransformer):
  """Drops docstrings, annotations, and error and log messages."""

  def visit_Expr(self, node):
    if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
      return None
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("log."):
      return None
    return self.generic_visit(node)

  def visit_Raise(self, node):
    kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return ast.Raise(exc=kind, cause=None)

  def visit_arg(self, node):
    return ast.arg(arg=node.arg, annotation=None)

  def visit_AnnAssign(self, node):
    self.generic_visit(node)
    node.annotation = ast.Constant(value=None)
    return node

  def visit_FunctionDef(self, node):
    node.returns = None
    return self._with_body(node)

  def visit_ClassDef(self, node):
    return self._with_body(node)

  def _with_body(self, node):
    self.generic_visit(node)
    node.body = node.body or [ast.Pass()]
    return node


def source_files(entries: Sequence[str] = ENTRIES, root: Path = ROOT) -> list[Path]:
  """Returns the sorted files of a package that the given modules import, including themselves.

  Imports are parsed, not executed, so those inside functions count. Compiled sources (`*.cc`)
  count with the modules beside them. `NOT_COMPUTING` and what only they import are left out.

  Args:
    entries: names of modules.
    root: folder of the package.
  """
  found, waiting = set(), [path for name in entries for path in _files(name, root)]
  while waiting:
    path = waiting.pop()
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    if path in found or any(f"{name}.".startswith(f"{other}.") for other in NOT_COMPUTING):
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
  """Returns the files that run when a module is imported: those of its packages and its own."""
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
  """Returns the commit hash of this checkout, with a + if the source has changed since."""
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
