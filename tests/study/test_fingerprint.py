"""The key changes with all that decides a result, and with nothing else."""

import dataclasses
import json
from pathlib import Path
import subprocess

import pytest

from condseg_jax.datasets import discover
from condseg_jax.study import fingerprint as keys
from support.tiny import write_datasets

CONFIG = {"seed": 0, "data": {"root": "/a", "cache": "/b", "batch_size": 2},
          "model": {"strides": [[2, 2, 2]], "channels": 8}}


def changed(**parts):
  tree = json.loads(json.dumps(CONFIG))
  for part, values in parts.items():
    tree[part] = tree[part] | values if isinstance(values, dict) else values
  return tree


def test_the_key_of_a_training():
  plain = keys.member_key(CONFIG, "data", "source")
  assert plain == keys.member_key(changed(data={"root": "/other", "cache": ""}), "data", "source")
  assert plain == keys.member_key(dict(reversed(CONFIG.items())), "data", "source")
  others = {keys.member_key(*arguments) for arguments in (
      (changed(seed=1), "data", "source"), (changed(data={"batch_size": 3}), "data", "source"),
      (changed(model={"channels": 9}), "data", "source"), (CONFIG, "other", "source"),
      (CONFIG, "data", "other"))}
  assert len(others) == 5 and plain not in others and len(plain) == 64


def test_the_key_of_a_training_holds_its_texts(tmp_path):
  """What the file holds, wherever it lies; the config stays as it was."""
  made = []
  for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
    (tmp_path / name).write_text(text)
    config = CONFIG | {"conditioning": {"text_vectors": str(tmp_path / name)}}
    made.append(keys.member_key(config, "data", "source"))
    assert config["conditioning"]["text_vectors"] == str(tmp_path / name)
  assert made[0] == made[1] != made[2]


def test_the_key_of_a_result():
  plain = keys.trial_key(["a", "b"], "argmax", "truth")
  assert len({plain, keys.trial_key(["b", "a"], "argmax", "truth"),
              keys.trial_key(["a"], "argmax", "truth"),
              keys.trial_key(["a", "b"], "independent", "truth"),
              keys.trial_key(["a", "b"], "argmax", "other")}) == 5


def test_the_digest_of_data_is_of_arrays_and_their_use(tmp_path):
  """The same files elsewhere give the same digest; another split, mask or annotation another."""
  stores = []
  for name in ("here", "there"):
    root = write_datasets(tmp_path / name)
    stores.append(discover.open_stores(root / "train", cache=tmp_path / f"{name} cache",
                                      progress=False))
  digest = keys.data_digest(stores[0])
  assert digest == keys.data_digest(stores[1]) == keys.data_digest(stores[0][::-1])
  store = stores[0][0]

  def with_case(**changes):
    cases = (dataclasses.replace(store.cases[0], **changes), *store.cases[1:])
    return keys.data_digest([dataclasses.replace(store, cases=cases), *stores[0][1:]])

  others = {with_case(split="val"), with_case(sha256="0"), with_case(annotated=("box",)),
            with_case(dataset="other"), keys.data_digest(stores[0][:1])}
  assert len(others) == 5 and digest not in others


@pytest.fixture
def package(tmp_path):
  """A package whose `entry` imports, early, lazily and from within its package, all but `alone`."""
  root = tmp_path / "pack"
  files = {
      "__init__.py": "", "entry.py": "from pack.part import early\nimport os\n",
      "part/__init__.py": "from . import within\n", "part/within.py": "",
      "part/early.py": "def f():\n  from pack import late\n", "late.py": "import pack.deep.end\n",
      "deep/__init__.py": "", "deep/end.py": "import pack.entry\n", "deep/kernel.cc": "",
      "alone.py": ""}
  for name, text in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  return root


def test_source_files_are_the_closure_of_imports(package):
  found = {p.relative_to(package).as_posix() for p in keys.source_files(["pack.entry"], package)}
  assert found == {"__init__.py", "entry.py", "part/__init__.py", "part/within.py",
                   "part/early.py", "late.py", "deep/__init__.py", "deep/end.py",
                   "deep/kernel.cc"}


def test_source_files_of_training_and_scoring():
  """What computes counts; what declares, runs and reports does not."""
  found = {p.relative_to(keys.ROOT).as_posix() for p in keys.source_files()}
  assert {"train/loop.py", "train/step.py", "models/conditioning.py", "data/pipeline.py",
          "models/onednn/convolution.cc", "infer/fuse.py", "study/score.py",
          "study/specialists.py", "metrics.py"} <= found
  assert not {"study/runner.py", "study/plan.py", "tables.py", "study/declare.py",
              "study/statistics.py", "study/records.py", "cli/train.py"} & found


def test_the_git_hash_tells_of_changes_or_is_unknown(monkeypatch, tmp_path):
  """`__wrapped__`, since of a process it is asked for once."""
  (tmp_path / "pack").mkdir()
  (tmp_path / "experiments").mkdir()
  for place in ("pack/__init__.py", "experiments/study.py", "README.md"):
    (tmp_path / place).write_text("1")
  monkeypatch.setattr(keys, "ROOT", Path(tmp_path / "pack"))
  assert keys.git_hash.__wrapped__() == "unknown"

  def git(*command):
    names = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", str(tmp_path), *names, *command], check=True,
                          capture_output=True, encoding="utf-8").stdout.strip()

  git("init")
  assert keys.git_hash.__wrapped__() == "unknown"  # a checkout that the package is not of
  git("add", ".")
  git("commit", "-m", "all")
  committed = git("rev-parse", "HEAD")
  assert keys.git_hash.__wrapped__() == committed
  (tmp_path / "README.md").write_text("2")  # computes nothing
  assert keys.git_hash.__wrapped__() == committed
  for place in ("pack/__init__.py", "experiments/study.py"):
    (tmp_path / place).write_text("2")
    assert keys.git_hash.__wrapped__() == committed + "+"
    git("checkout", place)
