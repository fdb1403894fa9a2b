"""RUN/progress.png: a training at a glance, drawn anew at every evaluation."""

from collections.abc import Mapping
from collections.abc import Sequence
import io
import json
import os
from typing import NamedTuple

from etils import epath
import numpy as np

from condseg_jax.classes import POSITIVE
from condseg_jax.errors import printable
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.geometry import Volume
from condseg_jax.predictor import Prediction
from condseg_jax.report.display import displayable
from condseg_jax.report.display import robust_window
from condseg_jax.system.atomic import replacing

EXAMPLES = 4  # held-out cases that are shown, the first of each class in turn
TRUTH, PREDICTED = "#f2f2f0", "#ff7f0e"


class Example(NamedTuple):
  """One slice of a held-out case, with the outlines of one class."""
  title: str
  image: np.ndarray  # (H, W) or (H, W, 3)
  truth: np.ndarray  # bool (H, W)
  prediction: np.ndarray  # bool (H, W)
  aspect: float  # height of a voxel by its width


class Progress:
  """Collects examples of an evaluation and draws them with the curves of the run.

  Args:
    workdir: workdir of the run, with its metrics.jsonl.
  """

  def __init__(self, workdir: str | os.PathLike):
    self._workdir = epath.Path(workdir)
    self._examples: dict[tuple[str, str], Example] = {}

  def on_case(self, case_id: str, volume: Volume, prediction: Prediction,
              truth: Mapping[str, np.ndarray], scored: Sequence[CaseScore]) -> None:
    """Keeps the slice with the largest true area of each class, see `evaluate.run.evaluate`."""
    for row in scored:
      name, mask = row.class_name, truth[row.class_name]
      shown = [key for key in self._examples if key[1] == name]
      if shown and (case_id, name) not in self._examples:
        continue  # the first case of a class, the same at every evaluation
      positive = mask == POSITIVE
      if not positive.any():
        continue
      found, image, aspect = prediction.masks[name], volume.array, 1.0
      if volume.ndim == 3:
        # The axis of the largest voxels is the one to look along.
        axis = int(np.argmax(volume.spacing))
        others = tuple(a for a in range(3) if a != axis)
        index = int(np.argmax(positive.sum(others)))
        image, positive, found = (np.take(a, index, axis=axis) for a in (image, positive, found))
        aspect = volume.spacing[others[0]] / volume.spacing[others[1]]
      title = f"{printable(name)}: Dice {row.metrics['dice']:.3f}\n{printable(case_id)}"
      self._examples[case_id, name] = Example(title, image, positive, np.asarray(found), aspect)

  def draw(self) -> np.ndarray:
    """Writes progress.png and returns it, uint8 (H, W, 3)."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # names of classes may hold `$`
      return self._draw()

  def _draw(self) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in
             (self._workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = list(self._examples.values())[:EXAMPLES]
    columns = max(3, len(examples))
    width, height = 4.0 * columns, 7.2 if examples else 3.6
    # Margins are fixed: a layout that is solved takes longer than all of the drawing.
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    side = {"left": 0.5 / width, "right": 1 - 0.15 / width}
    curves = figure.add_gridspec(1, 3, **side, wspace=0.15, top=1 - 0.3 / height,
                                 bottom=1 - 3.15 / height)
    _draw_curves(curves.subplots(), lines)
    if examples:
      shown = figure.add_gridspec(1, columns, **side, wspace=0.05, top=2.95 / height,
                                  bottom=0.1 / height)
      for axes, example in zip(shown.subplots(squeeze=False)[0], examples, strict=False):
        _draw_example(axes, example)
      for axes in figure.axes[3 + len(examples):]:
        axes.axis("off")
      figure.text(0.5, 3.42 / height, "held-out cases: truth white, prediction orange", fontsize=9,
                  ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    with replacing(self._workdir / "progress.png") as temporary:
      temporary.write_bytes(buffer.getvalue())
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def _draw_curves(panels, lines: Sequence[Mapping]) -> None:
  """Draws the loss, the Dice per class and the learning rate over the steps."""
  def curve(key: str) -> tuple[list, list]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [p[0] for p in points], [p[1] for p in points]

  loss, dice, rate = panels
  loss.plot(*curve("loss"), color="#4c72b0", linewidth=1)
  loss.set(title="training loss", xlabel="step")
  keys = dict.fromkeys(key for line in lines for key in line if "dice/" in key)
  names = list(dict.fromkeys(key.rpartition("dice/")[2] for key in keys))
  for number, name in enumerate(names):
    color = f"C{number % 10}"
    dice.plot(*curve(f"dice/{name}"), color=color, linewidth=0.7, alpha=0.5)
    label = printable(name) if len(names) <= 12 else None
    dice.plot(*curve(f"held_out/dice/{name}"), "o-", color=color, markersize=3, label=label)
  dice.plot(*curve("held_out/mean_dice"), "k--", linewidth=1, label="mean")
  dice.set(title="Dice: thin in training (soft), thick on held-out cases", xlabel="step",
           ylim=(0, 1))
  dice.legend(fontsize=7, loc="lower right")
  rate.plot(*curve("learning_rate"), color="#55a868", linewidth=1)
  rate.set(title="learning rate", xlabel="step")
  for axes in panels:
    axes.grid(alpha=0.3)
    axes.title.set_fontsize(9)


def _draw_example(axes, example: Example) -> None:
  axes.axis("off")
  axes.imshow(displayable(example.image, robust_window(example.image)), aspect=example.aspect)
  for mask, color in ((example.truth, TRUTH), (example.prediction, PREDICTED)):
    if mask.any() and not mask.all():
      axes.contour(mask.astype(np.float32), [0.5], colors=[color], linewidths=1.2)
  axes.set_title(example.title, fontsize=8)
