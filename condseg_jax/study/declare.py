"""Study declarations: variants of a network, each trained from several seeds on a dataset.

A study file (`experiments/studies/NAME.py`) holds `get_study()` and a docstring, its lab note.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.util
from pathlib import Path
import re

from condseg_jax.errors import InputError

BASE = "base"  # shared by the study files, not a study


@dataclasses.dataclass(frozen=True)
class Member:
  """One training.

  Attributes:
    config: name of a file in `experiments/configs`.
    overrides: dotted field of that config → value.
  """

  config: str
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def replace(self, **changes) -> "Member":
    """Returns a copy with more overrides; `__` stands for the dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return dataclasses.replace(self, overrides={**self.overrides, **named})


@dataclasses.dataclass(frozen=True)
class Growth:
  """How the network of a variant grows after its training, see `grow`.

  Attributes:
    new: classes that its training leaves out, and that join it.
    level: `auto`, a level, or `naive` for a training on the new data alone, from the parameters of
      the network and with its rate, in the steps of level 2.
    old: whether the data of the training are at hand.
  """

  new: tuple[str, ...]
  level: str = "auto"
  old: bool = True


@dataclasses.dataclass(frozen=True)
class Federated:
  """How the datasets of a variant train one network as sites, see `federated.site.Rounds`."""

  rounds: int
  steps: int
  proximal: float = 0.0
  teaching: float = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
  """One arm of a comparison: a network, or several that are used as one.

  Attributes:
    name: name of the variant.
    members: its trainings; several members are specialists with disjoint classes.
    dataset: name of a dataset, see `study.datasets`.
    mechanism: conditioning mechanism, where the study compares several.
    level: value of the quantity that the study varies, e.g. the number of cases.
    fusion: how competing classes are fused for scoring, see `Predictor.predict`.
    against: label of the variant to compare with; the study's reference when empty.
    growth: what follows the training of its only member.
    federated: what takes the place of the training of its only member.
  """

  name: str
  members: tuple[Member, ...]
  dataset: str
  mechanism: str = ""
  level: float | None = None
  fusion: str = "argmax"
  against: str = ""
  growth: Growth | None = None
  federated: Federated | None = None

  @property
  def label(self) -> str:
    """Label of the variant, unique in a study."""
    level = "" if self.level is None else f"{self.level:g}"
    return " ".join(part for part in (self.name, self.mechanism, level) if part)

  def replace(self, *, dataset: str = "", mechanism: str = "", level: float | None = None,
              name: str = "", fusion: str = "", against: str = "", **changes) -> "Variant":
    """Returns a copy with more overrides in all members (`__` for the dot) or other attributes."""
    return dataclasses.replace(
        self, name=name or self.name, members=tuple(m.replace(**changes) for m in self.members),
        dataset=dataset or self.dataset, mechanism=mechanism or self.mechanism,
        level=self.level if level is None else level, fusion=fusion or self.fusion,
        against=against or self.against)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A variant with its seed: a row of the results."""

  study: str
  variant: Variant
  seed: int
  against: str

  @property
  def name(self) -> str:
    """Name of the trial in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{self.variant.label}-s{self.seed}")


@dataclasses.dataclass(frozen=True)
class Study:
  """A study.

  Attributes:
    name: name of its file.
    variants: the variants compared.
    seeds: seeds that every variant is trained from.
    reference: label of the variant that others are compared with.
    level: quantity of `Variant.level`, the axis label of a figure; "" if nothing is varied.
    seconds: estimated seconds per step, used until steps have been measured.
  """

  name: str
  variants: tuple[Variant, ...]
  seeds: tuple[int, ...] = (0,)
  reference: str = "cond_dec"
  level: str = ""
  seconds: float = 0.5

  def __post_init__(self):
    labels = [v.label for v in self.variants]
    for label in labels:
      if labels.count(label) > 1:
        raise InputError(f"study {self.name}", f"two variants are called {label!r}",
                         "give them different names, mechanisms or levels", usage=True)
    for label in {self.reference, *(v.against for v in self.variants if v.against)}:
      if label not in labels:
        raise InputError(f"study {self.name}", f"compares with {label!r}, which it does not have",
                         f"its variants: {', '.join(labels)}", usage=True)

  def trials(self, seeds: Sequence[int] = (), only: Sequence[str] = ()) -> Iterator[Trial]:
    """Yields all trials, the first seed of every variant before the second of any.

    Args:
      seeds: seeds to run; those of the study when empty.
      only: names or labels of variants; all when empty.

    Raises:
      InputError: unknown variant.
    """
    names = {name for v in self.variants for name in (v.name, v.label)}
    for name in only:
      if name not in names:
        raise InputError("only", f"the study {self.name} has no variant {name!r}",
                         f"its variants: {', '.join(dict.fromkeys(v.name for v in self.variants))}",
                         usage=True)
    for seed in seeds or self.seeds:
      for variant in self.variants:
        if not only or {variant.name, variant.label} & set(only):
          yield Trial(self.name, variant, seed, variant.against or self.reference)


def names(experiments) -> list[str]:
  """Returns the names of the studies in a folder `experiments`."""
  found = sorted(p.stem for p in (Path(experiments) / "studies").glob("*.py"))
  return [name for name in found if name not in (BASE, "__init__")]


def load(name: str, experiments) -> list[Study]:
  """Loads a study by name or by the path of its file, or `all` of them.

  Raises:
    InputError: unknown study, or its file cannot be loaded.
  """
  if name == "all":
    if not (found := names(experiments)):
      raise InputError(Path(experiments) / "studies", "holds no study",
                       "name a folder with configs/ and studies/", usage=True)
    return [study for one in found for study in load(one, experiments)]
  is_path = name.endswith(".py")
  path = Path(name) if is_path else Path(experiments) / "studies" / f"{name}.py"
  if not path.exists() or (path.stem == BASE and not is_path):
    raise InputError(f"study {name}", "is unknown",
                     f"one of all, {', '.join(names(experiments))}, or the path of a file",
                     usage=True)
  study = module_function(path, "get_study")()
  if study.name != path.stem:
    raise InputError(path, f"declares a study {study.name!r}", "call it as its file is called: its "
                     "records and tables are named after it", usage=True)
  return [study]


def module_function(path: Path, function: str) -> Callable:
  """Loads a function from a file, which may import `condseg_jax.configs` and `.studies`.

  Raises:
    InputError: the file cannot be loaded, or has no such function.
  """
  try:
    spec = importlib.util.spec_from_file_location(f"_loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)
  except InputError:
    raise
  except Exception as error:  # a user's file may raise anything
    raise InputError(path, f"cannot be loaded: {type(error).__name__}: {error}",
                     f"correct the file; it needs {function}()", usage=True) from error
