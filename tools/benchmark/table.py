"""The figures of benchmarks/*.json as Markdown, for the README: none is typed by hand."""

from collections.abc import Sequence
import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
NAMED = ("jax", "torch", "monai")  # versions worth a word


def markdown(folder: Path = FOLDER) -> str:
  """One table for every file, under its machine and versions."""
  parts = []
  for path in sorted(folder.glob("*.json")):
    tree = json.loads(path.read_text(encoding="utf-8"))
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


def into_readme(path: Path = README) -> None:
  """Puts the tables between the two marks of the README."""
  text = path.read_text(encoding="utf-8")
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise ValueError(f"{path} lacks {BEGIN} or {END}")
  path.write_text(f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}", encoding="utf-8")


def table(rows: Sequence[dict]) -> list[str]:
  """Lines of a table: name, our figure, the peer's, ratio, and which peer."""
  lines = ["| what | ours | peer | ratio | peer is |", "|---|---|---|---|---|"]
  for row in rows:
    unit = row.get("unit", "")
    ratio = "" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
    remark = row.get("peer_kind") or row.get("note", "")
    if "roofline_fraction" in row:
      remark += f"; {row['roofline_fraction']:.0%} of the roofline"
    cells = (row["name"], figure(row["ours"], unit), figure(row["peer"], unit), ratio, remark)
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def figure(value: float | None, unit: str) -> str:
  """A figure as people read it."""
  if value is None:
    return "–"
  if unit == "bytes":
    return f"{value / 2**30:.2f} GiB"
  if unit == "s" and value < 1:
    return f"{value * 1e3:.3g} ms"
  # Three digits, and all of them where there are more before the point.
  return f"{value:.0f} {unit}".rstrip() if value >= 100 else f"{value:.3g} {unit}".rstrip()
