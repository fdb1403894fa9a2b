"""A session: mutates, attempts, judges, and keeps each find once, as small as it gets.

A find is two things in the corpus: its input, and a line in `finds.jsonl` with the operations that
made it. Inputs too large to keep are made again from the operations.
"""

from collections import Counter
from collections.abc import Sequence
import hashlib
import io
import json
from pathlib import Path
import random
import tempfile
import time
from typing import NamedTuple
import zipfile

from tools.fuzz import child
from tools.fuzz import mutate
from tools.fuzz.judge import INDISTINGUISHABLE
from tools.fuzz.judge import judge
from tools.fuzz.judge import Verdict
from tools.fuzz.mutate import Files
from tools.fuzz.packing import Impossible

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
LINES = "finds.jsonl"
MAX_INPUT = 20_000  # bytes of an input that is kept as a file
MAX_OPERATIONS = 3
ENDED = ("hang", "crash", "memory")  # kinds of finds that may be the fault of those before


class Find(NamedTuple):
  """A find.

  Attributes:
    target: name of the target.
    variant: name of the intact input.
    seed: seed and number of the attempt.
    operations: what was done to the intact input, see `mutate`.
    verdict: what was wrong.
    whole: whether the whole command showed it.
    files: the mutated input.
  """

  target: str
  variant: str
  seed: str
  operations: list[dict]
  verdict: Verdict
  whole: bool
  files: Files


class Session:
  """Attempts on one target.

  Args:
    name: name of the target, see `child.find`.
    isolated: run attempts in processes of their own, if the target is for it.
  """

  def __init__(self, name: str, *, isolated: bool = True):
    self.name = name
    self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    home = Path(self._folder.name) / "home"
    home.mkdir()
    self.target = child.find(name, home)
    self._isolated = isolated and self.target.isolated
    self._children: dict[bool, child.Child] = {}
    self._expected: dict[tuple[str, bool], dict | None] = {}
    self._home, self._base = home, Path(self._folder.name) / "base"
    if not self._isolated:
      child.shell.configure_logging()
      self.target.warm_up()
    self.intact = self.target.variants()

  def __enter__(self) -> "Session":
    return self

  def __exit__(self, *_error) -> None:
    self._close()
    self.target.close()
    self._folder.cleanup()

  def _close(self) -> None:
    for process in self._children.values():
      process.close()

  def judged(self, variant: str, files: Files, *, whole: bool = False,
             different: bool = False) -> Verdict:
    """Attempts an input and judges it, see `judge.judge`."""
    if (variant, whole) not in self._expected:
      answer = self._attempt(variant, self.intact[variant], whole)
      if answer.code or answer.end or answer.error or answer.outside:
        raise RuntimeError(f"{self.name}: the intact input {variant!r} fails: {answer}")
      self._expected[variant, whole] = answer.content
    return judge(self.target, variant, self.intact[variant], files,
                 self._expected[variant, whole], self._attempt(variant, files, whole),
                 different=different)

  def both(self, variant: str, files: Files, *, whole: bool,
           commands: bool = True) -> tuple[Verdict, bool]:
    """Judges an input at the door, and in the whole command if asked for or read differently.

    Returns:
      The verdict of the first that is a find, and whether it is the whole command's.
    """
    verdict = self.judged(variant, files)
    different = verdict.kind == INDISTINGUISHABLE
    if verdict.find or not (whole or different) or not (commands and self.target.every):
      return verdict, False
    full = self.judged(variant, files, whole=True, different=different)
    return (full, True) if full.find else (verdict, False)

  def mutated(self, seed: str) -> tuple[str, list[dict], dict[str, bytes]]:
    """Returns variant, operations and mutated files of an attempt."""
    rng = random.Random(f"{self.name} {seed}")
    variant = rng.choice(sorted(self.intact))
    files, operations = dict(self.intact[variant]), []
    for _ in range(rng.choice((1, 1, 1, 2, MAX_OPERATIONS))):
      try:
        operation = mutate.draw(rng, self.target.places(files), files)
        files = mutate.apply(files, operation)
      except Impossible:
        continue
      operations.append(operation)
    return variant, operations, files

  def run(self, seconds: float, seed: int, *, commands: bool = True) -> tuple[dict, list[Find]]:
    """Attempts inputs for some seconds.

    Args:
      seconds: duration, after the start.
      seed: of the mutations.
      commands: whether whole commands run, too.

    Returns:
      Figures of the run, and its finds, one for each signature.
    """
    finds: dict[str, Find] = {}
    counts: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    every = self.target.every if commands else 0
    for variant, files in self.intact.items():  # what is compiled, or imported late, does not count
      self.both(variant, files, whole=bool(every))
    begin, number = time.monotonic(), 0
    while time.monotonic() < begin + seconds:
      number += 1
      label = f"{seed} {number}"
      variant, operations, files = self.mutated(label)
      if not operations or files == self.intact[variant]:
        continue
      asked = bool(every) and number % every == 0
      verdict, whole = self.both(variant, files, whole=asked, commands=commands)
      if verdict.kind in ENDED and self._isolated:
        # Libraries leak over thousands of inputs, and machines are busy: only what a new process
        # shows again is a find.
        self._close()
        verdict, whole = self.both(variant, files, whole=asked, commands=commands)
        counts["unconfirmed"] += not verdict.find
      if verdict.kind == "silent" and self.harmless(variant, operations):
        verdict = Verdict(INDISTINGUISHABLE, "damage of no use beside a valid change")
      counts[verdict.kind if not verdict.find else "finds"] += 1
      if not verdict.find:
        continue
      if verdict.signature not in finds or verdict.kind == "silent" and len(operations) > 1:
        operations, verdict = self.smaller(variant, operations, verdict, whole)
        files = mutate.apply_all(self.intact[variant], operations)
      repeated[verdict.signature] += 1
      finds.setdefault(verdict.signature, Find(self.name, variant, label, operations, verdict,
                                               whole, files))
    unconfirmed = counts.pop("unconfirmed", 0)
    spent, total = time.monotonic() - begin, sum(counts.values())
    figures = {"target": self.name, "seed": seed, "seconds": round(spent, 1), "inputs": total,
               "per_second": round(total / spent, 1),
               **{kind: counts[kind] for kind in ("refused", "same", INDISTINGUISHABLE)},
               "unconfirmed": unconfirmed, "finds": counts["finds"],
               "kinds_of_finds": len(finds),
               "repeated": dict(repeated)}
    return figures, list(finds.values())

  def harmless(self, variant: str, operations: list[dict]) -> bool:
    """Returns whether several operations are no find, each alone.

    Then one has made a valid change, and another damage that shows but does not matter.
    """
    return len(operations) > 1 and not any(
        self.judged(variant, mutate.apply_all(self.intact[variant], [operation])).find
        for operation in operations)

  def smaller(self, variant: str, operations: list[dict], verdict: Verdict,
              whole: bool) -> tuple[list[dict], Verdict]:
    """Undoes operations as long as the find stays; returns those left and their verdict.

    A silent difference stays one if another damage than before shows it.
    """
    for operation in list(operations):
      fewer = [other for other in operations if other is not operation]
      if fewer and verdict.kind != "hang":
        now = self.both(variant, mutate.apply_all(self.intact[variant], fewer), whole=whole)[0]
        if now.signature == verdict.signature or now.kind == verdict.kind == "silent":
          operations, verdict = fewer, now
    return operations, verdict

  def _attempt(self, variant: str, files: Files, whole: bool) -> child.Answer:
    base = child.prepare(self._base, files)
    if not self._isolated:
      return child.attempt(self.target, variant, base, whole=whole)
    if whole not in self._children:
      self._children[whole] = child.Child(self.name, self._home, whole=whole)
    return self._children[whole].attempt(variant, base)


# --- the corpus ---------------------------------------------------------------------------------
def store(find: Find, folder: Path) -> bool:
  """Adds a find to a folder of the corpus; returns False if it has one of that signature."""
  folder.mkdir(parents=True, exist_ok=True)
  known = entries(folder)
  if any(Verdict(*entry["verdict"]).signature == find.verdict.signature for entry in known):
    return False
  content, name = _packed(find.files), ""
  if len(content) <= MAX_INPUT:
    single = len(find.files) == 1
    suffix = f".{next(iter(find.files)).partition('.')[2]}" if single else ".zip"
    name = f"{find.verdict.kind}-{hashlib.sha256(content).hexdigest()[:8]}{suffix.rstrip('.')}"
    (folder / name).write_bytes(content)
  entry = {"target": find.target, "variant": find.variant, "seed": find.seed,
           "mutation": find.operations, "verdict": list(find.verdict.without_paths()),
           "whole": find.whole, "input": name, "files": list(find.files)}
  with (folder / LINES).open("a", encoding="utf-8") as stream:
    stream.write(json.dumps(entry) + "\n")
  return True


def entries(folder: Path) -> list[dict]:
  """Returns the lines of a folder of the corpus; none if there is no such folder."""
  path = folder / LINES
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
          ] if path.exists() else []


def replay(session: Session, entry: dict, folder: Path) -> Verdict:
  """Judges an entry of the corpus again."""
  return session.both(entry["variant"], files_of(session, entry, folder),
                      whole=entry["whole"])[0]


def files_of(session: Session, entry: dict, folder: Path) -> dict[str, bytes]:
  """Returns the input of an entry."""
  if not entry["input"]:
    return mutate.apply_all(session.intact[entry["variant"]], entry["mutation"])
  content = (folder / entry["input"]).read_bytes()
  if len(entry["files"]) == 1:
    return {entry["files"][0]: content}
  with zipfile.ZipFile(io.BytesIO(content)) as opened:
    return {name: opened.read(name) for name in opened.namelist()}


def _packed(files: Files) -> bytes:
  if len(files) == 1:
    return next(iter(files.values()))
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as opened:
    for name, content in files.items():
      info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
      info.compress_type = zipfile.ZIP_DEFLATED
      opened.writestr(info, content)
  return stream.getvalue()


def table(runs: Sequence[dict]) -> str:
  """Returns the figures of runs as a Markdown table."""
  lines = ["| target | hours | inputs | per second | refused | same | indistinguishable | finds |",
           "|---|---|---|---|---|---|---|---|"]
  for run in runs:
    lines.append(f"| {run['target']} | {run['seconds'] / 3600:.2f} | {run['inputs']:,} | "
                 f"{run['per_second']:g} | {run['refused']:,} | {run['same']:,} | "
                 f"{run['indistinguishable']:,} | {run['finds']:,} of {run['kinds_of_finds']} "
                 "kinds |")
  return "\n".join(lines) + "\n"
