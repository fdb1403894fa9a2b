"""Plans the trials of studies: which are done and which remain, identified by keys."""

from collections.abc import Callable
from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
import shutil
from typing import Any

from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.study import configs
from condseg_jax.study import datasets
from condseg_jax.study import fingerprint as keys
from condseg_jax.study import records
from condseg_jax.study.declare import Study
from condseg_jax.study.declare import Trial
from condseg_jax.train.run_files import finished


@dataclasses.dataclass(frozen=True)
class RunPaths:
  """Folders of a session.

  Attributes:
    experiments: folder with `configs/` and `studies/`.
    data: raw datasets.
    out: records, tables, figures, and `work`, which is never committed.
  """

  experiments: Path
  data: Path
  out: Path

  @property
  def work(self) -> Path:
    return self.out / "work"

  def run(self, key: str) -> Path:
    """Returns the workdir of a member's training."""
    return self.work / "runs" / key

  def kept(self, key: str) -> Path:
    """Returns the file that keeps image, truth and prediction of one case of a trial."""
    return self.work / "shown" / f"{key[:records.KEY_DIGITS]}.npz"


@dataclasses.dataclass(frozen=True)
class Job:
  """A trial with everything that determines its result.

  Attributes:
    trial: as declared.
    order: index of its variant in the study.
    study: its study.
    data: its dataset.
    configs: configs of its members.
    keys: keys of its members.
    key: key of its result.
    path: path of its record.
    further: of a network that grows or is federated the arguments of `fingerprint.further_key`.
  """

  trial: Trial
  order: int
  study: Study
  data: datasets.Dataset
  configs: tuple[Config, ...]
  keys: tuple[str, ...]
  key: str
  path: Path
  further: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def done(self) -> bool:
    return records.known(self.path, self.key)

  @property
  def steps(self) -> list[int]:
    return [config.train.steps for config in self.configs]


def make_job(study: Study, trial: Trial, places: RunPaths) -> Job:
  """Returns a trial with its keys, preparing its dataset if necessary."""
  data = datasets.dataset(trial.variant.dataset, places.data, places.work)
  source = keys.source_digest()
  made = tuple(configs.member_config(m, places.experiments, seed=trial.seed, root=data.root,
                                     cache=places.work / "data")
               for m in trial.variant.members)
  member_keys = tuple(keys.member_key(config, data.data, source) for config in made)
  key = keys.trial_key(member_keys, trial.variant.fusion, data.truth)
  further: dict[str, Any] = {}
  for what in ("growth", "federated"):
    if (how := getattr(trial.variant, what)) is not None:
      further = {"how": {what: dataclasses.asdict(how)},
                 "source": keys.source_digest(keys.FURTHER_ENTRIES[what])}
      key = keys.further_key(key, **further)
  return Job(trial, study.variants.index(trial.variant), study, data, made, member_keys, key,
             records.path_of(places.out, study.name, trial.name, key), further)


def jobs(studies: Iterable[Study], places: RunPaths, seeds: Sequence[int] = (),
         only: Sequence[str] = (), *, without: Container[str] = ()) -> list[Job]:
  """Returns all trials of some studies in the order in which they are run.

  Args:
    studies: declared studies.
    places: folders of the session.
    seeds: see `Study.trials`.
    only: see `Study.trials`.
    without: datasets whose trials are left out.
  """
  return [make_job(study, trial, places) for study in studies
          for trial in study.trials(seeds, only) if trial.variant.dataset not in without]


def unprepared(studies: Iterable[Study], places: RunPaths, seeds=(), only=()) -> dict[str, int]:
  """Returns unprepared dataset → number of trials that need it, none of which can be done yet."""
  counts: dict[str, int] = {}
  for study in studies:
    for trial in study.trials(seeds, only):
      if not datasets.begun(trial.variant.dataset, places.work):
        counts[trial.variant.dataset] = counts.get(trial.variant.dataset, 0) + 1
  return counts


class Pace:
  """Estimates seconds per step from existing records, or from the study's estimate without any."""

  def __init__(self, out: Path):
    self._seconds: dict[tuple[str, str], list[float]] = {}
    for folder in sorted((out / "records").glob("*")):
      for path in records.files(folder):
        with contextlib.suppress(InputError):  # damaged records are reported where they are used
          self.add(records.read(path))

  def add(self, record: Mapping) -> None:
    steps, seconds = sum(record["steps"]), record["seconds"]
    for label in (record["label"], ""):
      self._seconds.setdefault((_family(record["dataset"]), label), []).append(
          (seconds["training"] + seconds["scoring"]) / steps)

  def left(self, todo: Sequence[Job], places: RunPaths) -> float:
    """Returns the seconds that a list of trials takes; trained members cost nothing."""
    seen, total = set(), 0.0
    for job in todo:
      variant = job.trial.variant
      family = _family(variant.dataset)
      measured = self._seconds.get((family, variant.label), self._seconds.get((family, "")))
      pace = sorted(measured)[len(measured) // 2] if measured else job.study.seconds
      for key, steps in zip(job.keys, job.steps, strict=True):
        if key not in seen and not finished(places.run(key)):
          total += pace * steps
        seen.add(key)
    return total


def _family(dataset: str) -> str:
  """Returns the name shared by datasets of the same images: `hippocampus_full` → `hippocampus`."""
  return dataset.split("_")[0]


def duration(seconds: float) -> str:
  """Formats a duration for display."""
  if seconds < 60:
    return f"{round(seconds)} s"
  minutes = round(seconds / 60)
  return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def prune(everything: Sequence[Job], chosen: Sequence[Job], places: RunPaths,
          tell: Callable[[str], None]) -> int:
  """Removes the checkpoints of members that no trial needs any longer; returns their number.

  Args:
    everything: trials of all studies, which may share members.
    chosen: trials whose members may be removed.
    places: folders of the session.
    tell: called with a line for each removal.
  """
  needed = {key for job in everything if not job.done for key in job.keys}
  removed = 0
  for key in dict.fromkeys(key for job in chosen if job.done for key in job.keys):
    folder = places.run(key) / "checkpoints"
    if key not in needed and folder.is_dir() and finished(places.run(key)):
      shutil.rmtree(folder)
      tell(f"removed {folder}")
      removed += 1
  return removed


def drop_old(study: Study, places: RunPaths, tell: Callable[[str], None]) -> None:
  """Removes the records of a study that match none of its current trials."""
  paths = records.files(places.out / "records" / study.name)
  seeds = dict.fromkeys((*study.seeds, *(records.read(path)["seed"] for path in paths)))
  current = {job.path.name for job in jobs([study], places, tuple(seeds))}
  for path in paths:
    if path.name not in current:
      path.unlink()
      tell(f"removed {path}")
