"""The model card: a description of a trained model in Markdown."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
from typing import Any

from etils import epath
import jax

from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.fold_run import is_fold_run
from condseg_jax.model_io.record import ModelRecord

# Settings that are paths, or that other sections describe.
_ELSEWHERE = {("data", key) for key in ("root", "cache", "memory_gb", "classes", "presets",
                                        "spacing", "subvolume")}
_IMAGES = {"ct": "CT", "mr": "MR", "rgb": "colour pictures"}


def run_facts(workdir, step: int) -> dict[str, Any]:
  """Collects facts about a checkpoint from the run's records, besides its model record.

  Returns:
    {"step": int, "datasets": [{"name", "cases", "annotated"}], "images": spread of their native
    shapes and spacings, or None, "held_out": {"mean_dice": float, "dice": {class: float}}, or None
    if the step was not scored}. Facts that a run did not record are empty or None.
  """
  if is_fold_run(workdir):
    return _ensemble_facts(FoldRun.open(workdir), step)
  folder = epath.Path(workdir)
  try:
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    datasets = [{"name": name, "cases": int(entry["cases"]), "annotated": list(entry["annotated"])}
                for name, entry in plan["datasets"].items()]
    images = {key: plan["pooled"][key] for key in ("native_shape", "native_spacing")}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    datasets, images = [], None
  return {"step": step, "datasets": datasets, "images": images,
          "held_out": _held_out(folder / "metrics.jsonl", step)}


def _ensemble_facts(run: FoldRun, step: int) -> dict[str, Any]:
  """Returns the facts of a cross-validated run: all its cases, and its scores as held-out ones."""
  facts = run_facts(run.member(0), step)
  counts = collections.Counter(case.rpartition("/")[0] for case in run.places)
  datasets = [entry | {"cases": counts[entry["name"]]} for entry in facts["datasets"]]
  scored = {name: entry["dice"] for name, entry in run.scores.get("classes", {}).items()
            if entry["dice"] is not None}
  held_out = {"mean_dice": run.scores["mean_dice"], "dice": scored} if scored else None
  return facts | {"datasets": datasets, "held_out": held_out}


def _held_out(path: epath.Path, step: int) -> dict[str, Any] | None:
  try:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = next(line for line in lines
                  if line["step"] == step and line.get("held_out/mean_dice") is not None)
  except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
    return None
  prefix = "held_out/dice/"
  return {"mean_dice": scores["held_out/mean_dice"],
          "dice": {key.removeprefix(prefix): value for key, value in scores.items()
                   if key.startswith(prefix) and value is not None}}


def model_card(record: ModelRecord, params: Mapping, facts: Mapping[str, Any], *,
               onnx: bool, networks: int = 1) -> str:
  """Returns the card in Markdown.

  Args:
    record: config, class table and plan.
    params: the parameters, used for their number only.
    facts: see `run_facts`.
    onnx: whether the bundle contains ONNX graphs.
    networks: number of networks whose probabilities are averaged.
  """
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  sections = {
      "Intended use": _use(record, facts),
      "Limits": _LIMITS,
      "Classes": _classes(record, facts),
      "Training data": _data(facts),
      "Scores": _scores(facts),
      "Input": _input(record),
      "Network and training": _network(record, count, facts, networks),
      "Files": (_FILES + (_ENCODER if facts.get("part") == "encoder" else _PREDICT)
                + (_ONNX if onnx else "")),
      "Licence": _licence(facts),
  }
  names = ", ".join(map(_cell, record.table.names))
  return f"# Model card: {names}\n\n" + "\n".join(
      f"## {title}\n\n{text.strip()}\n" for title, text in sections.items())


_LIMITS = """
- Images of another modality, spacing, field of view, acquisition or population than those of the
  training data may be segmented wrongly without a sign of it.
- A class was learned only from the datasets that annotate it, see below: whether it is found in
  images of the others was never seen in training.
- The network answers for the classes of the table alone; every other structure is background.
- Scores on held-out cases are of the same datasets, and the choice between checkpoints may rest on
  them: they are no measure of images from elsewhere.
- This is not a medical device. What it finds must be checked by a qualified person before anything
  depends on it.
"""

_FILES = """
One zip archive of stored members; `manifest.json` has the SHA-256 of each. Parameters are arrays of
NumPy (`parameters/*.npy`), the rest is JSON.
"""

_PREDICT = """
    condseg-predict --workdir=THIS_FILE --input=IMAGE --output=FOLDER
"""

_ENCODER = """
    condseg-train --config=CONFIG --config.init.source=THIS_FILE --config.init.what=encoder
"""

_ONNX = """
`encoder.onnx` takes an image, `decoder.onnx` its features and class ids, for one window; both
compute in float32. `condseg-predict --runtime=onnx` uses them.
"""


def _use(record, facts) -> str:
  table, ndim = record.table, len(record.plan.spacing)
  if facts.get("part") == "encoder":
    return (f"The encoder of a {ndim}-D network, for a training on {_IMAGES[record.plan.modality]} "
            "to start from. It segments nothing by itself.")
  presets = "".join(f"\n\nPreset `{_cell(name)}`: {', '.join(map(_cell, group))}."
                    for name, group in sorted(table.presets.items()))
  return (f"Segments {len(table)} {'class' if len(table) == 1 else 'classes'} in {ndim}-D "
          f"{_IMAGES[record.plan.modality]}: images like those it was trained on. The result is "
          f"the probability of each class at each voxel, and a label map made of them.{presets}")


def _licence(facts) -> str:
  origin = facts.get("origin")
  if not origin:
    return "None is recorded for the parameters."
  rows = [(key, value) for key, value in sorted(origin.items())]
  return ("The parameters were converted from those named here, whose licence applies to them; it "
          "is not recorded.\n\n" + _table(("origin", ""), rows))


def _classes(record, facts) -> str:
  rows = []
  for number, entry in enumerate(record.table.classes):
    where = [d["name"] for d in facts.get("datasets", ()) if entry.name in d["annotated"]]
    rows.append((number + 1, entry.name, f"{entry.code:.6f}", ", ".join(where) or "not recorded"))
  return _table(("value in the label map", "class", "code", "annotated in"), rows)


def _data(facts) -> str:
  datasets, images = facts.get("datasets"), facts.get("images")
  if not datasets:
    return "Not recorded."
  text = _table(("dataset", "training cases", "annotates"),
                [(d["name"], d["cases"], ", ".join(d["annotated"])) for d in datasets])
  text += "\n\nA class that a dataset does not annotate was unlabelled there, not absent."
  if images:
    rows = [(name, *(" × ".join(f"{x:.4g}" for x in images[key][part])
                     for part in ("min", "median", "max")))
            for name, key in (("shape", "native_shape"), ("spacing", "native_spacing"))]
    text += "\n\n" + _table(("images, slowest axis first", "least", "median", "most"), rows)
  return text


def _scores(facts) -> str:
  scores = facts.get("held_out")
  if not scores:
    return "The run recorded none for this checkpoint."
  rows = [(name, f"{dice:.4f}") for name, dice in scores["dice"].items()]
  return ("On cases held out of the training datasets, each on the classes that it annotates:\n\n"
          + _table(("class", "mean Dice"), [*rows, ("mean", f"{scores['mean_dice']:.4f}")]))


def _input(record) -> str:
  plan = record.plan
  unit = "mm" if len(plan.spacing) == 3 else "pixels of the file"
  intensity = {
      "ct": f"clipped to {plan.low:.6g} to {plan.high:.6g} HU, less {plan.mean:.6g}, divided by "
            f"{plan.sd:.6g}",
      "mr": "mean 0 and standard deviation 1 of each image",
      "rgb": "0 to 255 mapped to -1 to 1"}[plan.modality]
  return _table(("", ""), [("spacing", f"{_times(plan.spacing)} {unit}"),
                           ("window", f"{_times(plan.subvolume)} voxels"),
                           ("intensities", intensity)])


def _network(record, count, facts, networks) -> str:
  config = record.config.to_dict()
  model, condition = config["model"], config["conditioning"]
  rows = [("parameters", count), ("step of the checkpoint", facts["step"])]
  if networks > 1:
    rows.insert(0, ("networks, whose probabilities are averaged", networks))
  rows += [(f"model.{key}", _value(value)) for key, value in sorted(model.items())]
  rows += [(f"conditioning.{key}", _value(value)) for key, value in sorted(condition.items())]
  for part in ("data", "augment", "loss", "optimizer", "train"):
    settings = sorted((key, value) for key, value in config.get(part, {}).items()
                      if (part, key) not in _ELSEWHERE)
    rows += [(f"{part}.{key}", _value(value)) for key, value in settings]
  return _table(("setting", "value"), rows)


def _value(value) -> str:
  return json.dumps(value)


def _times(values: Sequence[float]) -> str:
  return " × ".join(f"{value:.4g}" for value in values)


def _table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value) -> str:
  """Escapes text so that it cannot end a table cell or begin a line."""
  return " ".join(str(value).split()).replace("|", "\\|")
