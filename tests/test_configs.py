"""Every committed config, with each of its arguments, makes a step that can be compiled."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Config
from condseg_jax.data.batch import Batch
from condseg_jax.losses import make_objective
from condseg_jax.models.build import build_model
from condseg_jax.models.memory import training_bytes
from condseg_jax.train.setup import check_config
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "experiments" / "configs").glob("[!_]*.py"))
ARGUMENTS = {"encoders": ("dense", "residual", "plain"), "sizes": ("S", "M", "L"),
             "specialist": ("anterior", "posterior")}
CASES = [(path, argument) for path in CONFIGS for argument in (None, *ARGUMENTS.get(path.stem, ()))]
EVERY = pytest.mark.parametrize(
    "path, argument", CASES, ids=[p.stem + (f":{a}" if a else "") for p, a in CASES])


def load(path: Path, argument: str | None = None) -> Config:
  scope: dict = {"__name__": path.stem}
  exec(compile(path.read_text(encoding="utf-8"), path, "exec"), scope)
  assert scope["__doc__"], f"{path.name} has no lab note"
  return Config.from_dict(scope["get_config"](*filter(None, [argument])).to_dict())


@pytest.mark.slow
@EVERY
def test_the_whole_step_of_a_config_traces(path, argument):
  """Network, loss, augmentation, optimizer and averages, by shapes alone: nothing is computed."""
  config = load(path, argument)
  check_config(config)
  model = build_model(config.model, config.conditioning, (0.1, -0.4, 0.7))
  channels, count = 3 if model.ndim == 2 else 1, config.data.batch_size
  decodes = config.data.classes_per_image or 2
  subvolume = config.data.subvolume
  spec = jax.ShapeDtypeStruct
  batch = Batch(image=spec((count, *subvolume, channels), jnp.float32),
                class_id=spec((count, decodes), jnp.int32),
                mask=spec((count, *subvolume, decodes), jnp.uint8),
                beta=spec((count, decodes), jnp.float32), index=spec((count,), jnp.int32),
                dataset=spec((count,), jnp.int32))
  optimizer = make_optimizer(config.optimizer)
  step = make_train_step(
      model, optimizer, objective=make_objective(config.loss), augmentation=config.augment,
      spacing=(1.0,) * model.ndim, lateral_axes=np.zeros((3, model.ndim), bool),
      alpha_K=np.ones(3), ema_decay=config.train.ema_decay, seed=config.seed,
      grad_accum_steps=config.train.grad_accum_steps)

  def begin(image, ids):
    variables = model.init(jax.random.key(0), image, ids)
    return TrainState.create(variables, optimizer, ema=config.train.ema_decay > 0)

  state = jax.eval_shape(begin, spec((1, *subvolume, channels), jnp.float32),
                         spec((1,), jnp.int32))
  after, metrics = jax.eval_shape(step, state, batch, spec((), jnp.int32))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)
  assert metrics["loss"].shape == () and metrics["dice_K"].shape == (3,)


def test_an_argument_changes_what_it_says():
  folder = CONFIGS[0].parent
  for kind in ARGUMENTS["encoders"]:
    assert load(folder / "encoders.py", kind).model.encoder_block == kind
  for name in ARGUMENTS["specialist"]:
    config = load(folder / "specialist.py", name)
    assert (config.data.include_classes, config.conditioning.position) == ((name,), "none")


@pytest.mark.parametrize("size", ["M", "L"])
def test_a_size_is_for_its_memory(size):
  """The subvolume given for `plan` = `config` fits, and one of twice the voxels would not."""
  config = load(CONFIGS[0].parent / "sizes.py", size)
  model = build_model(config.model, config.conditioning, (0.1, -0.4))
  data = config.data
  needed = [training_bytes(model, shape, 1, data.batch_size, platform="gpu") for shape in (
      data.subvolume, (2 * data.subvolume[0], *data.subvolume[1:]))]
  assert needed[0] < data.memory_gb * 1e9 < needed[1]


def test_an_unknown_size():
  with pytest.raises(ValueError, match="'XL' is not one of S, M, L"):
    load(CONFIGS[0].parent / "sizes.py", "XL")


def test_base_is_every_setting_at_its_default():
  assert load(CONFIGS[0].parent / "base.py") == Config()
