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


def test_one_site_with_all_data_is_an_ordinary_training(stores, tmp_path):
  """Bit by bit, in one round and in three."""
  together = {"all": [s for found in stores.values() for s in found]}
  once = federated(together, Rounds(1, 6), tmp_path / "once")
  thrice = federated(together, Rounds(3, 2), tmp_path / "thrice")
  # The percentiles of a description are rounded, so that the plan is not quite the same.
  assert train(once.record.config, together["all"], tmp_path / "run") == "finished"
  plan = read_model(tmp_path / "run").record.plan
  site = Site(once.record._replace(plan=plan), together["all"], Rounds(1, 6))
  begun = Federation(CONFIG, Rounds(1, 6), tmp_path / "again")
  begun.begin({"all": describe(together["all"])})
  found = site.train(0, begun.arrays)
  for name, array in flat(read_model(tmp_path / "run").variables).items():
    np.testing.assert_array_equal(found.arrays[name], array)
  for name, array in once.arrays.items():
    np.testing.assert_array_equal(thrice.arrays[name], array)
  assert found.samples == {"ball": 6, "box": 6} or sum(found.samples.values()) == 6 * 2
  assert load(tmp_path / "thrice").table.names == ("ball", "box")


def test_a_federation_goes_on_from_its_folder(stores, tmp_path):
  rounds = Rounds(3, 2)
  whole = federated(stores, rounds, tmp_path / "whole")
  part = Federation(CONFIG, rounds, tmp_path / "part")
  part.begin({name: describe(found) for name, found in stores.items()})
  sites = {name: Site(part.record, found, rounds) for name, found in stores.items()}
  for number in range(3):
    part = Federation(CONFIG, rounds, tmp_path / "part")  # the server is killed, the sites are not
    assert part.done == number
    entry = part.finish_round({name: s.train(number, part.arrays) for name, s in sites.items()})
    assert set(entry["sites"]) == {"ball", "box"} and set(entry["dice"]) == {"ball", "box"}
  for name, array in whole.arrays.items():
    np.testing.assert_array_equal(part.arrays[name], array)
  # A crash between record and checkpoint: the round is repeated.
  shutil.rmtree(tmp_path / "part" / "checkpoints" / "6")
  assert Federation(CONFIG, rounds, tmp_path / "part").done == 2
  run = json.loads((tmp_path / "part" / "run.json").read_text())
  assert run["status"] == "finished" and run["step"] == 6
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


def test_fedprox_holds_on_to_the_global_network(stores, tmp_path):
  """μ η = 1 takes back every step."""
  config = {"optimizer.schedule": "constant", "optimizer.warmup": 0}
  for proximal, moved in ((0.0, True), (100.0, False)):
    rounds = Rounds(1, 2, proximal=proximal)
    federation = Federation(CONFIG.override(config), rounds, tmp_path / f"{proximal:g}")
    federation.begin({"ball": describe(stores["ball"])})
    found = Site(federation.record, stores["ball"], rounds).train(0, federation.arrays)
    differs = [not np.allclose(found.arrays[name], array, atol=1e-7)
               for name, array in federation.arrays.items()]
    assert any(differs) == moved


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
