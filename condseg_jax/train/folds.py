"""Cross-validation: a network for each fold, and what each finds in the cases it did not see."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import logging
import zlib

from etils import epath
import numpy as np

from condseg_jax import metrics
from condseg_jax.config import Config
from condseg_jax.data import selection
from condseg_jax.data.folds import split
from condseg_jax.data.priors import smallest_ml
from condseg_jax.data.selection import Dataset
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.evaluate import quality
from condseg_jax.evaluate.border_voxels import BorderVoxels
from condseg_jax.evaluate.calibration import calibrate
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.cases import stored_cases
from condseg_jax.evaluate.cross_validation import cross_validated
from condseg_jax.evaluate.postprocess_tuning import Candidates
from condseg_jax.evaluate.postprocess_tuning import choose
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.loading import load
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.fold_run import is_fold_run
from condseg_jax.model_io.fold_run import Voxels
from condseg_jax.predictor import Predictor
from condseg_jax.system.lock import held
from condseg_jax.train import parallel
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.loop import Start
from condseg_jax.train.loop import train
from condseg_jax.train.loop import Watcher
from condseg_jax.train.setup import check_config

log = logging.getLogger("condseg_jax")


def train_folds(config: Config, stores: Sequence[Store], workdir, folds: int, *,
                resume: str = "auto", verify: bool = True, probabilities: bool = False,
                watcher: Callable[[epath.Path], Watcher] | None = None,
                start: Callable[[], Start] | None = None) -> FoldRun | None:
  """Trains a network for each fold, one after the other, and scores each on the cases it left out.

  All training cases describe the classes, the plan and the statistics of every member, so that the
  members can be averaged; only the cases of its own folds are trained on. The fold of a member
  takes the place of `data.hold_out`. Member n is trained with the seed `config.seed` + n.

  Args:
    config: all settings, of each member.
    stores: prepared data.
    workdir: folder of the run; the layout is that of `model_io.fold_run`.
    folds: number of members.
    resume: see `train.loop.train`: finished members are skipped, an interrupted one is resumed.
    verify: see `train.loop.train`.
    probabilities: whether the probabilities of out-of-fold predictions are kept.
    watcher: makes the watcher of a member from its folder.
    start: see `train.loop.train`; every member starts from it.

  Returns:
    The run with its scores; None after a SIGTERM, after which the same call resumes.

  Raises:
    InputError: see `train.loop.train`; fewer patients than folds; a workdir of another run.
  """
  check_config(config)
  datasets = _datasets(config, stores)
  places = split(datasets, folds, config.seed)
  with held(workdir) if parallel.is_first() else contextlib.nullcontext():
    with parallel.first_process_first():
      run = _begun(FoldRun(epath.Path(workdir), config.seed, folds, places),
                   resume if parallel.is_first() else "auto")
    for number in range(folds):
      place = run.member(number)
      log.info("member %d of %d: %s", number + 1, folds, place)
      status = train(dataclasses.replace(config, seed=config.seed + number), stores, place,
                     resume="last_whole" if resume == "last_whole" else "auto", verify=verify,
                     watcher=watcher and watcher(place), fold=run.fold(number), start=start)
      if status != "finished":
        return None
      _predict(run, number, stored_cases(datasets), probabilities=probabilities)
    if parallel.is_first():
      run = _scored(run, datasets)
      run.write()
    return run


def _datasets(config: Config, stores: Sequence[Store]) -> list[Dataset]:
  """Returns the training datasets with the cases that take part."""
  everything = selection.datasets(stores, "train")
  selection.check_annotated("data.include_classes", config.data.include_classes, everything)
  limited = [selection.max_cases(d, config.data.max_cases, config.seed) for d in everything]
  return selection.include_classes(limited, config.data.include_classes)


def _begun(run: FoldRun, resume: str) -> FoldRun:
  """Writes the split of a new run, or checks that of the run in the folder."""
  if is_fold_run(run.folder):
    recorded = FoldRun.open(run.folder)
    if resume == "never":
      raise InputError(run.folder, "already holds a cross-validated run",
                       "choose another workdir, or use resume=auto")
    if recorded.count != run.count:
      raise InputError("folds", f"is {run.count}, {run.folder} was started with {recorded.count}",
                       "choose another workdir, or the number it was started with", usage=True)
    if recorded.places != run.places:
      raise InputError(run.folder, "was split over other cases, or with another seed",
                       "choose another workdir, or the data and settings it was started with",
                       usage=True)
    return recorded
  if resume == "must":
    raise InputError(run.folder, "holds no cross-validated run to resume",
                     "check the workdir, or use resume=auto")
  if (run.folder / "checkpoints").exists():
    raise InputError(run.folder, "holds a run without folds", "choose another workdir", usage=True)
  run.folder.mkdir(parents=True, exist_ok=True)
  if parallel.is_first():
    run.write()
  return run


def _predict(run: FoldRun, number: int, cases: Sequence[LabelledCase], *,
             probabilities: bool) -> None:
  """Predicts the cases that a member did not see, unless its last checkpoint has done so."""
  checkpoints = Checkpoints(run.member(number), read_only=True)
  try:
    step = checkpoints.pick("last")
  finally:
    checkpoints.close()
  unseen = [case for case in cases if case.id in run.fold(number).held_out
            and not _is_done(run, case.id, step, probabilities)]
  parallel.gather([])  # before any process writes: all divide the same cases
  if unseen:
    predictor = load(run.member(number), str(step))
    log.info("member %d predicts %d cases that it did not see", number + 1, len(unseen))
    for case in parallel.share(unseen):
      folder = run.probabilities_folder(case.id)
      if folder.exists():
        folder.rmtree()
      volume, truth = case.read()
      border = _border(predictor, case.id, volume, truth)
      prediction = predictor.predict(volume, clean=False, observe=border,
                                     probabilities=str(folder) if probabilities else "")
      voxels = {predictor.table.names[i]: found for i, found in border.voxels().items()}
      run.write_out_of_fold(case.id, prediction, step, probabilities=probabilities, voxels=voxels)
  parallel.gather([])  # until all have written theirs


def _border(predictor: Predictor, case: str, volume: Volume,
            truth: Mapping[str, np.ndarray]) -> BorderVoxels:
  """Draws the voxels of a case for calibration; stores have the spacing of the network."""
  masks = {predictor.table.index(name): to_canonical(Volume(mask, volume.affine)).array
           for name, mask in truth.items()}
  return BorderVoxels(masks, seed=zlib.crc32(case.encode()))


def _is_done(run: FoldRun, case: str, step: int, probabilities: bool) -> bool:
  try:
    found = run.out_of_fold(case)
  except InputError:
    return False
  return found.step == step and (not probabilities or found.probabilities is not None)


def _scored(run: FoldRun, datasets: Sequence[Dataset]) -> FoldRun:
  """Returns the run with the scores of its out-of-fold predictions, and what is fitted on them:
  component filters, calibration, and maps from confidence to Dice."""
  rows: list[CaseScore] = []
  voxels: dict[str, dict[str, Voxels]] = {}  # class → case → voxels
  confident: dict[str, list[tuple[float, float, int]]] = {}  # class → soft Dice, Dice, member
  trials = Candidates(smallest_ml([case for d in datasets for case in d.cases]))
  names: tuple[str, ...] = ()
  for case in stored_cases(datasets):
    found, (volume, truth) = run.out_of_fold(case.id), case.read()
    names = names or tuple(found.names)
    for name, mask in truth.items():
      if name not in found.names:
        continue
      rows.append(CaseScore(case.id, name, metrics.score_case(found.mask(name), mask,
                                                              volume.spacing, fast=True)))
      confident.setdefault(name, [])
      if name in found.soft_dice and np.isfinite(dice := rows[-1].metrics["dice"]):
        confident[name].append((found.soft_dice[name], float(dice), found.member))
      voxels.setdefault(name, {})
      if name in found.voxels:
        voxels[name][case.id] = found.voxels[name]
    trials.on_case(case.id, volume, found.prediction, truth, ())
  scores = cross_validated(rows, {key: place.patient for key, place in run.places.items()}, names)
  cleaning = {name: dataclasses.asdict(c) for name, c in choose(trials.rows).items()}
  members = {key: place.fold for key, place in run.places.items()}
  maps = {name: quality.fit([x for x, _, _ in found], [y for _, y, _ in found],
                            [member for _, _, member in found])
          for name, found in confident.items()}
  return dataclasses.replace(
      run, scores=scores, cleaning=cleaning,
      calibration={name: calibrate(found, members) for name, found in voxels.items()},
      quality={name: dataclasses.asdict(found) for name, found in maps.items() if found})
