"""What K classes cost as a multiple of one, against what the operations let expect.

The prediction is (encode + K · decode) / (encode + decode), in floating-point operations. Part of
`decode` sees no class, the skips' share of its convolutions for one; `predicted_least` counts that
once for all classes, which no program can go below.
"""

from collections.abc import Sequence
from pathlib import Path
import statistics

import jax

from condseg_jax.infer import sliding_window
from condseg_jax.infer.schedule import make_schedule
from tools.benchmark import nets
from tools.benchmark.timing import in_turns
from tools.benchmark.timing import progress
from tools.benchmark.timing import seconds

CLASSES = (1, 3, 14, 64)
DYNAMIC = {"position": "head", "mechanism": "dynamic"}
# Networks by name: a config, what is changed in it, and the levels from which it sees the class.
NETS = {"hippocampus": ("hippocampus", {}, (0, 1, 2)),
        "dynamic head": ("hippocampus", {"conditioning": DYNAMIC}, (None,)),
        "light decoder": ("hippocampus_light", {}, (0,))}
WINDOW = ()  # of the config when empty
BUDGET, ROUNDS = 25.0, 7


def run(folder: Path) -> list[dict]:
  """The rows of the suite, one for every network, level and number of classes."""
  return [row for name, (config, changes, levels) in NETS.items() for level in levels
          for row in measure(name, nets.config_of(config, changes), level)]


def measure(name: str, config, level: int) -> list[dict]:
  """One network at one level, in turns over the numbers of classes."""
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
    plan = make_schedule(window, window, classes)
    return lambda: sliding_window.class_probabilities(functions, variables, image, range(classes),
                                                      window, plan)
  ways = {classes: call(classes) for classes in CLASSES}
  for way in ways.values():
    seconds(way)
  times = {classes: statistics.median(found)
           for classes, found in in_turns(ways, budget=BUDGET, rounds=ROUNDS).items()}
  found = []
  for classes in CLASSES[1:]:
    cost = times[classes] / times[1]
    predicted = (encode + classes * decode) / (encode + decode)
    found.append({"name": f"cost of K = {classes}, {title}", "ours": cost, "peer": predicted,
                  "ratio": predicted / cost, "unit": "of K = 1", "peer_kind": "predicted by FLOPs",
                  "predicted_least": (encode + free + classes * (decode - free))
                  / (encode + decode),
                  "net": name, "from_level": level, "classes": classes,
                  "seconds": times[classes], "seconds_of_one": times[1]})
  return found


def plot(rows: Sequence[dict], path: Path) -> None:
  """The curves: measured, and dashed what was predicted."""
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
  axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="cost, in that of one class")
  axes.set_xticks(CLASSES, [str(k) for k in CLASSES])
  axes.legend(title=f"{jax.default_backend().upper()}; dashed: predicted by FLOPs")
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)
