"""condseg-analyse --workdir=RUN[,RUN…] --data=DIR --out=DIR

Compares what networks make of the class they are asked for, layer by layer: how much each layer
tells of the class and of its mask, how alike its features are under two classes, how large the
gradients of the classes are and whether they conflict.

  condseg-analyse --workdir=runs/input,runs/decoder --names=cond_2nd,cond_dec \\
    --data=Task04_Hippocampus --out=analysis

Runs of one name, such as seeds, are drawn as one: their mean, and a band from the least to the
most. Writes analysis.json (all numbers), analysis.csv (network, run, layer, part, level, measure,
class, value), analysis.md (means of encoder and decoder) and the figures. With --redraw, all but
the first are made again from analysis.json in --out.
"""

from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_list("workdir", [], "Folders of the training runs, or bundles.", flag_values=values)
  flags.DEFINE_string("checkpoint", "last", "last, best or a step.", flag_values=values)
  flags.DEFINE_list("names", [], "Name of each run, the same for those that are repeats of one "
                    "another; those of their folders when empty.", flag_values=values)
  flags.DEFINE_string("data", "", "Raw dataset or prepared store with labels.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the results.", flag_values=values)
  flags.DEFINE_string("split", "", "train, val or test; by default val where there is one, else "
                      "test, else train.", flag_values=values)
  flags.DEFINE_integer("cases", 20, "Cases that features are taken of.", lower_bound=2,
                       flag_values=values)
  flags.DEFINE_integer("gradient_cases", 8, "How many of these gradients are taken of.",
                       lower_bound=2, flag_values=values)
  flags.DEFINE_bool("maps", True, "Show the features of one image; without, the results hold "
                    "no picture of a patient.", flag_values=values)
  flags.DEFINE_string("cache", "", "Where raw data is prepared; by default in the user's cache "
                      "folder.", flag_values=values)
  flags.DEFINE_bool("redraw", False, "Make CSV and figures again from analysis.json in --out.",
                    flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, *(("out",) if values.redraw else ("workdir", "data", "out")))
  from condseg_jax.analysis import draw
  from condseg_jax.analysis import files

  out = Path(values.out)
  if values.redraw:
    study = files.read_json(out)
  else:
    names = _names(values)
    study = _study(values, names)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out, study)
  pictures = draw.write(out, study)
  for name, runs in study["networks"].items():
    if parts := runs[0].get("unmeasured"):
      print(f"{name}: not measured, since no layer of the shared network: {', '.join(parts)}")
    for state in runs[0]["no_gradient"]:
      if layers := [layer for run in runs for layer in run["no_gradient"][state]]:
        print(f"{name}, {state}: no gradient reaches {', '.join(dict.fromkeys(layers))}")
  print(f"results: {out}: {files.JSON}, {files.CSV}, {files.SUMMARY}, "
        f"{', '.join(p.name for p in pictures)}")
  return 0


def _names(values: flags.FlagValues) -> list[str]:
  """One for each run."""
  names = values.names or [Path(run).stem for run in values.workdir]
  if len(names) != len(values.workdir):
    raise InputError("--names", f"{len(names)} for {len(values.workdir)} runs",
                     "give one name for each", usage=True)
  if not values.names and len(set(names)) < len(names):
    raise InputError("--workdir", f"folders of one name: {', '.join(names)}",
                     "name the runs with --names, repeats alike", usage=True)
  return names


def _study(values: flags.FlagValues, names: list[str]) -> dict:
  """Every network on the same cases."""
  import tqdm

  from condseg_jax.analysis.run import analyse
  from condseg_jax.analysis.samples import read_samples
  from condseg_jax.datasets import discover
  from condseg_jax.loading import load
  from condseg_jax.model_io.load import read_model
  from condseg_jax.system.cache import enable_compilation_cache

  enable_compilation_cache()
  networks, firsts, told = {}, {}, {}
  for name, run in zip(names, values.workdir, strict=True):
    predictor = load(run, values.checkpoint)
    kind = (predictor.model, tuple(predictor.table.names))
    if firsts.setdefault(name, kind) != kind:
      raise InputError(run, f"has another network or other classes than the first run of the name "
                       f"{name}", "give it another name with --names", usage=True)
    config = read_model(run, values.checkpoint).record.config
    stores = discover.open_stores(values.data, predictor.plan.spacing, values.cache or None)
    samples, split = read_samples(stores, predictor.table, predictor.plan, values.cases,
                                  values.split)
    cases = [sample.id for sample in samples]
    if told.setdefault("cases", cases) != cases:
      raise InputError(run, f"would be measured on other cases than {names[0]}: its classes or "
                       "spacing are others", "compare networks of the same classes, or give data "
                       "that annotates all classes of each", usage=True)
    if len(samples) < 2:
      raise InputError(values.data, f"holds {len(samples)} case of the split {split!r}",
                       "two are needed: one to fit on and one to score", usage=True)
    steps = len(samples) * len(predictor.table) + 2 * min(len(samples), values.gradient_cases)
    with tqdm.tqdm(total=steps, desc=name) as bar:
      found = analyse(predictor, samples, loss=config.loss, seed=config.seed,
                      gradient_images=values.gradient_cases,
                      pictures=values.maps and name not in networks,
                      seen=lambda bar=bar: bar.update())
    networks.setdefault(name, []).append(found)
    told |= {"split": split, "gradient_cases": values.gradient_cases}
  return {**told, "networks": networks}


if __name__ == "__main__":
  sys.exit(main())
