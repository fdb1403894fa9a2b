"""A run that starts from another: what comes along, what is said, and what never mixes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.cli.train import main
from condseg_jax.config import Config
from condseg_jax.config import Init
from condseg_jax.datasets import discover
from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import without_paths
from condseg_jax.model_io.bundle import write_bundle
from condseg_jax.model_io.load import read_model
from condseg_jax.plan import Plan
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.loop import train
from condseg_jax.train.resume import resumed_config
from condseg_jax.train.setup import make_setup
from condseg_jax.train.start import adapted_plan
from condseg_jax.train.start import inherited
from condseg_jax.train.start import read_start
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from support.bundles import newer
from support.tiny import overrides
from support.tiny import write_datasets

SMALL = {"train.steps": 2, "train.log_every": 1, "train.eval_every": 2, "model.channels": 4,
         "model.growth": 4, "train.ema_decay": 0.5}
CONFIG = Config().override({
    **SMALL, "data.subvolume": (8, 16, 16), "data.hold_out": 0.25, "model.strides": ((1, 2, 2),),
    "model.layers_per_level": (1, 1), "model.dtype": "float32"})


def arguments(root, workdir, **changes):
  changes = {"data.cache": root / "cache", **SMALL, **changes}
  return ["condseg-train", "--config=base", f"--workdir={workdir}", *overrides(root, **changes)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stores(root):
  return discover.open_stores(root / "train", cache=root / "cache", progress=False)


def state_of(setup, seed) -> TrainState:
  """A state at step 0 with parameters that are nowhere 0 or 1, for which nothing is compiled."""
  image = jax.ShapeDtypeStruct((1, *setup.record.plan.subvolume, 1), np.float32)
  shapes = jax.eval_shape(setup.model.init, jax.random.key(0), image,
                          jax.ShapeDtypeStruct((1,), np.int32))
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(lambda x: rng.normal(0.5, 0.5, x.shape).astype(np.float32), shapes)
  return TrainState.create(variables, make_optimizer(setup.config.optimizer), ema=True)


@pytest.fixture(scope="module")
def source(root, stores):
  """A run as `arguments` would make it, at its beginning."""
  setup = make_setup(CONFIG, stores, None, "run")
  checkpoints = Checkpoints(root / "source")
  checkpoints.save(state_of(setup, 1), setup.record, 0.5)
  checkpoints.wait()
  checkpoints.close()
  return root / "source"


@pytest.fixture(scope="module")
def bundle(source):
  path = source.parent / "source.condseg"
  write_bundle(path, read_model(source))
  return path


def begun(config, stores, path, what="all"):
  """Setup and state of a new run that starts from a path."""
  start = read_start(Init(str(path), what))
  setup = start.adapted(make_setup(config, stores, None, "run"))
  return setup, start.taken(setup, state_of(setup, 2))


# --- what comes along ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_everything_of_the_same_network_is_taken(source, bundle, stores, kind, said):
  setup, state = begun(CONFIG, stores, source if kind == "run" else bundle)
  expected = read_model(source)
  for found in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, found, dict(expected.params))
  assert int(state.step) == 0 and setup.record.plan == expected.record.plan
  assert setup.record.table == expected.record.table
  assert not any("random" in line for line in said())
  assert any("classes taken over: ball, box" in line for line in said())


def test_the_encoder_alone_leaves_the_classes_alone(bundle, stores, said):
  setup, state = begun(CONFIG, stores, bundle, "encoder")
  random = state_of(setup, 2)
  expected = read_model(bundle).params
  for part, tree in state.params.items():
    of = expected if part.startswith(("stem", "down")) else random.params
    jax.tree.map(np.testing.assert_array_equal, tree, of[part])
  assert not any("classes" in line or "random" in line for line in said())


def test_classes_are_matched_by_name_whatever_their_order(bundle, stores, said):
  config = CONFIG.override({"data.classes": ("box", "ball")})
  setup, _ = begun(config, stores, bundle)
  codes = {c.name: c.code for c in read_model(bundle).record.table.classes}
  assert setup.record.table.names == ("box", "ball")
  assert {c.name: c.code for c in setup.record.table.classes} == codes
  assert setup.model.codes == tuple(np.float32([codes["box"], codes["ball"]]).tolist())
  one = CONFIG.override({"data.include_classes": ("ball",)})
  begun(one, stores, bundle)
  assert any(line.startswith("classes left behind") and line.endswith(": box") for line in said())


def test_codes_colours_sides_and_presets_of_a_table():
  theirs = ClassTable.create(["liver", "left kidney", "spleen"], colors={"liver": (1, 2, 3)},
                             presets={"a": ["liver", "spleen"], "b": ["spleen"], "c": ["liver"]},
                             no_mirror={"left kidney": ["W"], "liver": ["H"]},
                             overlapping=[("liver", "spleen"), ("liver", "left kidney")])
  ours = ClassTable.create(["pancreas", "left kidney", "liver"], presets={"c": ["pancreas"]},
                           no_mirror={"liver": ["D"]})
  # As if the hash of the new class were that of a known one: the known one keeps its code.
  crowded = ClassTable(tuple(
      c if c.name != "liver" else type(c)(c.name, ours.classes[0].code, c.color, c.no_mirror)
      for c in theirs.classes), theirs.presets, overlapping=theirs.overlapping)
  for other in (theirs, crowded):
    table = inherited(ours, other)
    assert table.names == ours.names
    for name in ("left kidney", "liver"):
      there = other.classes[other.index(name)]
      here = table.classes[table.index(name)]
      assert (here.code, here.color) == (there.code, there.color)
    assert [c.no_mirror for c in table.classes] == [(), ("W",), ("D",)]
    assert table.overlapping == (("left kidney", "liver"),)
    assert table.presets == {"a": ("liver",), "c": ("pancreas",)}
    gaps = np.diff(np.sort(table.codes))
    assert gaps.min() >= 1 / (2 * table.capacity) - 1e-6
    assert ClassTable.from_json(table.to_json()) == table
  assert inherited(ours, ours) == ours


def test_intensities_are_those_of_the_source_unless_the_modality_differs():
  ours = Plan("ct", (2.0, 1.0, 1.0), (8, 16, 16), -50.0, 50.0, 1.0, 20.0)
  theirs = Plan("ct", (3.0, 1.0, 1.0), (16, 32, 32), -90.0, 90.0, 2.0, 30.0)
  plan, lines = adapted_plan(theirs, ours)
  assert plan == Plan("ct", (2.0, 1.0, 1.0), (8, 16, 16), -90.0, 90.0, 2.0, 30.0)
  assert len(lines) == 2 and "spacing is (2.0, 1.0, 1.0)" in lines[0] and "-90 to 90" in lines[1]
  mr = Plan("mr", (2.0, 1.0, 1.0), (8, 16, 16))
  plan, lines = adapted_plan(theirs, mr)
  assert plan == mr and "the images are mr, those of the source ct" in lines[1]
  assert adapted_plan(mr, mr) == (mr, [])


# --- what does not fit --------------------------------------------------------------------------
def test_misfits_are_named_one_by_one(bundle, stores, said):
  config = CONFIG.override({"model.layers_per_level": (2, 1)})
  begun(config, stores, bundle)
  lines = said()
  random = {line.partition(" ")[0] for line in lines if "stays random" in line}
  assert random == {
      f"{part}/{name}" for part in ("down_0", "merge_0")
      for name in ("join/conv/kernel", "layer_1/conv/kernel", "layer_1/norm/scale",
                   "layer_1/norm/bias")} | {"merge_0/layer_1/condition/kernel"}
  assert any("model.layers_per_level is (2, 1), in the source (1, 1)" in line for line in lines)


def test_nothing_that_fits_is_an_error(bundle, stores):
  other = CONFIG.override({"model.network": "plain_unet", "model.channels": 5,
                           "model.growth": 16})
  with pytest.raises(InputError, match="init.source: nothing of .* fits .* .down_1/layer_0"):
    begun(other, stores, bundle, "encoder")


def test_sources_that_cannot_be_read(bundle, root, tmp_path, capsys):
  faults = {newer(bundle, tmp_path / "newer.condseg"): "is of version 99",
            tmp_path / "none": "holds no checkpoint",
            tmp_path / "none.condseg": "cannot be read"}
  for path, fault in faults.items():
    assert main(arguments(root, tmp_path / "run", **{"init.source": path})) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert fault in line and line.startswith("condseg-train: "), line
  assert main(arguments(root, tmp_path / "run", **{"init.what": "decoder"})) == 2
  assert "init.what" in capsys.readouterr().err


def test_an_encoder_alone_has_no_decoder_to_give(bundle, tmp_path):
  model = read_model(bundle)
  params = {name: tree for name, tree in model.params.items()
            if name.startswith(("stem", "down"))}
  path = tmp_path / "encoder.condseg"
  write_bundle(path, model._replace(params=params, facts={"step": 0, "part": "encoder"}))
  jax.tree.map(np.testing.assert_array_equal, read_start(Init(str(path), "encoder")).source.params,
               params)
  for read in (read_model, lambda path: read_start(Init(str(path), "all"))):
    with pytest.raises(InputError, match="holds an encoder alone, which segments nothing"):
      read(path)
  write_bundle(path, model._replace(params=params))  # one that does not say so is damaged
  with pytest.raises(InputError, match="is damaged"):
    read_model(path, encoder=True)


# --- whole runs ---------------------------------------------------------------------------------
def test_a_run_that_resumes_does_not_read_its_source(root, stores, tmp_path, said):
  """See tests/model_io/nnunet/test_encoder.py for a run that begins."""
  setup = make_setup(CONFIG, stores, None, "run")
  checkpoints = Checkpoints(tmp_path / "run")
  checkpoints.save(state_of(setup, 1).replace(step=jnp.int32(2)), setup.record, 0.5)
  checkpoints.wait()
  checkpoints.close()
  (tmp_path / "run" / "run.json").write_text(json.dumps({"status": "finished"}))
  gone = {"init.source": tmp_path / "gone.condseg"}
  assert main(arguments(root, tmp_path / "run", **gone)) == 0
  assert said()[:1] == ["the workdir holds step 2, which is resumed: init.source is not read"]


def test_a_run_remembers_where_it_began_and_its_bundle_does_not():
  begun = CONFIG.override({"init.source": "/home/me/run", "init.what": "encoder"})
  assert resumed_config(CONFIG, begun).init == begun.init  # though the flags no longer say so
  assert without_paths(begun).init == Init("", "encoder")


def test_a_source_is_never_forgotten(stores, bundle, tmp_path):
  """Whoever calls `train` without reading the source would train from random parameters."""
  config = CONFIG.override({"init.source": str(bundle)})
  with pytest.raises(InputError, match="init.source: is not read by this caller"):
    train(config, stores, tmp_path / "run")


def test_without_a_source_nothing_is_read():
  assert Config().init == Init("", "all")
