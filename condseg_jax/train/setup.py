"""Sets up a run from its config and data, or from its last checkpoint."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import grain
import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.config import Model
from condseg_jax.data import sampling
from condseg_jax.data import selection
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.priors import class_priors
from condseg_jax.data.selection import Dataset
from condseg_jax.data.selection import Fold
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.losses import make_objective
from condseg_jax.losses import RIVALS
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.class_vector import read_texts
from condseg_jax.models.conditioning import LAYERS
from condseg_jax.models.network import initial_variables
from condseg_jax.models.network import Network
from condseg_jax.plan import fit_subvolume
from condseg_jax.plan import Plan
from condseg_jax.train import parallel
from condseg_jax.train.augment import check_augmentations
from condseg_jax.train.memory import decodes_per_step
from condseg_jax.train.memory import excludes
from condseg_jax.train.memory import fitted_partition
from condseg_jax.train.memory import plan_summary
from condseg_jax.train.memory import step_bytes
from condseg_jax.train.memory import with_strides
from condseg_jax.train.resume import check_same_model
from condseg_jax.train.resume import check_same_plan
from condseg_jax.train.resume import resumed_config
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything that is constant during a run.

  Attributes:
    config: config of the run with the values resolved at its start: subvolume and strides of
      `plan` = `auto`, text vectors.
    record: config, class table, plan and statistics as stored in the checkpoints.
    training: the training datasets.
    held_out: their held-out part, for periodic scores.
    bare: the datasets without masks that are drawn, too.
    model: the network.
    plan_summary: plan, memory and fingerprint, for plan.json.
  """

  config: Config
  record: ModelRecord
  training: Sequence[Dataset]
  held_out: Sequence[Dataset]
  bare: Sequence[Dataset]
  model: Network
  plan_summary: Mapping

  def batches(self, start_step: int = 0) -> grain.DatasetIterator:
    """Returns this process's part of the batches of the run, from a step on; see `sampling`."""
    return sampling.batches(
        self.training, self.record.table, self.record.plan, self.config.data,
        seed=self.config.seed, bare=self.bare, start_step=start_step,
        process_index=jax.process_index(), process_count=jax.process_count())


def check_config(config: Config) -> None:
  """Checks everything that needs no data: values, registered names, and a valid network.

  Raises:
    InputError: a check fails.
  """
  Config.from_dict(config.to_dict())
  make_objective(config.loss)
  check_augmentations(config.augment)
  check_parts(config)
  texts = ((1.0,), (1.0,)) if config.conditioning.vector == "text" else ()
  conditioning = dataclasses.replace(config.conditioning, texts=texts)
  build_model(config.model, conditioning, (-0.5, 0.5))


def make_setup(config: Config, stores: Sequence[Store], recorded: ModelRecord | None,
               workdir, fold: Fold | None = None) -> Setup:
  """Builds the parts of a run.

  Args:
    config: requested config.
    stores: prepared data.
    recorded: record of the last checkpoint if the run is resumed; its class table, plan and
      resolved settings are kept.
    workdir: workdir of the run, named in errors.
    fold: which cases to train on and to hold out, if the run is a member of a cross-validation.
      Classes, plan and statistics are those of all its cases, so that members agree in them.

  Raises:
    InputError: unusable data, settings that do not fit it, or a model that differs from the record.
  """
  data = config.data
  check_axes(config.model, stores[0])
  if excludes(config):
    for store in stores:
      store.check_overlaps()
  everything = selection.datasets(stores, "train")
  bare = selection.bare_datasets(stores) if data.bare else []
  if data.bare and not bare:
    raise InputError("data.bare", f"{data.bare:g} for datasets without masks, but all have some",
                     "prepare them with condseg-prepare --unlabelled, or set it to 0", usage=True)
  if data.bare and not config.augment.cutmix and not (
      sampling.uses_pseudo(data) and any(c.pseudo for d in bare for c in d.cases)):
    raise InputError("data.bare", "has no effect alone: images without masks teach nothing",
                     "set augment.cutmix above 0 or data.bare to 0, or make pseudo-masks",
                     usage=True)
  selection.check_annotated("data.include_classes", data.include_classes, everything)
  selection.check_annotated("train.only_classes", config.train.only_classes, everything)
  # Intensities are pooled over all datasets, whichever classes are learned, so that networks for a
  # subset of the classes get identically normalised images.
  if fold is None:
    parts = selection.hold_out(everything, data.hold_out, config.seed)
    parts = [(selection.max_cases(d, data.max_cases, config.seed), out) for d, out in parts]
    pooled = [d for d, _ in parts]
  else:
    parts = [(d.only(fold.training), d.only(fold.held_out)) for d in everything]
    # A dataset of which no case is in the fold has none of the classes to learn.
    pooled = [d.only(fold.training | fold.held_out) if part.cases else d
              for d, (part, _) in zip(everything, parts, strict=True)]
  training = selection.include_classes([d for d, _ in parts if d.cases], data.include_classes)
  held_out = selection.include_classes([d for _, d in parts if d.cases], data.include_classes)
  described = selection.include_classes(pooled, data.include_classes)  # by the record
  cases = [case for d in described for case in d.cases]
  if recorded is None:
    table = selection.class_table(described, stores, data)
    config = resolved_config(config, described, table)
    intensities = [np.asarray(case.intensities) for d in pooled for case in d.cases]
    plan = Plan.pooled(training[0].store.modality, training[0].store.spacing,
                       config.data.subvolume, intensities)
  else:
    table, plan = recorded.table, recorded.plan
    config = resumed_config(config, recorded.config)
    check_same_model(recorded.config, config, workdir)
    check_same_plan(plan, stores[0], config.data.subvolume, workdir)
  check_rivals(config.loss.objective, table)
  model = build_model(config.model, config.conditioning, table.codes)
  if not config.train.partition:
    possible = parallel.possible_partitions(model, plan.subvolume, data.batch_size)
    partition = fitted_partition(config, training, table, plan, possible)
    config = dataclasses.replace(config,
                                 train=dataclasses.replace(config.train, partition=partition))
  record = ModelRecord(config, table, plan, fingerprint(cases)["pooled"],
                       class_priors(cases, table.names))
  return Setup(config, record, training, held_out, bare, model,
               plan_summary(config, training, table, plan))


def make_step_and_state(setup: Setup) -> tuple[parallel.Driver, TrainState]:
  """Builds the step of a run for the devices at hand, and its state before the first step.

  Raises:
    InputError: a batch or a network that cannot be divided over the devices.
  """
  config, model, plan = setup.config, setup.model, setup.record.plan
  table, train = setup.record.table, config.train
  if (config.conditioning.position == "per_class_decoders" and train.driver == "jit"
      and jax.device_count() > 1):
    # XLA's partitioner fails on a convolution whose kernel differs from sample to sample.
    raise InputError("train.driver", "'jit' cannot divide the decoders of 'per_class_decoders' "
                     "among several devices", "use train.driver = 'pmap'", usage=True)
  parallel.check_partition(train.partition, model, plan.subvolume)
  further = further_labels(setup)
  if train.partition > 1:
    further["logits_of"] = parallel.partitioned_logits(train.partition)
  optimizer = make_optimizer(config.optimizer)
  step = make_train_step(
      model, optimizer, objective=make_objective(config.loss), augmentation=config.augment,
      spacing=plan.spacing, lateral_axes=lateral_axes(table, model.ndim),
      alpha_K=alphas(table, config.loss.alpha), ema_decay=train.ema_decay, seed=config.seed,
      grad_accum_steps=train.grad_accum_steps, learned=learned(setup), **further)
  driver = parallel.make_driver(train.driver, step, config.data.batch_size,
                                train.grad_accum_steps, train.partition)
  variables = initial_variables(model, config.seed, (*plan.subvolume, plan.channels))
  return driver, TrainState.create(variables, optimizer, ema=train.ema_decay > 0)


def learned(setup: Setup) -> dict | None:
  """Returns which entries of the parameters are learned, see `make_train_step`.

  Raises:
    InputError: a class of `train.only_classes` is unknown, or no parameter is its own.
  """
  config, table = setup.config, setup.record.table
  ids = [table.index(name) for name in config.train.only_classes]
  if not ids:
    return None
  from condseg_jax.models.class_axes import own_entries  # only for trainings of some classes
  own = own_entries(config.model, config.conditioning, len(table), setup.record.plan.channels, ids)
  if not any(leaf.any() for leaf in jax.tree.leaves(own)):
    raise InputError("train.only_classes", "no parameter of this network is a class's own "
                     f"(conditioning.vector is {config.conditioning.vector!r})",
                     "use the vector 'embedding' or 'one_hot'", usage=True)
  return own


def further_labels(setup: Setup) -> dict[str, Any]:
  """Returns the arguments of the step for labels of classes that a dataset does not annotate."""
  if not excludes(setup.config):
    return {}
  from condseg_jax.train.unlabelled import make_complete  # only for trainings with these labels
  loss, table = setup.config.loss, setup.record.table
  decodes = decodes_per_step(setup.config, setup.training, table)
  complete = make_complete(table.exclusive, decodes, setup.config.augment,
                                      lateral_axes(table, setup.model.ndim))
  return {"complete": complete,
          "exclusion_weight": loss.exclusion_weight if loss.further else 0.0}


# --- classes ------------------------------------------------------------------------------------
def check_rivals(objective: str, table: ClassTable) -> None:
  """Raises InputError if classes overlap, but the objective needs them to exclude each other."""
  if objective in RIVALS and table.overlapping:
    raise InputError("loss.objective", f"{objective!r} needs classes that exclude each other, but "
                     f"{' and '.join(map(repr, table.overlapping[0]))} overlap", "use 'dice_bce'",
                     usage=True)


def lateral_axes(table: ClassTable, ndim: int) -> np.ndarray:
  """Returns the axes along which a class must not be mirrored, bool [K, axes]."""
  axes = "DHW"[3 - ndim:]
  return np.array([[axis in c.no_mirror for axis in axes] for c in table.classes])


def alphas(table: ClassTable, alpha: Mapping[str, float]) -> np.ndarray:
  """Returns the weight α of every class, float32 [K]; 1 for classes that are not named."""
  alpha_K = np.ones(len(table), np.float32)
  for name, value in alpha.items():
    alpha_K[table.index(name)] = value
  return alpha_K


# --- settings resolved at the start of a run, and checks -----------------------------------------
def resolved_config(config: Config, training: Sequence[Dataset], table: ClassTable) -> Config:
  """Resolves the settings that are decided when a run starts.

  With `data.plan` = `auto`, subvolume and strides are the largest that fit into `data.memory_gb` on
  one device, and the last entry of `model.layers_per_level` applies to all coarser levels. The
  vectors of `conditioning.text_vectors` are read, so that the checkpoint does not need the file.
  """
  if config.conditioning.vector == "text":
    texts = read_texts(config.conditioning.text_vectors, table)
    config = config.override({"conditioning.texts": texts})
  if config.data.plan == "auto":
    store = training[0].store
    shape = np.median([case.shape for d in training for case in d.cases], axis=0)
    subvolume, strides = fit_subvolume(
        shape, store.spacing, step_bytes(config, training, table, store.modality),
        config.data.memory_gb * 1e9)
    config = dataclasses.replace(
        config, model=with_strides(config.model, strides),
        data=dataclasses.replace(config.data, subvolume=tuple(subvolume)))
  return config


def check_parts(config: Config) -> None:
  """Raises InputError if batch normalisation would see parts of a batch."""
  conditioning, parts = config.conditioning, config.train.grad_accum_steps
  acts = conditioning.position in LAYERS and conditioning.mechanism == "batch_norm"
  if acts and parts > 1:
    raise InputError("train.grad_accum_steps", f"{parts} excludes the mechanism 'batch_norm', "
                     "which needs the moments of a whole batch", "use 1, or another mechanism",
                     usage=True)


def check_axes(model: Model, store: Store) -> None:
  """Raises InputError if the network and the data differ in dimension (2-D or 3-D)."""
  if len(model.strides[0]) != len(store.spacing):
    raise InputError("model.strides", f"has {len(model.strides[0])} axes, the images "
                     f"{len(store.spacing)}", "give one stride per axis of the images", usage=True)
