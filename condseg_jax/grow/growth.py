"""What a growth starts from: the network, new data, data of the network where they are at hand."""

from collections.abc import Sequence
import dataclasses
import logging

from etils import epath

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.data import selection
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.fingerprint import same_fingerprint
from condseg_jax.data.selection import Dataset
from condseg_jax.data.selection import Fold
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.losses import RIVALS
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.fold_run import is_fold_run
from condseg_jax.model_io.load import read_model
from condseg_jax.model_io.own_rows import own_rows
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.class_axes import class_axes
from condseg_jax.plan import same_spacing
from condseg_jax.train.new_classes import grown

HOLD_OUT = 0.2  # share of the cases of every new dataset that levels are judged by; one at least

log = logging.getLogger("condseg_jax")


@dataclasses.dataclass(frozen=True)
class Growth:
  """A network and the data that it grows by.

  Attributes:
    source: run or bundle of the network.
    network: the network; of an ensemble the first member.
    stores: the new data.
    old_stores: data that the network was trained on, if they are at hand.
    training: datasets to train on, the new ones and then the old ones.
    held_out: new cases to judge by.
    old_held_out: cases of the old data that the network has not seen.
    overlapping: pairs of classes that a voxel may both belong to, besides those that are known.
    new: annotated classes that the network does not know.
    known: annotated classes that it knows, which are adapted.
  """

  source: str
  network: Bundle
  stores: Sequence[Store]
  old_stores: Sequence[Store]
  training: Sequence[Dataset]
  held_out: Sequence[Dataset]
  old_held_out: Sequence[Dataset]
  overlapping: Sequence[tuple[str, ...]]
  new: tuple[str, ...]
  known: tuple[str, ...]

  @property
  def record(self) -> ModelRecord:
    return self.network.record

  @property
  def table(self) -> ClassTable:
    """The classes of the network, followed by the new ones."""
    names = (*self.known, *self.new)
    sides = {c.name: c.no_mirror for s in self.stores for c in s.table.classes if c.name in names}
    table = grown(ClassTable.create(names, no_mirror=sides), self.record.table)
    pairs = {*table.overlapping, *((min(p), max(p)) for p in self.overlapping)}
    pairs |= {pair for s in self.stores for pair in s.overlapping if set(pair) <= {*table.names}}
    return dataclasses.replace(table, overlapping=tuple(sorted(pairs)))

  @property
  def old(self) -> tuple[str, ...]:
    """The classes of the network that no new dataset annotates."""
    return tuple(n for n in self.record.table.names if n not in self.known)

  @property
  def teaches(self) -> bool:
    """Whether a new image lacks masks of a class of the network."""
    known = set(self.record.table.names)
    return any(known - set(c.annotated) for s in self.stores for c in s.cases)

  @property
  def levels(self) -> tuple[int, ...]:
    """The levels that this network has for these data, see `grow.levels`."""
    conditioning = self.record.config.conditioning
    if not self.new:
      return (2,)
    vector = "class_vector" in self.network.params and conditioning.vector == "embedding"
    return (0, 1, 2) if vector else (1, 2)

  @property
  def order(self) -> tuple[int, ...]:
    """The levels to try, best first; without old data level 2 forgets, unless it only adapts."""
    highest = 2 if self.old_stores or not self.new else 1
    return tuple(n for n in reversed(self.levels) if n <= highest)

  def is_new(self, dataset: Dataset) -> bool:
    """Returns whether a dataset is one of the new ones."""
    return any(dataset.cases[0].key == case.key for s in self.stores for case in s.cases)

  def fold(self, level: int) -> Fold:
    """Returns which cases a level trains on and holds out; only the last one uses old data."""
    training = [d for d in self.training if level == 2 or self.is_new(d)]
    return Fold(frozenset(c.key for d in training for c in d.cases),
                frozenset(c.key for d in self.held_out for c in d.cases))


def read_source(path: str) -> Bundle:
  """Reads the network that grows: the last checkpoint of a run, of an ensemble the first member.

  Raises:
    InputError: it is missing, damaged, of a newer format, or cannot grow.
  """
  network = read_model(path, members=1)
  record = network.record
  if record.config.loss.objective in RIVALS:
    raise InputError(path, f"was trained with the objective {record.config.loss.objective!r}, in "
                     "which the logits of a class have a meaning only beside those of all others",
                     "train it with 'dice_bce'")
  axes = class_axes(record.config.model, own_rows(record.config.conditioning), len(record.table),
                    record.plan.channels)
  if not axes.axes:
    raise InputError(path, "has no parameters that belong to a class "
                     f"(conditioning.position is {record.config.conditioning.position!r})",
                     "train a conditioned network")
  return network


def make_growth(source: str, network: Bundle, stores: Sequence[Store],
                old_stores: Sequence[Store] = (), *, named: bool = False,
                overlapping: Sequence[Sequence[str]] = ()) -> Growth:
  """Checks that new data fit a network, and divides the cases.

  Args:
    source: run or bundle of the network.
    network: see `read_source`.
    stores: the new data.
    old_stores: what may be the data of the network. Datasets among the new ones, and datasets that
      annotate other classes, are left out.
    named: whether the user said that they are; else they are used only if they have not changed.
    overlapping: see `Growth`.

  Raises:
    InputError: data of another modality, spacing or number of channels; a pair that is none, or of
      an unknown class; too few cases.
  """
  record = network.record
  for store in (*stores, *old_stores):
    _check_fits(store, record, source)
  datasets = selection.datasets(stores)
  annotated = dict.fromkeys(name for d in datasets for name in d.annotated)
  known = tuple(n for n in annotated if n in record.table.names)
  new = tuple(n for n in annotated if n not in record.table.names)
  pairs = [tuple(map(normal_name, pair)) for pair in overlapping]
  for pair in pairs:
    unknown = [name for name in pair if name not in (*record.table.names, *new)]
    if len(pair) != 2 or unknown:
      raise InputError("overlapping", f"{':'.join(pair)} is no pair of classes",
                       f"name two of {', '.join((*record.table.names, *new))}, as in A:B",
                       usage=True)
  parts = selection.hold_out(datasets, HOLD_OUT, record.config.seed, least=1)
  for name in annotated:
    if not any(out.cases and name in d.annotated for d, out in parts):
      raise InputError("data", f"annotates {name!r} in a single case, so that none is left to "
                       "judge by", "annotate a second one")
  keys = {case.key for store in stores for case in store.cases}
  training, held_out = _old_parts(source, network, old_stores, keys, named)
  return Growth(source, network, tuple(stores), tuple({d.store.root: d.store for d in training
                                                       }.values()),
                (*(d for d, _ in parts), *training), tuple(d for _, d in parts if d.cases),
                tuple(d for d in held_out if d.cases), pairs, new, known)


def _check_fits(store: Store, record: ModelRecord, source: str) -> None:
  plan = record.plan
  if store.modality != plan.modality or len(store.spacing) != len(plan.spacing):
    raise InputError(store.root, f"has {len(store.spacing)}-D {store.modality} images, {source} "
                     f"was trained on {len(plan.spacing)}-D {plan.modality}",
                     "train another network on them", usage=True)
  if not same_spacing(store.spacing, plan.spacing):
    raise InputError(store.root, f"has the spacing {store.spacing}, {source} {plan.spacing}",
                     "prepare it with that spacing", usage=True)
  for case in store.cases[:1]:
    channels = store.read_image(case, (slice(0, 0),)).shape[-1]
    if channels != plan.channels:
      raise InputError(store.root, f"has images of {channels} channels, {source} was trained on "
                       f"{plan.channels}", "train another network on them", usage=True)


def _old_parts(source: str, network: Bundle, stores: Sequence[Store], new_keys: set[str],
               named: bool) -> tuple[list[Dataset], list[Dataset]]:
  """Divides the data of the network as its training did: those trained on, those held out."""
  if not stores:
    return [], []
  config, table = network.record.config, network.record.table
  datasets = [d for d in selection.datasets(stores) if not any(c.key in new_keys for c in d.cases)]
  datasets = [d for d in selection.include_classes(datasets, config.data.include_classes)
              if set(d.annotated) <= set(table.names)]
  if is_fold_run(source):
    fold = FoldRun.open(source).fold(0)
    parts = [(d.only(fold.training), d.only(fold.held_out)) for d in datasets]
    described = [d.only(fold.training | fold.held_out) for d in datasets]
  else:
    parts = selection.hold_out(datasets, config.data.hold_out, config.seed)
    parts = [(selection.max_cases(d, config.data.max_cases, config.seed), out) for d, out in parts]
    described = [d for d, _ in parts]
  cases = [case for d in described for case in d.cases]
  same = bool(cases) and same_fingerprint(fingerprint(cases)["pooled"], network.record.training)
  if not same and not named:
    log.info("the data of %s have changed since, and are not used", source)
    return [], []
  if not same:
    log.warning("the old data differ from those that %s was trained on: it may have seen the cases "
                "that old classes are judged by", source)
  return [d for d, _ in parts if d.cases], [d for _, d in parts]


def data_digest(stores: Sequence[Store]) -> list[str]:
  """Returns what identifies cases and masks, whatever their place."""
  return sorted(f"{case.key} {case.split} {case.sha256}" for s in stores for case in s.cases)


def at_hand(network: Bundle) -> str:
  """Returns where the data of a network lie, if they still do; "" otherwise."""
  root = network.record.config.data.root
  return root if root and epath.Path(root).exists() else ""
