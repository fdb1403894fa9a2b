"""The verdict on one attempt: how it ended, what it said, and whether what it read is right."""

from collections.abc import Mapping
import re
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np

from tools.fuzz.content import Damaged

if TYPE_CHECKING:
  from tools.fuzz.child import Answer
  from tools.fuzz.target import Target

REFUSED, SAME, INDISTINGUISHABLE = "refused", "same", "indistinguishable"
GOOD = (REFUSED, SAME, INDISTINGUISHABLE)
FINDS = {
    "hang": "ran longer than the limit", "crash": "ended the process",
    "memory": "needed more memory than the limit", "traceback": "raised what is no InputError",
    "outside": "wrote or left a file outside of the output folder",
    "code": "ended with an exit code that the project does not define for it",
    "lines": "a failure without exactly one line on stderr",
    "unnamed": "the line of a failure does not name the file",
    "silent": "exit code 0, but the result differs, and the damage can be told",
    "unsound": "exit code 0, but parts of the result contradict each other",
}
# Lines of progress and of flagged images, which precede the outcome of a command.
PROGRESS = re.compile(r"(\d\d:\d\d:\d\d  |warning: |\d+/\d+ |\s*$|\r|preparing |no DICOM-SEG)")
PATHS = re.compile(r"(/[\w.-]+)+/?")
AFFINE_TOLERANCE = 1e-4  # relative to the largest number; formats store float32 or decimal text


class Verdict(NamedTuple):
  """A verdict.

  Attributes:
    kind: one of `GOOD`, or a key of `FINDS`.
    detail: the reason, in one line.
  """

  kind: str
  detail: str = ""

  @property
  def find(self) -> bool:
    """Whether it is a find."""
    return self.kind not in GOOD

  @property
  def signature(self) -> str:
    """The verdict without what differs between inputs, to recognise the same find again."""
    text = self.detail.partition(" differ, but ")[2] or self.detail
    if self.kind == "traceback":
      text = text.partition(": ")[0]
    for pattern, short in ((PATHS, "/"), (r"'[^']*'", "''"), (r" \| .*", ""),
                           (r"0x[0-9a-f]+|[-+]?[0-9][0-9.e+-]*", "0")):
      text = re.sub(pattern, short, text)
    return f"{self.kind}: {text[:120]}"

  def without_paths(self) -> "Verdict":
    """Returns the verdict without paths of this machine, for the corpus."""
    return self._replace(detail=PATHS.sub("/", self.detail))


def judge(target: "Target", variant: str, intact: Mapping[str, bytes], files: Mapping[str, bytes],
          expected: dict | None, answer: "Answer", *, different: bool = False) -> Verdict:
  """Judges an attempt.

  Args:
    target: the target.
    variant: name of the intact input.
    intact: its files.
    files: the mutated files.
    expected: what the attempt on the intact files gave.
    answer: what happened.
    different: the input is known to be another valid one, so that the result may differ.
  """
  if answer.end:
    return Verdict(answer.end, answer.error)
  if answer.outside:
    return Verdict("outside", ", ".join(answer.outside)[:200])
  if answer.error:
    return Verdict("traceback", answer.error)
  if answer.code not in (0, *target.codes):
    return Verdict("code", f"{answer.code}: {' | '.join(answer.lines)[-200:]}")
  if answer.code:
    return _refusal(target, files, answer)
  content = answer.content
  if content.get("unsound"):
    return Verdict("unsound", content["unsound"])
  if same(content, expected):
    return Verdict(SAME)
  if different:
    return Verdict(INDISTINGUISHABLE, "the input is another valid one")
  try:
    return Verdict(INDISTINGUISHABLE, target.explain(variant, intact, files, content))
  except Damaged as damage:
    parts = sorted(key for key in {*content, *(expected or {})}
                   if not same(content.get(key), (expected or {}).get(key)))
    return Verdict("silent", f"{', '.join(parts)} differ, but {damage}")


def _refusal(target: "Target", files: Mapping[str, bytes], answer: "Answer") -> Verdict:
  lines = [line for line in answer.lines if not PROGRESS.match(line)]
  told = [line for line in lines if line.startswith(f"condseg-{target.command_name}: ")]
  failed = [line for line in lines if line.startswith("failed: ")]
  if failed == lines != []:  # a batch, e.g. of the series of a folder: a line for each
    told = lines = failed[:1]
  if len(told) != 1 or len(lines) != 1:
    others = [line for line in lines if line not in told] or told
    return Verdict("lines", f"{len(told)} of its own; {' | '.join(others)[:200]}")
  if not any(name in told[0] for name in target.subjects(files)):
    return Verdict("unnamed", told[0][:200])
  return Verdict(REFUSED, told[0])


def same(a: object, b: object) -> bool:
  """Returns whether two contents are equal, affines up to rounding."""
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(
        _close(a[key], b[key]) if key == "affine" else same(a[key], b[key]) for key in a)
  return a == b


def _close(a: object, b: object) -> bool:
  a, b = np.asarray(a, float), np.asarray(b, float)
  if a.shape != b.shape:
    return False
  # Column by column: an origin far away must not hide another spacing.
  scale = np.maximum(np.abs(a).max(axis=0), np.abs(b).max(axis=0))
  return bool((np.abs(a - b) <= AFFINE_TOLERANCE * np.maximum(scale, 1e-30)).all())
