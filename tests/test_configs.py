"""Every committed config, with each of its arguments, makes a network and an optimizer."""

from pathlib import Path
import sys

import jax
import jax.numpy as jnp
import pytest

from condseg_jax.cli.train import plain_config
from condseg_jax.models.build import build_model
from condseg_jax.train.augment import Augmentation
from condseg_jax.train.parallel import DRIVERS
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.step import make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "experiments" / "configs").glob("*.py"))
ARGUMENTS = {"encoders": ("dense", "residual", "plain"), "specialist": ("anterior", "posterior")}
CASES = [(path, argument) for path in CONFIGS for argument in (None, *ARGUMENTS.get(path.stem, ()))]
EVERY = pytest.mark.parametrize(
    "path, argument", CASES, ids=[p.stem + (f":{a}" if a else "") for p, a in CASES])


@pytest.fixture(autouse=True)
def configs_on_path(monkeypatch):
  monkeypatch.syspath_prepend(str(CONFIGS[0].parent.parent))
  for name in [n for n in sys.modules if n == "configs" or n.startswith("configs.")]:
    monkeypatch.delitem(sys.modules, name)


def load(path: Path, argument: str | None = None) -> dict:
  scope = {"__name__": path.stem}
  exec(compile(path.read_text(encoding="utf-8"), path, "exec"), scope)
  assert scope["__doc__"], f"{path.name} has no lab note"
  return plain_config(scope["get_config"](*filter(None, [argument])))


@EVERY
def test_config_builds(path, argument):
  config = load(path, argument)
  model = build_model(config["model"], config["conditioning"], (0.1, -0.4))
  subvolume = config["data"]["subvolume"]
  assert all(n % s == 0 for n, s in zip(subvolume, model.stride, strict=True))
  channels = 3 if model.ndim == 2 else 1
  batch = config["data"]["batch_size"]
  image = jax.ShapeDtypeStruct((batch, *subvolume, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((batch,), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image, ids)
  logits = jax.eval_shape(model.apply, variables, image, ids)
  assert logits.shape == (batch, *subvolume)
  optimizer = make_optimizer(config["optimizer"], config["train"]["steps"])
  jax.eval_shape(optimizer.init, variables["params"])
  make_train_step(model, optimizer, augmentation=None, spacing=(), lateral_axes=(), alpha_K=(),
                  ema_decay=0.0, seed=0,
                  **{k: v for k, v in config["loss"].items() if k != "alpha"})
  Augmentation(**{**config["augment"], "mirror": tuple(config["augment"]["mirror"])})
  assert config["train"]["driver"] in DRIVERS


@EVERY
def test_config_has_the_fields_of_base(path, argument):
  """A field that base does not have is a misspelling that nothing would read."""
  open_ended = {"presets", "no_mirror", "alpha"}

  def fields(tree):
    return {key: fields(value) for key, value in tree.items() if key not in open_ended
            } if isinstance(tree, dict) else None

  assert fields(load(path, argument)) == fields(load(CONFIGS[0].parent / "base.py"))


def test_an_argument_changes_what_it_says():
  folder = CONFIGS[0].parent
  for kind in ARGUMENTS["encoders"]:
    assert load(folder / "encoders.py", kind)["model"]["encoder_block"] == kind
  for name in ARGUMENTS["specialist"]:
    config = load(folder / "specialist.py", name)
    assert (config["data"]["keep"], config["conditioning"]["position"]) == ([name], "none")
