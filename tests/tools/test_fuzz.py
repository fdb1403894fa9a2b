"""The fuzzer: what it once found ends as it should, every target runs, and its judge can fail."""

import gzip
import json
import os
from pathlib import Path
import zipfile

import numpy as np
import pytest

from support.fuzz_targets import INTACT
from tools.fuzz import __main__ as command
from tools.fuzz import content
from tools.fuzz import mutate
from tools.fuzz import session
from tools.fuzz.judge import GOOD
from tools.fuzz.judge import same
from tools.fuzz.judge import Verdict
from tools.fuzz.targets import TARGETS

SECONDS = 5
FAULTY = "support.fuzz_targets:Faulty"
ENTRIES = [(name, number) for name in TARGETS
           for number, _ in enumerate(session.entries(session.CORPUS / name))]


# --- the corpus ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sessions():
  """Sessions by target, and by whether attempts are isolated; one for all entries of a target."""
  made = {}

  def get(name: str, isolated: bool):
    if (name, isolated) not in made:
      made[name, isolated] = session.Session(name, isolated=isolated).__enter__()
    return made[name, isolated]

  yield get
  for one in made.values():
    one.__exit__()


@pytest.mark.parametrize(("name", "number"), [
    pytest.param(name, number, marks=[pytest.mark.slow] if name in ("http", "config") else [])
    for name, number in ENTRIES])
def test_what_was_found_once(name, number, sessions):
  folder = session.CORPUS / name
  entry = session.entries(folder)[number]
  # In this process, but for what once had to be stopped from outside.
  stopped = entry["verdict"][0] in ("hang", "crash", "memory")
  verdict = session.replay(sessions(name, stopped), entry, folder)
  if verdict.find and entry.get("open"):
    pytest.xfail(entry["open"])
  assert not verdict.find, f"{entry['input']}: {verdict} by {entry['mutation']}"


def test_the_corpus_is_small_and_complete():
  assert {path.name for path in session.CORPUS.iterdir()} <= set(TARGETS)
  for name in TARGETS:
    entries = session.entries(session.CORPUS / name)
    verdicts = [Verdict(*entry["verdict"]) for entry in entries]
    assert [verdict.without_paths() for verdict in verdicts] == verdicts, name
    signatures = [verdict.signature for verdict in verdicts]
    assert len(set(signatures)) == len(signatures), name
    files = {path.name: path for path in (session.CORPUS / name).glob("*")}
    assert {entry["input"] for entry in entries} - {""} == set(files) - {session.LINES}
    assert all(path.stat().st_size <= session.MAX_INPUT for path in files.values()
               if path.name != session.LINES)


# --- runs ---------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_run_with_a_fixed_seed(name):
  with session.Session(name) as made:
    figures, finds = made.run(SECONDS, seed=0, commands="CI" in os.environ)
  # As long as finds are open, others of their kind are expected.
  kinds = {entry["verdict"][0] for entry in session.entries(session.CORPUS / name)
           if entry.get("open")}
  assert figures["refused"] and figures["inputs"] >= 3
  new = [find for find in finds if find.verdict.kind not in kinds]
  assert not new, "\n".join(f"{find.verdict} by {json.dumps(find.operations)}" for find in new)


# --- the judge ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def faulty():
  with session.Session(FAULTY) as made:
    yield made


@pytest.mark.parametrize(("hole", "kind"), {
    "tail": "silent", "raises": "traceback", "hangs": "hang", "outside": "outside",
    "inside": "outside", "dies": "crash", "grabs": "memory", "twice": "lines", "nothing": "lines",
    "unnamed": "unnamed", "code": "code", "contradicts": "unsound"}.items())
def test_every_hole_of_a_reader_is_found(faulty, hole, kind):
  cut = {"a.txt": INTACT[:-2]}
  verdict = faulty.judged(hole, cut)
  assert (verdict.kind, verdict.find) == (kind, True)
  assert faulty.judged(hole, {"a.txt": INTACT}).kind == "same"
  assert faulty.judged("sound", cut).kind == "refused"  # the process goes on, or is another one


def test_another_valid_input_is_no_find(faulty):
  verdict = faulty.judged("tail", {"a.txt": INTACT.replace(b"9", b"8")})
  assert verdict == Verdict("indistinguishable", "ten other bytes")


def test_a_find_is_made_smaller_stored_once_and_attempted_again(tmp_path, faulty):
  flip = {"file": "a.txt", "through": [], "do": "flip", "args": [5, 0]}
  cut = {"file": "a.txt", "through": [], "do": "cut", "args": [8]}
  verdict = faulty.judged("raises", mutate.apply_all({"a.txt": INTACT}, [flip, cut]))
  operations, verdict = faulty.smaller("raises", [flip, cut], verdict, False)
  files = mutate.apply_all({"a.txt": INTACT}, operations)
  assert (operations, files, verdict.kind) == ([cut], {"a.txt": INTACT[:8]}, "traceback")
  find = session.Find("faulty", "raises", "0 1", operations, verdict, False, files)
  assert session.store(find, tmp_path) and not session.store(find, tmp_path)
  entry, = session.entries(tmp_path)
  assert (tmp_path / entry["input"]).read_bytes() == INTACT[:8]
  assert session.replay(faulty, entry, tmp_path) == verdict
  assert session.files_of(faulty, entry | {"input": ""}, tmp_path) == files


def test_a_run_reports_each_kind_of_find_once(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(TARGETS, "nifti", FAULTY)
  monkeypatch.setattr("support.fuzz_targets.Faulty.variants",
                      lambda self: {name: {"a.txt": INTACT} for name in ("raises", "sound")})
  arguments = ["nifti", "--seconds=1", f"--corpus={tmp_path}", f"--json={tmp_path / 'runs.json'}"]
  assert command.main(arguments) == 1
  said = capsys.readouterr().out
  assert said.count("ZeroDivisionError") == said.count("new ") == 1
  assert command.main([*arguments[:3], "--replay"]) == 1
  figures, = json.loads((tmp_path / "runs.json").read_text())["runs"]
  assert figures["inputs"] == sum(figures[kind] for kind in (*GOOD, "finds")) > 20
  assert figures["refused"] and figures["kinds_of_finds"] == 1
  assert f"| nifti | 0.00 | {figures['inputs']} |" in session.table([figures])


def test_what_a_new_process_does_not_show_again_is_no_find():
  with session.Session("support.fuzz_targets:Tired") as tired:
    figures, finds = tired.run(1, 0)
  assert not finds and not figures["finds"]
  assert figures["refused"] > 5 and figures["unconfirmed"]


# --- mutations ----------------------------------------------------------------------------------
IMAGES = [name for name in TARGETS if TARGETS[name].startswith("tools.fuzz.targets.images")]


@pytest.mark.parametrize("name", [*IMAGES, "zip", "description"])
def test_mutations_are_reproducible_and_can_be_written_down(name, sessions):
  made, do = sessions(name, False), set()
  for number in range(60):
    variant, operations, files = made.mutated(f"0 {number}")
    assert made.mutated(f"0 {number}") == (variant, operations, files)
    assert mutate.apply_all(made.intact[variant], json.loads(json.dumps(operations))) == files
    do |= {operation["do"] for operation in operations}
  assert len(do) >= 5


def test_a_change_inside_gets_its_checksums_anew(tmp_path):
  packed = {"a.gz": gzip.compress(b"abc")}
  flip = {"file": "a.gz", "through": ["gzip"], "do": "flip", "args": [0, 1]}
  assert gzip.decompress(mutate.apply(packed, flip)["a.gz"]) == b"cbc"
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
    opened.writestr("x", "abc")
  zipped = {"a.zip": (tmp_path / "a.zip").read_bytes()}
  flip = {"file": "a.zip", "through": ["zip/x"], "do": "flip", "args": [0, 1]}
  (tmp_path / "b.zip").write_bytes(mutate.apply(zipped, flip)["a.zip"])
  with zipfile.ZipFile(tmp_path / "b.zip") as opened:
    assert opened.read("x") == b"cbc" and opened.testzip() is None


# --- the strict readers -------------------------------------------------------------------------
@pytest.mark.parametrize("name", IMAGES)
def test_the_strict_reader_agrees_on_intact_files_and_refuses_damaged_ones(name, sessions):
  made = sessions(name, False)
  for variant, files in made.intact.items():
    assert made.judged(variant, files).kind == "same"
    read = lambda changed, variant=variant: made.target.read_strictly(variant, changed)
    expected = made._expected[variant, False]
    assert same(read(files), expected), variant
    last = sorted(files)[-1]
    for damaged in (files[last][:-1], files[last] + b"\1"):
      if name != "dicom":
        with pytest.raises(content.Damaged):
          read({**files, last: damaged})


def test_an_affine_is_the_same_up_to_rounding_in_every_column():
  affine = np.diag([1.0, 1.0, 2.0, 1.0])
  affine[:3, 3] = 1e6
  described = lambda affine: content.describe(np.zeros((1, 1, 1)), affine)
  assert same(described(affine), described(affine * (1 + 1e-7)))
  other = affine.copy()
  other[0, 0] = 1.01
  assert not same(described(affine), described(other))


def test_the_page_shows_the_runs_as_they_are():
  page = Path(session.ROOT / "docs" / "fuzzing.md").read_text(encoding="utf-8")
  assert session.table(command.read_runs(command.RUNS)) in page
