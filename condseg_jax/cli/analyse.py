"""condseg-analyse --workdir=RUN[,RUN…] --data=DIR --out=DIR

Measures the effect of class conditioning in each layer of one or several networks: linear probes
for the class and for its mask, similarity of the features under two classes, norms of the gradients
of the classes and the conflicts between them.

  condseg-analyse --workdir=runs/input,runs/decoder --names=cond_2nd,cond_dec \\
    --data=Task04_Hippocampus --out=analysis

Runs with the same name, such as seeds, are drawn as one curve: their mean, and a band from the
smallest to the largest. Writes analysis.json (all numbers), analysis.csv (network, run, layer,
part, level, measure, class, value), analysis.md (means of encoder and decoder) and the figures.
--redraw writes tables and figures again from analysis.json in --out.
"""

from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_list("workdir", [], "Folders of the training runs, or bundles; of an ensemble its "
                    "first member.", flag_values=values)
  flags.DEFINE_string("checkpoint", "last", "last, best or a step.", flag_values=values)
  shell.define_verify(values)
  flags.DEFINE_list("names", [], "Name of each run, the same for repetitions; by default the names "
                    "of their folders.", flag_values=values)
  flags.DEFINE_string("data", "", "Raw dataset or prepared store with labels.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the results.", flag_values=values)
  flags.DEFINE_string("split", "", "train, val or test; by default val if it has cases, else test, "
                      "else train.", flag_values=values)
  flags.DEFINE_integer("cases", 20, "Maximum number of cases for the features.", lower_bound=2,
                       flag_values=values)
  flags.DEFINE_integer("gradient_cases", 8, "Maximum number of these cases for the gradients.",
                       lower_bound=2, flag_values=values)
  flags.DEFINE_bool("maps", True, "Show feature maps of one image; --nomaps keeps the results free "
                    "of patient images.", flag_values=values)
  flags.DEFINE_string("cache", "", "Folder for prepared data; by default in the user's cache "
                      "folder.", flag_values=values)
  flags.DEFINE_bool("redraw", False, "Write tables and figures again from analysis.json in --out.",
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
    if submodules := runs[0].get("unmeasured"):
      print(f"{name}: not analysed, not part of the shared network: {', '.join(submodules)}")
    for state in runs[0]["no_gradient"]:
      if layers := [layer for run in runs for layer in run["no_gradient"][state]]:
        print(f"{name}, {state}: no gradient in {', '.join(dict.fromkeys(layers))}")
  print(f"results: {out}: {files.JSON}, {files.CSV}, {files.SUMMARY}, "
        f"{', '.join(p.name for p in pictures)}")
  return 0


def _names(values: flags.FlagValues) -> list[str]:
  """Returns the name of each run."""
  names = values.names or [Path(run).stem for run in values.workdir]
  if len(names) != len(values.workdir):
    raise InputError("--names", f"{len(names)} names for {len(values.workdir)} runs",
                     "give one name per run", usage=True)
  if not values.names and len(set(names)) < len(names):
    raise InputError("--workdir", f"has folders of the same name: {', '.join(names)}",
                     "name the runs with --names, repetitions alike", usage=True)
  return names


def _study(values: flags.FlagValues, names: list[str]) -> dict:
  """Analyses all networks on the same cases and returns the content of analysis.json."""
  import tqdm

  from condseg_jax.analysis.run import analyse
  from condseg_jax.analysis.samples import read_samples
  from condseg_jax.datasets import discover
  from condseg_jax.loading import load
  from condseg_jax.model_io.load import read_model
  from condseg_jax.system.cache import enable_compilation_cache

  enable_compilation_cache()
  networks, first_of, settings = {}, {}, {}
  for name, run in zip(names, values.workdir, strict=True):
    predictor = load(run, values.checkpoint, verify=values.verify == "on", members=1)
    kind = (predictor.model, tuple(predictor.table.names))
    if first_of.setdefault(name, kind) != kind:
      raise InputError(run, f"differs in network or classes from the first run named {name}",
                       "give it another name with --names", usage=True)
    config = read_model(run, values.checkpoint, verify=values.verify == "on",
                        members=1).record.config
    stores = discover.open_stores(values.data, predictor.plan.spacing, values.cache or None)
    samples, split = read_samples(stores, predictor.table, predictor.plan, values.cases,
                                  values.split)
    cases = [sample.id for sample in samples]
    if settings.setdefault("cases", cases) != cases:
      raise InputError(run, f"would be analysed on other cases than {names[0]}: its classes "
                       "or spacing differ", "compare networks with the same classes, or give data "
                       "that annotates all classes of each", usage=True)
    if len(samples) < 2:
      raise InputError(values.data, f"has {len(samples)} case in the split {split!r}",
                       "give at least two: one to fit and one to score", usage=True)
    steps = len(samples) * len(predictor.table) + 2 * min(len(samples), values.gradient_cases)
    with tqdm.tqdm(total=steps, desc=name) as bar:
      network = analyse(predictor, samples, loss=config.loss, seed=config.seed,
                        gradient_images=values.gradient_cases,
                        pictures=values.maps and name not in networks,
                        on_progress=lambda bar=bar: bar.update())
    networks.setdefault(name, []).append(network)
    settings |= {"split": split, "gradient_cases": values.gradient_cases}
  return {**settings, "networks": networks}


if __name__ == "__main__":
  sys.exit(main())
