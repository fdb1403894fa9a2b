"""Settings of a run, in a config and on the command line.

They have no checksum, and every valid value is meant: what is judged is that each of them is
refused in one line or works, and that no part is passed over in silence.
"""

import ast
import json
import math
from pathlib import Path
import re

from condseg_jax import settings as setting_lib
from condseg_jax.cli import config_file
from condseg_jax.cli import shell
from condseg_jax.config import Config
from condseg_jax.datasets.discover import open_stores
from condseg_jax.errors import InputError
from tools.fuzz.content import Damaged
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target
from tools.fuzz.targets.descriptions import msd_folder


class Settings(Target):
  """Settings as a config file gives them, and as the command line of condseg-train does."""

  name = "config"
  command_name = "train"
  codes = (1, 2)
  seconds = 30.0
  memory = 4 << 30
  every = 10

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the settings of a small run."""
    from tools.fuzz.targets import models
    tree = Config().override(models.SETTINGS | {"data.presets": {}}).to_dict()
    flags = {f"{section}.{key}": repr(value) if not isinstance(value, str) else value
             for section, part in tree.items() if isinstance(part, dict)
             for key, value in part.items() if not isinstance(value, dict) and value is not None}
    return {"config": {"config.json": json.dumps(tree, indent=1).encode()},
            "flags": {"flags.json": json.dumps(flags, indent=1).encode()}}

  def places(self, files: Files) -> list[Place]:
    """Returns the values."""
    name, = files
    return [Place(name, "json")]

  def warm_up(self) -> None:
    """Prepares the dataset on which the settings are tried."""
    self._stores()

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Sets up a run, up to its first step."""
    if variant == "flags":
      return self._flags(folder, trace=False)
    return 0, self._set_up(Config.from_dict(_tree(folder / "config.json")))

  def command(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Traces the first step, too; nothing is compiled."""
    if variant == "flags":
      return self._flags(folder, trace=True)
    return 0, self._set_up(Config.from_dict(_tree(folder / "config.json")), trace=True)

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts settings that are kept as given; one that is passed over is a find."""
    if variant == "flags":
      given = {}
      for name, text in json.loads(files["flags.json"]).items():
        section, _, key = name.partition(".")
        found = content["config"].get(section)
        is_text = isinstance(found, dict) and isinstance(found.get(key), str)
        given.setdefault(section, {})[key] = str(text) if is_text else _literal(text)
    else:
      given = json.loads(files["config.json"])
    if not _kept(given, content["config"]):
      raise Damaged("a setting is passed over")
    return "settings as given"

  def subjects(self, files: Files) -> list[str]:
    """Returns the names of all settings, and those in the file."""
    try:
      tree = json.loads(next(iter(files.values())))
    except RecursionError:
      tree = {}
    return [*(name for name, _, _ in setting_lib.walk(Config)), *setting_lib.sections(Config),
            "config", *(str(key)[:100] for key in (tree if isinstance(tree, dict) else ()))]

  def _stores(self):
    source = self.home / "dataset"
    for name, content in () if source.exists() else msd_folder().items():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes(content)
    return open_stores(source, (2.0, 1.0, 1.0), self.home / "stores", progress=False)

  def _flags(self, folder: Path, *, trace: bool) -> tuple[int, dict]:
    """Runs the command line of condseg-train, without the training."""
    from condseg_jax.cli import train
    tree, content = _tree(folder / "flags.json"), {}
    if not isinstance(tree, dict):
      raise InputError("config", "is no list of flags", "no command line can be made of it")
    argv = ["condseg-train", "--config=base", "--workdir=w",
            *(f"--config.{name}={value}" for name, value in tree.items())]

    def work(values) -> int:
      content.update(self._set_up(config_file.load(values.config), trace=trace))
      return 0
    return shell.run(train.__doc__, train._define, work, argv, has_config=True), content

  def _set_up(self, config: Config, *, trace: bool = False) -> dict:
    """Does what a run does before its first step, and traces that."""
    from condseg_jax.train.memory import check_memory
    from condseg_jax.train.setup import check_config
    from condseg_jax.train.setup import make_setup
    from condseg_jax.train.state import make_schedule
    check_config(config)
    setup = make_setup(config, self._stores(), None, "w")
    check_memory(setup.plan_summary, config.data.batch_size)
    content = {"config": setting_lib.plain(config)}
    schedule = make_schedule(setup.config.optimizer, setup.config.train.steps)
    rates = [float(schedule(step)) for step in (0, 1, config.train.steps - 1, config.train.steps)]
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
      content["unsound"] = "a learning rate that is negative or not finite"
    try:
      _ = 1 % config.train.log_every + 1 % config.train.eval_every
    except ZeroDivisionError:
      content["unsound"] = "an interval of 0 steps"
    if trace:
      _trace(setup)
    return content


def _tree(path: Path) -> object:
  """Reads settings; nested too deeply, they could not come from a file or a command line."""
  try:
    return json.loads(path.read_bytes())
  except RecursionError as error:
    raise InputError("config", "is nested too deeply", "correct it") from error


def _trace(setup) -> None:
  import jax
  import jax.numpy as jnp

  from condseg_jax.data.batch import Batch
  from condseg_jax.losses import make_objective
  from condseg_jax.train.setup import alphas
  from condseg_jax.train.setup import lateral_axes
  from condseg_jax.train.state import make_optimizer
  from condseg_jax.train.state import TrainState
  from condseg_jax.train.step import make_train_step
  config, model, plan = setup.config, setup.model, setup.record.plan
  optimizer = make_optimizer(config.optimizer)
  step = make_train_step(
      model, optimizer, objective=make_objective(config.loss), augmentation=config.augment,
      spacing=plan.spacing, lateral_axes=lateral_axes(setup.record.table, model.ndim),
      alpha_K=alphas(setup.record.table, config.loss.alpha), ema_decay=config.train.ema_decay,
      seed=config.seed, grad_accum_steps=config.train.grad_accum_steps)
  spec, count = jax.ShapeDtypeStruct, config.data.batch_size
  decodes = config.data.classes_per_image or len(setup.record.table)
  batch = Batch(image=spec((count, *plan.subvolume, plan.channels), jnp.float32),
                class_id=spec((count, decodes), jnp.int32),
                mask=spec((count, *plan.subvolume, decodes), jnp.uint8),
                beta=spec((count, decodes), jnp.float32), index=spec((count,), jnp.int32),
                dataset=spec((count,), jnp.int32))

  def begin(image, ids):
    variables = model.init(jax.random.key(config.seed), image, ids)
    return TrainState.create(variables, optimizer, ema=config.train.ema_decay > 0)
  state = jax.eval_shape(begin, spec((1, *plan.subvolume, plan.channels), jnp.float32),
                         spec((1,), jnp.int32))
  jax.eval_shape(step, state, batch, spec((), jnp.int32))


def _literal(text: object) -> object:
  try:
    return ast.literal_eval(str(text))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _kept(given: object, config: object) -> bool:
  """Returns whether all that was given is in the config, lists for tuples and text for numbers."""
  if isinstance(given, dict):
    return isinstance(config, dict) and all(
        key in config and _kept(value, config[key]) for key, value in given.items())
  if isinstance(config, str):
    return re.sub(r"\W", "", str(given)) == re.sub(r"\W", "", config)
  if isinstance(given, list | tuple):
    return isinstance(config, list) and len(given) == len(config) and all(
        _kept(a, b) for a, b in zip(given, config, strict=True))
  if isinstance(config, list) and len(config) == 1:  # --config.data.weights=3 is of one dataset
    return _kept(given, config[0])
  return given == config or str(given).lower() == str(config).lower()
