"""Tables from the records of a study: scores, differences, ranks, scanners, confusions."""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.evaluate.bootstrap import mean_of_known
from condseg_jax.report import markup
from condseg_jax.report.markup import number
from condseg_jax.report.markup import signed
from condseg_jax.report.markup import Table
from condseg_jax.study import records
from condseg_jax.study import statistics
from condseg_jax.system.atomic import write_text


class Outcome(NamedTuple):
  """The statistics of a study.

  Attributes:
    rows: its records.
    classes: the scored classes.
    first: label → the first record of the variant.
    points, sds: label → mean and sd over seeds of every class and their mean, [K + 1].
    drawn: label → bootstrap replicates of the means, [resamples, K + 1].
    families: reference → itself and the variants compared with it.
  """

  rows: list[dict]
  classes: list[str]
  first: dict[str, dict]
  points: dict[str, np.ndarray]
  sds: dict[str, np.ndarray]
  drawn: dict[str, np.ndarray]
  families: dict[str, list[str]]


def outcome(rows: Sequence[Mapping], resamples: int = statistics.RESAMPLES) -> Outcome:
  """Computes the statistics of a study's records."""
  rows = sorted(rows, key=lambda r: (r["order"], r["seed"]))
  groups = statistics.groups(rows)
  drawn = statistics.replicates(groups, resamples=resamples)
  first, families = {}, {}
  for row in rows:
    first.setdefault(row["label"], row)
  for label, row in first.items():
    if row["against"] in first:
      family = families.setdefault(row["against"], [])
      family += [name for name in dict.fromkeys((row["against"], label)) if name not in family]
  found = {g.label: statistics.means(g) for g in groups}
  return Outcome(
      list(rows), list(rows[0]["scores"]["classes"]), first,
      {label: mean for label, (mean, _) in found.items()},
      {label: sd for label, (_, sd) in found.items()},
      {g.label: d for g, d in zip(groups, drawn, strict=True)}, families)


def write(out: Path, study: str) -> Outcome:
  """Writes CSV, Markdown and LaTeX of a study from its records.

  Raises:
    InputError: no records, or records that must not be mixed.
  """
  rows = records.of_study(out, study)
  found = outcome(rows)
  records.write_csv(out / f"{study}.csv", rows)
  made, preface = study_tables(found), describe(found)
  title = f"Study {study}"
  write_text(out / f"{study}.md", markup.markdown(made, title, preface))
  write_text(out / f"{study}.tex", markup.latex(made, title, preface))
  return found


def describe(found: Outcome) -> str:
  """Describes what was trained and scored, and how to reproduce it."""
  rows, scores = found.rows, found.rows[0]["scores"]
  one = rows[0]
  kind = score_name(one)
  seeds = sorted({row["seed"] for row in rows})
  machines = sorted({f"{r['machine']['cpus']} CPU core(s), {r['machine']['device']}, jax "
                     f"{r['machine']['jax']}, convolutions by {r['machine']['convolution']}"
                     for r in rows})
  steps = sorted({n for row in rows for n in row["steps"]})
  return "\n".join([
      f"{kind} over {len(scores['cases'])} cases, the last step of every training. Seeds: "
      f"{', '.join(map(str, seeds))}. Steps of a training: {', '.join(map(str, steps))}. A score "
      "after so many steps measures how fast a variant learns as much as how far it comes.",
      f"Made of {len(rows)} records by `condseg-study {one['study']} --tables`; "
      f"source {one['source'][:12]}; on {'; '.join(machines)}."])


def score_name(row: Mapping) -> str:
  return "Pooled IoU" if statistics.is_flat(row) else "Mean Dice"


def study_tables(found: Outcome) -> list[Table]:
  """Returns all tables that the records have data for."""
  made = [_scores(found), _differences(found), *_ranks(found)]
  if any(found.rows[0]["scores"]["groups"]):
    made += [_scanners(found), _confusions(found)]
  return [table for table in made if table.rows]


def names_of(found: Outcome) -> tuple[list[str], dict[str, list[str]]]:
  """Returns which of variant, mechanism and level differ, and label → their values."""
  fields = ["variant", "mechanism", "level"]
  kept = [f for f in fields if f == "variant" or (
      len({row[f] for row in found.first.values()}) > 1)]

  def text(value):
    return markup.NO_VALUE if value is None else f"{value:g}" if isinstance(value, float) else (
        str(value))

  return kept, {label: [text(row[f]) for f in kept] for label, row in found.first.items()}


def _scores(found: Outcome) -> Table:
  kept, names = names_of(found)
  rows = []
  for label, row in found.first.items():
    mine = [r for r in found.rows if r["label"] == label]
    minutes = np.mean([r["seconds"]["training"] for r in mine]) / 60
    steps = row["steps"]
    rows.append([*names[label],
                 *(f"{number(m)} ± {number(s)}" if s == s else number(m)
                   for m, s in zip(found.points[label], found.sds[label], strict=True)),
                 f"{row['parameters']:,}",
                 f"{len(steps)} × {steps[0]}" if len(steps) > 1 else str(steps[0]),
                 str(len(mine)), number(minutes, 1)])
  header = [*kept, *found.classes, "mean", "parameters", "steps", "seeds", "minutes"]
  return Table(score_name(found.rows[0]), "Mean ± standard deviation over seeds.", header, rows,
               len(kept))


def _differences(found: Outcome) -> Table:
  kept, names = names_of(found)
  rows = []
  for label, row in found.first.items():
    against = row["against"]
    if against == label or against not in found.first:
      continue
    cells = statistics.differences(found.points[label], found.drawn[label],
                                   found.points[against], found.drawn[against])
    rows.append([*names[label], against,
                 *(f"{signed(d.value)} [{signed(d.low)}, {signed(d.high)}]" for d in cells),
                 number(cells[-1].positive)])
  note = ("Difference with 95 % interval: paired bootstrap, cases resampled for all variants "
          "together, seeds within (`condseg_jax/study/statistics.py` has the equation). P: part of "
          "the resamples in which the mean is higher. Few seeds understate what others would "
          "change; one seed tells of other cases only.")
  return Table("Difference to the reference", note,
               [*kept, "against", *found.classes, "mean", "P(> 0)"], rows, len(kept) + 1)


def _ranks(found: Outcome) -> list[Table]:
  made = []
  for reference, family in found.families.items():
    if len(family) < 3:
      continue  # with two variants, the differences suffice
    shares = statistics.rank_probabilities(np.stack([found.drawn[n][:, -1] for n in family]))
    order = np.argsort(-np.array([found.points[name][-1] for name in family]), kind="stable")
    rows = [[family[i], number(found.points[family[i]][-1]),
             *(number(share, 2) for share in shares[i])] for i in order]
    header = ["variant", "mean", *(str(i + 1) for i in range(len(family)))]
    title = "Probability of each rank"
    if len(found.families) > 1:
      title += f", {reference} and those against it"
    made.append(Table(title, "Of the mean over classes, in the same resamples.", header, rows))
  return made


def scanner_scores(found: Outcome, label: str) -> tuple[list[str], np.ndarray]:
  """Returns scanners and the mean Dice over cases and seeds by class and scanner, [K, scanners]."""
  rows = [row for row in found.rows if row["label"] == label]
  scanners = list(dict.fromkeys(rows[0]["scores"]["groups"]))
  values = np.empty((len(found.classes), len(scanners)))
  for s, scanner in enumerate(scanners):
    chosen = [[d[row["scores"]["classes"].index(name)] for name in found.classes]
              for row in rows
              for d, group in zip(row["scores"]["dice"], row["scores"]["groups"], strict=True)
              if group == scanner]
    values[:, s] = mean_of_known(np.array(chosen, np.float64), 0)
  return scanners, values


def confusion_shares(found: Outcome, label: str) -> np.ndarray:
  """Returns the fraction of each true class (row) predicted as each class, [K + 1, K + 1].

  The last row and column are "no class". With overlapping masks a row may sum to more than 1, and
  the row of "no class" is NaN, since its voxel count cannot be derived from the confusion counts.
  """
  total, truth = np.zeros((len(found.classes) + 1,) * 2), np.zeros(len(found.classes) + 1)
  for row in found.rows:
    if row["label"] == label:
      scores = row["scores"]
      order = [*map(scores["classes"].index, found.classes), len(found.classes)]
      table = sum(np.array(c, np.float64)[np.ix_(order, order)]
                  for c in scores["confusion"].values())
      positives = np.nansum(np.array([scores["tp"], scores["fn"]], np.float64), (0, 1))[order[:-1]]
      overlap = row["fusion"] == "independent"
      total += table
      truth += [*positives, np.nan if overlap else table[-1].sum()]
  truth = np.broadcast_to(truth[:, None], total.shape)
  return np.divide(total, truth, out=np.full(total.shape, np.nan), where=truth > 0)


def _scanners(found: Outcome) -> Table:
  kept, names = names_of(found)
  rows, scanners = [], []
  for label in found.first:
    scanners, values = scanner_scores(found, label)
    rows += [[*names[label], name, *map(number, line)]
             for name, line in zip(found.classes, values, strict=True)]
  return Table("Mean Dice of every class under every scanner",
               "A scanner is named after the class that its training set annotates.",
               [*kept, "class", *(f"scanner of {s}" for s in scanners)], rows, len(kept) + 1)


def _confusions(found: Outcome) -> Table:
  kept, names = names_of(found)
  rows = [[*names[label], name, *(number(100 * share, 1) for share in line)]
          for label in found.first
          for name, line in zip([*found.classes, "none"], confusion_shares(found, label),
                                strict=True)]
  return Table("Confusion of classes",
               "Percent of the voxels of every true class (rows) given to the class of the column, "
               "of all cases and seeds; with masks that overlap a row may add up to more than 100.",
               [*kept, "truth", *found.classes, "none"], rows, len(kept) + 1)


# --- Markdown files with generated tables between marks.
_MARK_BEGIN = re.compile(r"<!-- ([\w/-]+): ([^\n]+?) -->\n")
_MARK = re.compile(rf"({_MARK_BEGIN.pattern})(.*?)(<!-- end -->)", re.DOTALL)


def fill(path: Path, out: Path) -> None:
  """Inserts the tables of OUT/STUDY.md between the marks of a Markdown file.

  Raises:
    InputError: a mark names a study without tables or an unknown table.
  """
  write_text(path, filled(path.read_text(encoding="utf-8"), out))


def filled(text: str, out: Path) -> str:
  """Returns the text with its tables filled in, see `fill`."""
  def table(found: re.Match) -> str:
    begin, study, title, body, end = found.groups()
    if _MARK_BEGIN.search(body):
      raise InputError(begin.strip(), "has no end", "put <!-- end --> behind its table")
    return f"{begin}\n{section(out / f'{study}.md', title)}\n\n{end}"

  return _MARK.sub(table, text)


def section(path: Path, title: str) -> str:
  """Returns the text under a heading `## title` of a Markdown file."""
  if not path.exists():
    raise InputError(path, "does not exist", "run the study, or write its tables with `tables`")
  parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
  sections = dict(zip(parts[1::2], parts[2::2], strict=True))
  if title not in sections:
    raise InputError(path, f"has no table {title!r}", f"it has: {', '.join(sections)}")
  return sections[title].strip()
