"""A bundle predicts what its run predicts, and says no more than is known."""

import io
import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

import condseg_jax
from condseg_jax.cli import train
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.model_io import archive
from condseg_jax.model_io import bundle as bundles
from condseg_jax.model_io.card import model_card
from condseg_jax.model_io.card import run_facts
from condseg_jax.model_io.load import read_model
from support.tiny import AFFINE
from support.tiny import case
from support.tiny import overrides
from support.tiny import write_datasets

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root = write_datasets(tmp_path_factory.mktemp("data"))
  arguments = overrides(root, **{"data.cache": root / "cache"})
  config = ROOT / "experiments" / "configs" / "base.py"
  assert train.main(["train", f"--config={config}", f"--workdir={root / 'run'}", *arguments]) == 0
  return root / "run"


@pytest.fixture(scope="module")
def trained(run):
  model = read_model(run)
  return model._replace(facts=run_facts(run, model.facts["step"]))


@pytest.fixture(scope="module")
def members(trained, tmp_path_factory):
  path = tmp_path_factory.mktemp("bundle") / "m.condseg"
  bundles.write_bundle(path, trained)
  return archive.read_archive(path)


@pytest.fixture
def refused(members, tmp_path):
  """The reason why members are refused, whose manifest is right."""
  def reason(**changes) -> str:
    path = tmp_path / "bad.condseg"
    changed = {**members, **{name.replace("__", "/"): x for name, x in changes.items()}}
    archive.write_archive(path, {name: x for name, x in changed.items() if x is not None})
    with pytest.raises(InputError) as error:
      bundles.read_bundle(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: is damaged")
    return error.value.reason
  return reason


def volume():
  return Volume(case(np.random.default_rng(3))[0].astype(np.float32), AFFINE)


@pytest.mark.slow
def test_moments_of_batch_normalisation_come_back(run, tmp_path):
  """And predict: they are part of the network."""
  arguments = overrides(run.parent, **{"data.cache": run.parent / "cache",
                                       "conditioning.mechanism": "batch_norm", "train.steps": 4})
  config = ROOT / "experiments" / "configs" / "base.py"
  assert train.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}",
                     *arguments]) == 0
  bundle = read_model(tmp_path / "run")
  moments = jax.tree.leaves(bundle.statistics)
  assert moments and all(np.abs(np.asarray(m)[0]).max() > 1e-3 for m in moments)
  bundles.write_bundle(tmp_path / "m.condseg",
                       bundle._replace(facts=run_facts(tmp_path / "run", 4)))
  found = bundles.read_bundle(tmp_path / "m.condseg")
  jax.tree.map(np.testing.assert_array_equal, found.variables, bundle.variables)
  a, b = (condseg_jax.load(tmp_path / name).predict(volume()).label.array
          for name in ("run", "m.condseg"))
  np.testing.assert_array_equal(a, b)


def test_the_same_model_comes_back(trained, tmp_path):
  path = tmp_path / "m.condseg"
  bundles.write_bundle(path, trained)
  found = bundles.read_bundle(path)
  assert jax.tree.structure(found.params) == jax.tree.structure(dict(trained.params))
  for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(trained.params), strict=True):
    assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
  assert found.record.table == trained.record.table
  assert found.record.plan == trained.record.plan
  assert found.record.config.model == trained.record.config.model
  assert found.facts == trained.facts and found.graphs == ()


def test_the_same_prediction(run, trained, tmp_path):
  path = tmp_path / "m.condseg"
  bundles.write_bundle(path, trained)
  a, b = (condseg_jax.load(where).predict(volume(), fusion="independent", threshold=0.3)
          for where in (run, path))
  assert 0 < sum(mask.sum() for mask in a.masks.values()), "there must be something to compare"
  for name, mask in a.masks.items():
    np.testing.assert_array_equal(mask, b.masks[name])
  assert condseg_jax.load(path).step == condseg_jax.load(run).step == 6


def test_equal_models_give_equal_files(trained, tmp_path):
  first = bundles.write_bundle(tmp_path / "a.condseg", trained)
  again = bundles.read_bundle(tmp_path / "a.condseg")
  assert bundles.write_bundle(tmp_path / "b.condseg", again) == first
  assert (tmp_path / "a.condseg").read_bytes() == (tmp_path / "b.condseg").read_bytes()
  other = jax.tree.map(lambda x: x + 1e-6, trained.params)
  assert bundles.write_bundle(tmp_path / "b.condseg", trained._replace(params=other)) != first


def test_no_path_of_the_machine_is_in_it(trained, run, members):
  assert str(run.parent) in json.dumps(trained.record.to_json()), "there must be one to leave out"
  for name, content in members.items():
    assert str(run.parent).encode() not in content, name


@pytest.mark.parametrize("devices", [1, 3])
def test_on_any_number_of_devices(trained, tmp_path, devices):
  assert jax.device_count() == 2
  path = tmp_path / "m.condseg"
  bundles.write_bundle(path, trained)
  here = condseg_jax.load(path).predict(volume(), threshold=0.3).label.array
  np.save(tmp_path / "image.npy", volume().array)
  code = f"""
import jax; jax.config.update("jax_num_cpu_devices", {devices})
import condseg_jax, numpy as np
from condseg_jax.geometry import Volume
image = Volume(np.load("image.npy"), np.array({AFFINE.tolist()}))
predictor = condseg_jax.load("m.condseg")
assert jax.device_count() == {devices}
np.save("label.npy", predictor.predict(image, threshold=0.3).label.array)
"""
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120,
                 env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)})
  assert here.any()
  # Another number of devices may mean other threads, and with them another order of sums.
  assert np.mean(np.load(tmp_path / "label.npy") == here) > 0.999


def test_a_bundle_holds_one_checkpoint(trained, tmp_path):
  path = tmp_path / "m.condseg"
  bundles.write_bundle(path, trained)
  assert condseg_jax.load(path, "6").step == 6
  with pytest.raises(InputError, match="step 6.*omit the checkpoint"):
    condseg_jax.load(path, "best")
  with pytest.raises(InputError, match="cannot be read"):
    condseg_jax.load(tmp_path / "no.condseg")
  with pytest.raises(InputError, match="contains no ONNX graphs"):
    condseg_jax.load(path, runtime="onnx")


KERNEL = "parameters__stem__conv__kernel.npy"


def npy(array) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def test_parameters_of_another_network(members, refused):
  assert "stem/conv/kernel" in refused(**{KERNEL: None})
  assert "stem/conv/kernel" in refused(**{KERNEL: npy(np.zeros((3, 3, 3, 2, 8), np.float32))})
  assert "parameter new" in refused(parameters__new=npy(np.zeros(3, np.float32)))
  table = json.loads(members["table.json"])
  table["classes"] = table["classes"][:0]
  refused(**{"table.json": json.dumps(table).encode()})
  config = json.loads(members["config.json"])
  config["model"]["layers_per_level"] = [2, 1]
  assert "down_0/join/conv/kernel" in refused(**{"config.json": json.dumps(config).encode()})


MAP = {"score": [0.2, 0.9], "dice": [0.1, 0.8], "shift": -0.1, "cases": 9}


def edited(members, member, path, value):
  """A member of JSON with another value at a path of keys."""
  if not path:
    return {member: json.dumps(value).encode()}
  tree = json.loads(members[member])
  *parents, last = path
  place = tree
  for key in parents:
    place = place[key]
  place[last] = value
  return {member: json.dumps(tree).encode()}


@pytest.mark.parametrize("member, path, value, reason", [
    ("plan.json", ["spacing", 0], np.nan, "plan: spacing"),
    ("plan.json", ["spacing", 0], 1e-300, "plan: spacing"),
    ("plan.json", ["spacing", 0], "2", ""),
    ("plan.json", ["sd"], np.nan, "not finite"), ("plan.json", ["mean"], np.inf, "not finite"),
    ("plan.json", ["sd"], 0, "sd 0 is not positive"),
    ("plan.json", ["sd"], -3.5, "sd -3.5 is not positive"),
    ("plan.json", ["low"], 1e9, "exceeds high"),
    ("plan.json", ["subvolume"], [8, 16, 15], "not a multiple of the network's stride"),
    ("plan.json", ["subvolume", 0], 8.0, "whole numbers"),
    ("plan.json", ["subvolume"], [1 << 20] * 3, "more than"),
    ("config.json", ["model", "layers_per_level"], [1_000_000] * 2, "layers_per_level"),
    ("config.json", ["model", "decoder_layers_per_level"], [1_000_000], "layers"),
    ("config.json", ["model", "channels"], 1 << 40, ""),
    ("config.json", ["model", "strides"], [[1 << 40] * 3], ""),
    ("table.json", ["classes", 0, "color"], "red", ""),
    ("table.json", ["classes", 0, "color"], [1, 2], ""),
    ("table.json", ["classes", 0, "color"], [1, 2, 256], "colour"),
    ("table.json", ["classes", 0, "code"], np.nan, "code nan"),
    ("table.json", ["classes", 0, "name"], 5, "name"),
    ("table.json", ["classes", 0, "name"], "", "name"),
    ("table.json", ["classes", 0, "name"], "Cube", "lower case"),
    ("table.json", ["classes", 1, "name"], "ball", "same name"),
    ("table.json", ["classes", 0, "no_mirror"], ["X"], "unknown axis"),
    ("table.json", ["capacity"], 1, "capacity"),
    ("table.json", ["presets"], {"a": ["heart"]}, "preset"),
    ("training.json", ["native_spacing", "max"], [1, np.nan, 1], "native_spacing"),
    ("training.json", ["native_field"], {"min": 3}, ""),
    ("training.json", ["intensity"], {"p0.5": "x"}, "intensity"),
    ("priors.json", ["ball"], {"location": [[np.inf]]}, "priors"),
    ("cleaning.json", ["ball"], {"smallest": 1}, ""),
    ("cleaning.json", ["ball"], {"minimum_ml": np.nan}, "cleaning"),
    ("calibration.json", [], {"ball": {"slope": 0.0, "intercept": 1.0}}, "positive slope"),
    ("calibration.json", [], {"ball": {"slope": 1.0, "intercept": np.inf}}, "intercept"),
    ("calibration.json", [], {"ball": {"slope": 1e308, "intercept": 0.0}}, "positive slope"),
    ("calibration.json", [], {"ball": {"slope": 1.0, "intercept": 0, "z": 0}}, "z"),
    ("calibration.json", [], {"ball": {"slope": 1.0}}, "intercept"),
    ("quality.json", [], {"ball": MAP | {"score": [0.5, 0.5]}}, "ascending"),
    ("quality.json", [], {"ball": MAP | {"dice": []}}, "as many"),
    ("quality.json", [], {"ball": MAP | {"score": [], "dice": []}}, "as many"),
    ("quality.json", [], {"ball": MAP | {"shift": np.nan}}, "as many"),
    ("quality.json", [], {"ball": MAP | {"more": 1}}, "more")])
def test_values_that_no_training_writes(members, refused, member, path, value, reason):
  assert reason in refused(**edited(members, member, path, value))


def test_arrays_that_are_not_finite(members, refused):
  array = np.lib.format.read_array(io.BytesIO(members[KERNEL.replace("__", "/")]))
  for value in (np.nan, np.inf):
    changed = array.copy()
    changed.flat[-1] = value
    assert "stem/conv/kernel contains NaN or Inf" in refused(**{KERNEL: npy(changed)})


def test_arrays_that_are_none(members, refused):
  pickled = npy(np.array([{"any": "object"}], object))
  fortran = npy(np.asfortranarray(np.ones((3, 3, 3, 1, 8), np.float32)))
  whole = members[KERNEL.replace("__", "/")]
  huge = whole.replace(b"(3, 3, 3, 1, 8)", b"(9, 9, 9, 9, 9)")
  for content in (pickled, fortran, huge, whole[:-4], whole + bytes(4), whole[:20], b"", b"hello",
                  npy(np.ones((3, 3, 3, 1, 8))), npy(np.ones((3, 3, 3, 1, 8), np.int32))):
    assert content != whole
    refused(**{KERNEL: content})


@pytest.mark.parametrize("name", ["config.json", "table.json", "plan.json", "facts.json"])
def test_records_that_are_none(refused, name):
  for content in (None, b"", b"{", b"[]", b"{}", b"3", b"null", b"\xff", b"[" * 100_000,
                  b'{"model": 1, "conditioning": 2, "step": "a"}'):
    refused(**{name: content})


def test_members_that_do_not_belong_there(refused):
  refused(**{"model_card.md": None})
  refused(**{"encoder.onnx": b"x"})


def test_the_card_says_what_the_run_recorded(run, trained, members):
  card = members["model_card.md"].decode()
  for entry in trained.record.table.classes:
    assert f"| {entry.name} | {entry.code:.6f} | {entry.name} |" in card
  assert "| ball | 3 | ball |" in card and "2 × 1 × 1 mm" in card and "8 × 16 × 16 voxels" in card
  assert "| step of the checkpoint | 6 |" in card
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  score = next(x for x in lines if x["step"] == 6 and "held_out/mean_dice" in x)
  assert f"| mean | {score['held_out/mean_dice']:.4f} |" in card
  assert trained.facts["held_out"]["mean_dice"] == score["held_out/mean_dice"]


def test_what_was_not_recorded_is_not_said(trained, tmp_path):
  facts = run_facts(tmp_path, 6)
  assert facts == {"step": 6, "datasets": [], "images": None, "held_out": None}
  card = model_card(trained.record, trained.params, facts, onnx=False)
  assert "recorded none" in card and "not recorded" in card and ".onnx" not in card
  (tmp_path / "metrics.jsonl").write_text('{"step": 5, "held_out/mean_dice": 0.5}\n')
  (tmp_path / "plan.json").write_text("[]")
  assert run_facts(tmp_path, 6) == facts


def test_names_do_not_break_the_card(trained):
  facts = {**trained.facts, "datasets": [{"name": "a|b\n# c", "cases": 1, "annotated": ["ball"]}]}
  card = model_card(trained.record, trained.params, facts, onnx=False)
  assert "| a\\|b # c | 1 | ball |" in card and "\n# c" not in card
