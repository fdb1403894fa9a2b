"""Sites that train in turn in one process: equal to an ordinary training where it has to be."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Config
from condseg_jax.datasets import discover
from condseg_jax.errors import InputError
from condseg_jax.federated.average import Update
from condseg_jax.federated.description import describe
from condseg_jax.federated.federation import Federation
from condseg_jax.federated.site import flat
from condseg_jax.federated.site import Rounds
from condseg_jax.federated.site import Site
from condseg_jax.federated.teacher import make_teach
from condseg_jax.loading import load
from condseg_jax.model_io.load import read_model
from condseg_jax.models.build import build_model
from condseg_jax.train.loop import train
from support.tiny import write_datasets

SMALL = {"data.subvolume": (8, 16, 16), "model.strides": ((1, 2, 2),), "model.channels": 4,
         "model.layers_per_level": (1, 1), "model.growth": 4, "model.dtype": "float32",
         "optimizer.warmup": 2, "optimizer.learning_rate": 0.01, "data.presets": {},
         "conditioning.vector": "embedding"}
CONFIG = Config().override(SMALL)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  root = write_datasets(tmp_path_factory.mktemp("data"))
  return {name: discover.open_stores(root / "train" / name, (2.0, 1.0, 1.0), None, progress=False)
          for name in ("ball", "box")}


def federated(stores, rounds, workdir, **changes) -> Federation:
  """Trains in one process: every site in turn, its state kept from round to round."""
  federation = Federation(CONFIG.override(changes), rounds, workdir)
  if federation.record is None:
    federation.begin({name: describe(found) for name, found in stores.items()})
  sites = {name: Site(federation.record, found, rounds) for name, found in stores.items()}
  while federation.done < rounds.rounds:
    federation.finish_round({name: site.train(federation.done, federation.arrays, federation.taught)
                             for name, site in sites.items()})
  return federation


@pytest.mark.slow
def test_one_site_with_all_data_is_an_ordinary_training(stores, tmp_path):
  """Bit by bit, though in three rounds."""
  everything = [s for found in stores.values() for s in found]
  rounds = Rounds(3, 2)
  federation = Federation(CONFIG, rounds, tmp_path / "federated")
  federation.begin({"all": describe(everything)})
  assert train(federation.record.config, everything, tmp_path / "run") == "finished"
  run = read_model(tmp_path / "run")
  # The percentiles of a description are rounded, so that its plan is not quite the same.
  site = Site(federation.record._replace(plan=run.record.plan), everything, rounds)
  for number in range(3):
    update = site.train(number, federation.arrays)
    federation.finish_round({"all": update})
  for name, array in flat(run.variables).items():
    np.testing.assert_array_equal(federation.arrays[name], array)
  assert sum(update.samples.values()) == 2 * CONFIG.data.batch_size
  assert load(tmp_path / "federated").table.names == ("ball", "box")


@pytest.mark.slow
def test_a_federation_goes_on_from_its_folder(stores, tmp_path):
  """The server is killed after every round, the site is not."""
  rounds, data = Rounds(2, 2), {"ball": stores["ball"]}
  whole = federated(data, rounds, tmp_path / "whole")
  part = Federation(CONFIG, rounds, tmp_path / "part")
  part.begin({"ball": describe(stores["ball"])})
  site = Site(part.record, stores["ball"], rounds)
  for number in range(2):
    part = Federation(CONFIG, rounds, tmp_path / "part")
    assert part.done == number
    entry = part.finish_round({"ball": site.train(number, part.arrays)})
    assert list(entry["sites"]) == list(entry["dice"]) == ["ball"]
  for name, array in whole.arrays.items():
    np.testing.assert_array_equal(part.arrays[name], array)
  # A crash between record and checkpoint: the round is repeated.
  shutil.rmtree(tmp_path / "part" / "checkpoints" / "4")
  assert Federation(CONFIG, rounds, tmp_path / "part").done == 1
  run = json.loads((tmp_path / "part" / "run.json").read_text())
  assert run["status"] == "finished" and run["step"] == 4
  with pytest.raises(InputError, match="begun with other settings"):
    Federation(CONFIG, Rounds(4, 2), tmp_path / "part")


def test_a_site_that_sends_nonsense_is_left_out_by_name(stores, tmp_path):
  rounds = Rounds(1, 1)
  federation = Federation(CONFIG, rounds, tmp_path / "run")
  federation.begin({name: describe(found) for name, found in stores.items()})
  good = Site(federation.record, stores["ball"], rounds).train(0, federation.arrays)
  nan = {name: np.full_like(array, np.nan) for name, array in good.arrays.items()}
  with pytest.raises(InputError, match="no site has sent a usable update: box: .*not finite"):
    federation.finish_round({"box": Update(nan, {"box": 2}, {})})
  entry = federation.finish_round({"ball": good, "box": Update(nan, {"box": 2}, {})},
                                  {"cube": "is away"})
  assert list(entry["sites"]) == ["ball"] and list(entry["left_out"]) == ["cube", "box"]
  assert entry["left_out"]["cube"] == "is away" and "not finite" in entry["left_out"]["box"]
  for name, array in federation.arrays.items():
    assert np.isfinite(array).all()
    if name != "params/class_vector/embedding":
      np.testing.assert_array_equal(array, good.arrays[name])


@pytest.mark.slow
def test_fedprox_holds_on_to_the_global_network(stores, tmp_path):
  """μ η = 1 takes back every step."""
  config = CONFIG.override({"optimizer.schedule": "constant", "optimizer.warmup": 0})
  rounds = Rounds(1, 2, proximal=100.0)
  federation = Federation(config, rounds, tmp_path)
  federation.begin({"ball": describe(stores["ball"])})
  found = Site(federation.record, stores["ball"], rounds).train(0, federation.arrays)
  for name, array in federation.arrays.items():
    np.testing.assert_allclose(found.arrays[name], array, atol=1e-7)


def test_the_teacher_never_contradicts_an_annotation(stores, tmp_path):
  federation = Federation(CONFIG, Rounds(1, 1), tmp_path)
  federation.begin({name: describe(found) for name, found in stores.items()})
  record = federation.record
  model = build_model(record.config.model, record.config.conditioning, record.table.codes)
  variables = {"params": jax.tree.map(np.asarray, read_model(tmp_path).params)}
  # A network that is sure of everything, everywhere.
  sure = jax.tree_util.tree_map_with_path(
      lambda path, leaf: np.full_like(leaf, 20.0) if "head" in jax.tree_util.keystr(path)
      and "bias" in jax.tree_util.keystr(path) else leaf, variables)
  setup = Site(record, stores["ball"], Rounds(1, 1))._setup
  batch = next(setup.batches())
  teach = make_teach(model, record.table, 0.5)
  taught = teach(sure, batch, ["ball", "box"], np.random.default_rng(0))
  ball, box = record.table.index("ball"), record.table.index("box")
  assert (taught.class_id[:, 0] == ball).all() and (taught.class_id[:, 1] == box).all()
  assert (taught.beta == [1.0, 0.5]).all()
  np.testing.assert_array_equal(taught.mask[..., 0], batch.mask[..., 0])
  positive = batch.mask[..., 0] == POSITIVE
  assert positive.any()
  np.testing.assert_array_equal(taught.mask[..., 1][positive], NEGATIVE)
  np.testing.assert_array_equal(taught.mask[..., 1][~positive], POSITIVE)
  # Nothing is taught of a class that is annotated, or that has not been learned.
  for names in ([], ["ball"]):
    untaught = teach(sure, batch, names, np.random.default_rng(0))
    assert (untaught.beta[:, 1] == 0).all() and (untaught.mask[..., 1] == UNLABELLED).all()


@pytest.mark.slow
def test_sites_learn_together_what_none_has_alone(stores, tmp_path):
  """Also with a teacher, once a class has been learned well enough."""
  rounds = Rounds(6, 10, teaching=0.5, competence=0.2)
  federation = federated(stores, rounds, tmp_path / "run")
  history = json.loads((tmp_path / "run" / "federation.json").read_text())["history"]
  first, last = history[0]["dice"], history[-1]["dice"]
  assert all(last[name] > first[name] for name in ("ball", "box")), history
  assert federation.taught


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"steps": 0}, {"teaching": 1.0},
                                     {"proximal": -1.0}, {"proximal": float("nan")}])
def test_rounds_are_checked(changes):
  with pytest.raises(InputError):
    dataclasses.replace(Rounds(), **changes)
