"""What is found wrong with data: one record for each defect, and how it is shown."""

from collections.abc import Sequence
import dataclasses
import os

from condseg_jax.errors import InputError

ERROR, WARNING = "error", "warning"


@dataclasses.dataclass(frozen=True)
class Finding:
  """One defect.

  Attributes:
    severity: `error`, or `warning` for what can be trained on.
    name: of the kind of defect, such as `truncated`.
    file: the file or folder at fault.
    finding: what is wrong with it.
    cure: what can be done about it.
  """

  severity: str
  name: str
  file: str
  finding: str
  cure: str

  @classmethod
  def of(cls, error: InputError) -> "Finding":
    """What reading a file failed with."""
    return cls(ERROR, error.kind, error.subject, error.reason, error.cure)


def table(findings: Sequence[Finding], root) -> str:
  """Findings as aligned lines, errors first; files are named relative to `root`."""
  header = ("", "name", "file", "finding", "cure")
  rows = [(f.severity, f.name, _relative(f.file, root), f.finding, f.cure)
          for f in sorted(findings, key=lambda f: (f.severity, f.name, f.file))]
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(4)]
  return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)),
                              row[4]]) for row in (header, *rows))


def _relative(file: str, root) -> str:
  inside = os.path.relpath(file, root) if os.path.isabs(file) else file
  return file if inside.startswith("..") else inside
