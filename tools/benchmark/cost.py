"""The cost of K classes as a multiple of the cost of one, against the prediction from FLOPs.

The prediction is (encode + K · decode) / (encode + decode), in floating-point operations. Part of
`decode` does not depend on the class, e.g. the convolutions of the skips; `predicted_least` counts
that part once for all classes and is a lower bound for any program.
"""

from collections.abc import Sequence
from pathlib import Path
import statistics

import jax

from condseg_jax.config import Config
from condseg_jax.infer import sliding_window
from condseg_jax.infer.schedule import make_schedule
from tools.benchmark import nets
from tools.benchmark.timing import in_turns
from tools.benchmark.timing import progress
from tools.benchmark.timing import seconds

CLASSES = (1, 3, 14, 64)
DYNAMIC = {"position": "output_head", "mechanism": "dynamic"}
# Network → config, changes of it, and values of `from_level`.
NETS = {"hippocampus": ("hippocampus", {}, (0, 1, 2)),
        "dynamic head": ("hippocampus", {"conditioning": DYNAMIC}, (None,)),
        "light decoder": ("hippocampus_light", {}, (0,))}
WINDOW = ()  # spatial shape; that of the config if empty
BUDGET, ROUNDS = 25.0, 7


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite, one per network, level and number of classes."""
  return [row for name, (config, changes, levels) in NETS.items() for level in levels
          for row in measure(name, nets.config_of(config, changes), level)]


def measure(name: str, config: Config, level: int | None) -> list[dict]:
  """Returns the rows of a network and level, timed in turns over the numbers of classes.

  Args:
    name: name of the network in the rows.
    config: its config.
    level: value of `from_level`.
  """
  config = config.override({"conditioning.from_level": level})
  window = tuple(WINDOW or config.data.subvolume)
  model = nets.network(config, max(CLASSES))
  params = nets.parameters(model)
  encode, decode = nets.work(params, model, window)
  free = nets.classless_work(params, model, window)
  variables = jax.device_put({"params": params})
  functions, image = sliding_window.window_functions(model), nets.inputs(window, 1)[0][0]
  title = name if level is None else f"{name}, from_level {level}"
  progress(f"cost, {title}")

  def call(classes):
    schedule = make_schedule(window, window, classes)
    return lambda: sliding_window.class_probabilities(functions, variables, image, range(classes),
                                                      window, schedule)
  calls = {classes: call(classes) for classes in CLASSES}
  for function in calls.values():
    seconds(function)
  times = {classes: statistics.median(spent)
           for classes, spent in in_turns(calls, budget=BUDGET, rounds=ROUNDS).items()}
  rows = []
  for classes in CLASSES[1:]:
    cost = times[classes] / times[1]
    predicted = (encode + classes * decode) / (encode + decode)
    rows.append({"name": f"cost of K = {classes}, {title}", "ours": cost, "peer": predicted,
                 "ratio": predicted / cost, "unit": "of K = 1", "peer_kind": "predicted by FLOPs",
                 "predicted_least": (encode + free + classes * (decode - free))
                 / (encode + decode),
                 "net": name, "from_level": level, "classes": classes,
                 "seconds": times[classes], "seconds_of_one": times[1]})
  return rows


def plot(rows: Sequence[dict], path: Path) -> None:
  """Draws the measured costs, and the predicted ones dashed."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  curves = {}
  for row in rows:
    if "from_level" in row:
      curves.setdefault((row["net"], row["from_level"]), []).append(row)
  figure, axes = plt.subplots(figsize=(6, 4.5))
  for (net, level), points in curves.items():
    classes = [1, *(row["classes"] for row in points)]
    line, = axes.plot(classes, [1, *(row["ours"] for row in points)], "o-",
                      label=net if level is None else f"{net}, from_level {level}")
    axes.plot(classes, [1, *(row["peer"] for row in points)], "--", color=line.get_color())
  axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="cost relative to one class")
  axes.set_xticks(CLASSES, [str(k) for k in CLASSES])
  axes.legend(title=f"{jax.default_backend().upper()}; dashed: predicted by FLOPs")
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)
