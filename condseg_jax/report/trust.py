"""What a cross-validated run knows of its own probabilities and masks: text and reliability.png."""

from collections.abc import Iterator
from collections.abc import Mapping
import io
from typing import Any

from condseg_jax.errors import printable
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.system.atomic import replacing

FIGURE = "reliability.png"
_COLUMNS, _PANELS = 4, 24  # of the figure; further classes are in folds.json
_BEFORE, _AFTER = "#a7abb3", "#0b6e75"


def lines(run: FoldRun) -> Iterator[str]:
  """Yields a line about the calibration of every class, and one about its predicted Dice."""
  for name, entry in run.calibration.items():
    yield f"{name}: {_calibration(entry)}"
    found = run.quality.get(name)
    if found is None:
      yield f"{name}: no predicted Dice, which takes 9 cases in which the class is found"
    else:
      rank = found["correlation"]
      yield (f"{name}: predicted Dice is off by {found['error']:.3f} on average"
             + ("" if rank is None else f" (Spearman {rank:.2f})")
             + f", its 90 % bound is {-found['shift']:.3f} below; {found['cases']} cases")


def draw(run: FoldRun) -> None:
  """Writes the reliability diagrams of all classes, before and after calibration."""
  shown = {name: entry for name, entry in run.calibration.items() if "curve" in entry}
  if not shown:
    return
  import matplotlib  # slow to import

  with matplotlib.rc_context({"text.parse_math": False}):  # names of classes may hold `$`
    _draw(run, dict(list(shown.items())[:_PANELS]))


def _draw(run: FoldRun, shown: Mapping[str, Mapping[str, Any]]) -> None:
  from matplotlib.figure import Figure

  columns = min(_COLUMNS, len(shown))
  rows = -(-len(shown) // columns)
  figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in panels[len(shown):]:
    axes.axis("off")
  for axes, (name, entry) in zip(panels, shown.items(), strict=False):
    axes.plot([0, 1], [0, 1], "--", color="#5d646e", linewidth=0.8)
    for key, color, error in zip(("before", "after"), (_BEFORE, _AFTER), entry["error"],
                                 strict=True):
      curve = entry["curve"][key]
      axes.plot([p for p, _, _ in curve], [t for _, t, _ in curve], "o-", color=color,
                markersize=3, linewidth=1.2, label=f"{key}: error {error:.3f}")
    kept = "" if "slope" in entry else " (left as it is)"
    axes.set_title(printable(name) + kept, fontsize=9)
    axes.set(xlabel="probability", ylabel="share of voxels in the mask", xlim=(0, 1), ylim=(0, 1),
             aspect="equal")
    axes.legend(fontsize=7, loc="upper left")
    axes.grid(alpha=0.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=100)
  with replacing(run.folder / FIGURE) as temporary:
    temporary.write_bytes(buffer.getvalue())


def _calibration(entry: Mapping[str, Any]) -> str:
  if "reason" in entry:
    return f"not calibrated: {entry['reason']}"
  before, after = entry["error"]
  return (f"calibrated by {entry['slope']:.2f} z {entry['intercept']:+.2f}, error {before:.3f} → "
          f"{after:.3f} on unseen cases; {entry['cases']} cases")
