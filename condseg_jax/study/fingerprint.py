"""What a result depends on, as a digest: settings, data and the source of what computes it.

Two trainings with one key are the same training, wherever they run; one whose key has changed has
to be done again.
"""

import ast
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import hashlib
import json
from pathlib import Path
import subprocess

from etils import epath

import condseg_jax
from condseg_jax.config import ADDED
from condseg_jax.config import Config
from condseg_jax.data.store import Store
from condseg_jax.datasets import discover
from condseg_jax.model_io.bundle import without_paths

ROOT = Path(condseg_jax.__file__).parent
ENTRIES = ("condseg_jax.train.loop", "condseg_jax.study.score")  # training and scoring
# Modules that these import and that compute neither: readers of files, whose result the digest of
# the data covers; records and logs; settings, whose values are part of the key.
NOT_COMPUTING = (
    "config", "configs", "settings", "errors", "system", "formats", "datasets", "model_io",
    "data.writer", "data.fingerprint", "export", "report", "train.checkpoint",
    "train.record", "train.timing", "models.memory", "models.onednn.build")
# Digests of source that computes the same as an earlier one, see `lineage`.
LINEAGE = Path(__file__).with_name("lineage.json")


def member_key(config: Config, data: str, source: str) -> str:
  """SHA-256 of a training: its config without the folders of this machine, data and source.

  Settings that were added later, at the value that changes nothing, are left out: a key outlives
  them.
  """
  tree = without_paths(config).to_dict()
  if texts := config.conditioning.text_vectors:  # its content, wherever the file is
    held = hashlib.sha256(epath.Path(texts).read_bytes()).hexdigest()
    tree["conditioning"]["text_vectors"] = held
  for name, neutral in ADDED.items():
    section, _, key = name.partition(".")
    if tree[section][key] == neutral:
      del tree[section][key]
  return digest_of({"config": tree, "data": data, "source": source})


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
  """The digest of the source that computes a result, or the earliest that computes the same."""
  return lineage().get(digest := meaning_digest(entries), digest)


@functools.cache
def lineage() -> dict[str, str]:
  """Digest of source → the earliest digest that computes the same, as was shown by training."""
  entries = json.loads(LINEAGE.read_text(encoding="utf-8"))["equal"]
  return {entry["source"]: entry["as"] for entry in entries}


def meaning_digest(entries: Sequence[str] = ENTRIES, root: Path = ROOT) -> str:
  """SHA-256 of what some modules of a package and all that they import mean.

  Of Python the syntax tree counts, without docstrings, annotations, texts of errors and logs;
  comments and layout are not part of it. What is compiled (`*.cc`) counts as it is.
  """
  digests = [hashlib.sha256(meaning(path.read_text(encoding="utf-8")).encode()).hexdigest()
             if path.suffix == ".py" else hashlib.sha256(path.read_bytes()).hexdigest()
             for path in source_files(entries, root)]
  return digest_of(sorted(digests))


def meaning(text: str) -> str:
  """The syntax tree of a module as text, without what changes no result."""
  tree = _Bare().visit(ast.parse(text))
  return ast.dump(tree)


class _Bare(ast.NodeTransformer):
  """Drops docstrings, annotations, and the texts of errors and logs."""

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
  """The files of a package that some of its modules import, they themselves included, in order.

  Imports are read, not run: those inside functions count. What is compiled (`*.cc`) counts with the
  modules beside it. `NOT_COMPUTING` are left out, with what they alone import.

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
