"""The key changes with all that decides a result, and with nothing else."""

import dataclasses
import json
from pathlib import Path
import subprocess

import pytest

from condseg_jax.config import Config
from condseg_jax.datasets import discover
from condseg_jax.former_settings import ADDED
from condseg_jax.study import fingerprint as keys
from support.tiny import write_datasets

CONFIG = Config().override({"data.root": "/a", "data.cache": "/b", "model.channels": 8})


def key(changes=None, data="data", source="source"):
  return keys.member_key(CONFIG.override(changes or {}), data, source)


def test_the_key_of_a_training():
  plain = key()
  assert plain == key({"data.root": "/other", "data.cache": ""})
  others = {key({"seed": 1}), key({"data.batch_size": 3}), key({"model.channels": 9}),
            key(data="other"), key(source="other")}
  assert len(others) == 5 and plain not in others and len(plain) == 64


def test_a_setting_added_later_changes_no_key_until_it_is_used():
  tree = CONFIG.to_dict()
  for name, neutral in ADDED.items():
    section, _, setting = name.partition(".")
    assert tree[section][setting] == neutral, name
    del tree[section][setting]
  assert tree.pop("init") == {}  # a section that was added as a whole
  tree["data"] |= {"root": "", "cache": ""}
  assert key() == keys.digest_of({"config": tree, "data": "data", "source": "source"})
  assert key({"loss.options": {"gamma": 1.0}}) != key()


def test_the_key_of_a_training_holds_its_texts(tmp_path):
  """What the file holds, wherever it lies; the config stays as it was."""
  made = []
  for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
    (tmp_path / name).write_text(text)
    made.append(key({"conditioning.vector": "text",
                     "conditioning.text_vectors": str(tmp_path / name)}))
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
  """What computes counts; what reads files, records, declares and reports does not."""
  found = {p.relative_to(keys.ROOT).as_posix() for p in keys.source_files()}
  assert {"train/loop.py", "train/setup.py", "train/step.py", "train/augment.py", "losses.py",
          "models/conditioning.py", "models/build.py", "data/sampling.py", "data/priors.py",
          "models/onednn/convolution.cc", "infer/fuse.py", "infer/sliding_window.py",
          "predictor.py", "study/score.py", "metrics.py", "plan.py", "classes.py"} <= found
  rooms = {name.partition("/")[0] for name in found}
  assert not {"cli", "formats", "datasets", "report", "export", "system", "configs"} & rooms
  assert not {"study/runner.py", "study/records.py", "train/run_files.py", "train/checkpoint.py",
              "config.py", "errors.py"} & found


PLAIN = """def f(x):
  if x < 0:
    raise ValueError(f"{x} is negative")
  log.info("%s", x)
  return 2 * x
"""


@pytest.mark.parametrize("text", [
    PLAIN.replace("def f(x):", 'def f(x):\n  """Doubles."""'), "# why\n" + PLAIN,
    PLAIN.replace("  ", "    "), PLAIN.replace("(x):", "(x: float) -> float:"),
    PLAIN.replace("is negative", "must be positive"), PLAIN.replace('"%s"', '"x is %s"'),
    PLAIN.replace("2 * x", "(2\n          * x)"), PLAIN.replace('  log.info("%s", x)\n', "")])
def test_words_and_layout_have_no_meaning(text):
  assert text != PLAIN and keys.meaning(text) == keys.meaning(PLAIN)


@pytest.mark.parametrize("text", [
    PLAIN.replace("2 * x", "3 * x"), PLAIN.replace("2 * x", "x * 2"), PLAIN.replace("<", "<="),
    PLAIN.replace("return", "x ="), PLAIN.replace("ValueError", "TypeError"),
    PLAIN.replace("(x):", "(x=1):"), PLAIN + "\ny = 1\n"])
def test_what_computes_has_meaning(text):
  assert keys.meaning(text) != keys.meaning(PLAIN)


def test_the_digest_is_of_meaning(package):
  """Docstrings, comments and the order of files change nothing, a statement and a kernel do."""
  entry, kernel = package / "entry.py", package / "deep" / "kernel.cc"
  digest = keys.meaning_digest(["pack.entry"], package)
  text = entry.read_text()
  entry.write_text(f'"""What it is."""\n# why\n{text}')
  assert keys.meaning_digest(["pack.entry"], package) == digest
  (package / "alone.py").write_text("x = 1\n")
  assert keys.meaning_digest(["pack.entry"], package) == digest
  entry.write_text(f"{text}x = 1\n")
  changed = keys.meaning_digest(["pack.entry"], package)
  entry.write_text(text)
  kernel.write_text("// faster")
  assert len({digest, changed, keys.meaning_digest(["pack.entry"], package)}) == 3


def test_source_that_computes_the_same_has_the_digest_of_the_first(monkeypatch, tmp_path):
  own = keys.meaning_digest()
  for entries, expected in (([], own), ([{"source": own, "as": "first", "shown": "…"}], "first"),
                            ([{"source": "other", "as": "first", "shown": "…"}], own)):
    path = tmp_path / "lineage.json"
    path.write_text(json.dumps({"equal": entries}))
    monkeypatch.setattr(keys, "LINEAGE", path)
    keys.lineage.cache_clear()
    assert keys.source_digest.__wrapped__() == expected
  keys.lineage.cache_clear()


def test_every_record_is_of_its_settings_data_and_source():
  """The keys of the committed records are those of what they say they were made with."""
  records = sorted((keys.ROOT.parent / "results" / "records").glob("*/*.json"))
  assert records
  for path in records:
    record = json.loads(path.read_text(encoding="utf-8"))
    members = [keys.member_key(Config.from_dict(config), record["data"], record["source"])
               for config in record["configs"]]
    assert record["members"] == members, path.name
    key = keys.trial_key(members, record["fusion"], record["truth"])
    if "further" in record:
      key = keys.further_key(key, **record["further"])
    assert record["key"] == key
    assert path.stem.endswith(record["key"][:16])


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
