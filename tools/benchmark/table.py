"""Writes the figures of benchmarks/*.json as Markdown tables; none is typed by hand.

benchmarks/README.md holds every row, README.md the few of `SUMMARY`, each between two marks.
"""

from collections.abc import Sequence
import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
PAGE = FOLDER / "README.md"
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
NAMED = ("jax", "torch", "monai")  # packages whose versions are shown

# Rows of README.md: label → suite and name of the row.
SUMMARY = {
    "training step, hippocampus, batch 2 of 40×56×40":
        ("step", "step, hippocampus 40x56x40 batch 2, float32, CPU"),
    "the same without oneDNN (plain JAX)":
        ("step_plain", "step, hippocampus 40x56x40 batch 2, float32, CPU"),
    "training step, network of the paper's size, batch 2 of 256×256×32":
        ("step", "step, paper-like 256x256x32 batch 2, float32, CPU"),
    "whole-volume prediction, 3 classes": ("predict", "predict 60x84x60, K = 3"),
    "whole-volume prediction, 64 classes": ("predict", "predict 60x84x60, K = 64"),
    "peak memory of prediction, 256×256×160, 64 classes":
        ("memory", "memory of predicting 160x256x256, K = 64"),
}


def markdown(folder: Path = FOLDER) -> str:
  """Returns one table for every file, under its machine and versions."""
  parts = []
  for path in sorted(folder.glob("*.json")):
    tree = _read(path)
    if "rows" not in tree:  # fuzz.json, whose table is in docs/fuzzing.md
      continue
    versions = ", ".join(f"{name} {tree['versions'][name]}" for name in NAMED
                         if name in tree["versions"])
    settings = dict(tree.get("settings", {}))
    own = {row.get("convolutions") for row in tree["rows"]} - {None}
    if len(own) == 1:  # what a suite chose for itself
      settings |= {"convolutions": own.pop()}
    about = "; ".join([tree["device"], versions, *(
        f"{key}: {value}" for key, value in settings.items())])
    parts += [f"**{path.stem}** ({about})", "", *table(tree["rows"]), ""]
  return "\n".join(parts)


def summary(folder: Path = FOLDER) -> str:
  """Returns the table of `SUMMARY`.

  Raises:
    KeyError: a suite has no row of that name.
  """
  lines = ["| on two CPU cores | condseg_jax | peer | ratio |", "|---|---|---|---|"]
  for label, (suite, name) in SUMMARY.items():
    row = {row["name"]: row for row in _read(folder / f"{suite}.json")["rows"]}[name]
    cells = (label, *cells_of(row)[1:4])
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def write_pages(page: Path = PAGE, readme: Path = README) -> None:
  """Writes the tables between the marks of both files."""
  _write_between(page, markdown())
  _write_between(readme, summary())


def _write_between(path: Path, tables: str) -> None:
  text = path.read_text(encoding="utf-8")
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise ValueError(f"{path} lacks {BEGIN} or {END}")
  path.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


def _read(path: Path) -> dict:
  return json.loads(path.read_text(encoding="utf-8"))


def table(rows: Sequence[dict]) -> list[str]:
  """Returns the lines of a table: name, our figure, the peer's, ratio, and which peer."""
  lines = ["| what | ours | peer | ratio | peer is |", "|---|---|---|---|---|"]
  return lines + [f"| {' | '.join(cells_of(row))} |" for row in rows]


def cells_of(row: dict) -> tuple[str, ...]:
  """Returns the cells of a row of `table`."""
  unit = row.get("unit", "")
  ratio = "" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
  remark = row.get("peer_kind") or row.get("note", "")
  if "roofline_fraction" in row:
    remark += f"; {row['roofline_fraction']:.0%} of the roofline"
  return row["name"], figure(row["ours"], unit), figure(row["peer"], unit), ratio, remark


def figure(value: float | None, unit: str) -> str:
  """Returns a figure with its unit, three digits."""
  if value is None:
    return "–"
  if unit == "bytes":
    return f"{value / 2**30:.2f} GiB"
  if unit == "s" and value < 1:
    return f"{value * 1e3:.3g} ms"
  # Three digits, and all of them where there are more before the point.
  return f"{value:.0f} {unit}".rstrip() if value >= 100 else f"{value:.3g} {unit}".rstrip()
