"""A run grows: a class joins it, a known one is adapted, and what it knew stays as it was."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from condseg_jax.cli import predict
from condseg_jax.cli import prepare
from condseg_jax.cli import train
from condseg_jax.cli.grow import main
from condseg_jax.data.store import Store
from condseg_jax.grow import ladder
from condseg_jax.loading import load
from condseg_jax.model_io.bundle import write_bundle
from condseg_jax.model_io.load import read_model
from condseg_jax.models.network import class_logits
from support.bundles import newer
from support.folds import NO_AUGMENTATION
from support.tiny import overrides
from support.tiny import write_datasets
from support.tiny import write_msd

SMALL = {"train.steps": 2, "train.log_every": 1, "model.channels": 4, "model.growth": 4,
         "train.ema_decay": 0.5, "optimizer.name": "adamw", "optimizer.weight_decay": 0.1,
         **dict.fromkeys(NO_AUGMENTATION, 0.0)}


def named(folder, name, **changes):
  """Gives the only class of a dataset another name."""
  path = folder / "dataset.json"
  tree = json.loads(path.read_text()) | {"labels": {"0": "background", "1": name}} | changes
  path.write_text(json.dumps(tree))
  return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Beside the data of a run: cubes, which are boxes that it has not seen, and more balls."""
  root = write_datasets(tmp_path_factory.mktemp("data"))
  named(write_msd(root / "cube", range(20, 23), ["box"], seed=1), "cube")
  write_msd(root / "site", range(30, 33), ["ball"], seed=2)
  return root


def trained(root, name, **changes):
  changes = {"data.cache": root / "cache", **SMALL, **changes}
  assert train.main(["condseg-train", "--config=base", f"--workdir={root / name}",
                     *overrides(root, **changes)]) == 0
  return root / name


@pytest.fixture(scope="module")
def run(root):
  return trained(root, "run", **{"conditioning.vector": "embedding"})


@pytest.fixture(scope="module")
def bundle(run):
  path = run.parent / "run.condseg"
  write_bundle(path, read_model(run))
  return path


def grow(source, data, out, *more):
  return main(["condseg-grow", f"--workdir={source}", f"--data={data}", f"--out={out}",
               "--steps=2", *more])


def digests(folder):
  return {str(path): hashlib.sha256(path.read_bytes()).hexdigest()
          for path in sorted(folder.rglob("*")) if path.is_file()}


def logits(source, names):
  """The logits of some classes in an image of noise."""
  found = load(source)
  image = np.random.default_rng(5).normal(size=(1, *found.plan.subvolume, 1)).astype(np.float32)
  ids = np.array([[found.table.index(name) for name in names]], np.int32)
  decode = jax.jit(class_logits, static_argnums=0)
  return np.asarray(decode(found.model, found.variables, image, ids))


def test_a_class_joins_and_the_others_are_decoded_bit_by_bit(run, root, capsys):
  before, out = digests(run), root / "with_cube"
  assert grow(run, root / "cube", out, "--level=0", "--report") == 0
  assert "cube, new cases" in (out / "report.html").read_text(encoding="utf-8")
  assert digests(run) == before
  printed = capsys.readouterr().out
  assert "new classes: cube\n2 new cases to train on, 1 to judge by\n6 cases of the old data" in (
      printed)
  assert "level 0 is taken" in printed and "\nball " in printed and "\ncube " in printed
  assert load(out).table.names == ("ball", "box", "cube")
  for name in ("ball", "box"):
    np.testing.assert_array_equal(logits(out, [name]), logits(run, [name]))
  old, new = read_model(run), read_model(out)
  vectors, grown = (np.asarray(b.params["class_vector"]["embedding"]) for b in (old, new))
  np.testing.assert_array_equal(grown[:2], vectors)
  assert 0 < np.abs(grown[2] - vectors.mean(0)).max() < 0.2  # where it began, and a step from there
  # What the record says is that of the run before, and of both data.
  assert new.record.config.train == old.record.config.train
  assert new.record.config.optimizer == old.record.config.optimizer
  assert set(new.record.priors) == {"ball", "box", "cube"}
  assert new.record.training["cases"] == 6 + 3
  assert new.record.plan == old.record.plan
  record = json.loads((out / "growth.json").read_text())
  assert record["taken"] == 0 and {row["name"] for row in record["rows"]} <= {
      "ball", "box", "cube"}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {}, {"conditioning.position": "per_class_decoders", "train.driver": "pmap"},
    {"conditioning.position": "output_head", "conditioning.mechanism": "output"}], ids=str)
def test_rows_a_decoder_or_a_head_of_its_own(root, changes, tmp_path):
  source = trained(root, f"run{len(str(changes))}", **changes)
  assert grow(source, root / "cube", tmp_path / "out", "--level=1") == 0
  for name in ("ball", "box"):
    np.testing.assert_array_equal(logits(tmp_path / "out", [name]), logits(source, [name]))
  assert not np.array_equal(logits(tmp_path / "out", ["cube"]), logits(source, ["box"]))


@pytest.mark.slow
def test_everything_is_learned_and_an_interruption_costs_nothing(bundle, root, tmp_path,
                                                                 monkeypatch, capsys):
  """From a bundle, which does not say where its data are: they are named, or there are none."""
  out = tmp_path / "out"
  command = (bundle, root / "cube", out, "--level=2", f"--old={root / 'train'}",
             "--overlapping=cube:box")
  with monkeypatch.context() as patch:
    patch.setattr(ladder, "write_result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert grow(*command) == 130
  assert not (out / "checkpoints").exists()
  level = digests(out / "levels" / "2" / "checkpoints")
  assert grow(*command) == 0
  assert digests(out / "levels" / "2" / "checkpoints") == level
  config = read_model(out / "levels" / "2").record.config
  assert config.data.weights == (1.0, 0.5, 0.5)
  assert config.optimizer.learning_rate == pytest.approx(1e-2)
  assert read_model(out).record.table.overlapping == (("box", "cube"),)
  assert not (out / "data").exists()  # old data are at hand: nobody needs to teach
  capsys.readouterr()
  assert grow(*command[:-1]) == 2
  assert "was begun with another network, other data or other flags" in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_site(run, root, tmp_path, capsys):
  """A known class with new images: everything is adapted, with the same guard."""
  code = grow(run, root / "site", tmp_path / "out", "--old=none", "--report")
  printed = capsys.readouterr()
  assert "adapted classes: ball" in printed.out and "no old data at hand" in printed.out
  record = json.loads((tmp_path / "out" / "growth.json").read_text())
  assert {level.partition(" at")[0] for level in record["levels"]} == {"level 2"}
  assert set(record["before"]["agreement"]) == {"box"}
  assert code == (record["taken"] is None)
  for made in ("checkpoints", "report.html"):
    assert (tmp_path / "out" / made).exists() == (record["taken"] is not None)


@pytest.mark.slow
def test_two_runs_become_one_without_the_masks_of_either(run, bundle, root, tmp_path):
  """One segments images that nobody annotated, and the other learns its class from that."""
  cubes = trained(root, "cubes", **{"data.root": root / "cube", "train.steps": 30})
  images, masks = tmp_path / "images", tmp_path / "masks"
  shutil.copytree(root / "site" / "imagesTr", images)
  assert predict.main(["condseg-predict", f"--workdir={cubes}", f"--input={images}",
                       f"--output={masks}", "--threshold=0.3", "--nopicture"]) == 0
  (tmp_path / "joined.yaml").write_text(json.dumps({
      "modality": "ct", "images": "images/{id}.nii.gz", "labels": "masks/{id}.nii.gz",
      "classes": {"1": "cube"}}))
  spacing = ",".join(map(str, read_model(run).record.plan.spacing))
  assert prepare.main(["condseg-prepare", "--format=description", f"--spacing={spacing}",
                       f"--source={tmp_path / 'joined.yaml'}", f"--out={tmp_path / 'store'}"]) == 0
  out = tmp_path / "joined"
  assert grow(bundle, tmp_path / "store", out, "--level=2", "--old=none") == 0
  assert load(out).table.names == ("ball", "box", "cube")
  store = Store.open(out / "data" / "0")  # both networks taught, nobody else
  assert len(store.cases) == 3 and any(case.positives["cube"] for case in store.cases)
  for case in store.cases:
    assert case.annotated == ("cube",) and set(case.pseudo) <= {"ball", "box"}
  # This bundle does not say how good a class is, so that none is left out.
  assert json.loads((out / "data" / "0" / "pseudo.json").read_text())["classes"]["ball"] | {
      "range_ml": None, "absent": None} == {"dice": None, "range_ml": None, "absent": None,
                                            "joins": True}


def test_what_cannot_grow_is_one_line(run, bundle, root, tmp_path, capsys):
  mr = named(write_msd(tmp_path / "mr", range(2), ["box"]), "cube", modality={"0": "MR"})
  one = named(write_msd(tmp_path / "one", range(1), ["box"]), "cube")
  faults = [
      ((run, root / "site", "--level=0"), 2, "--data: annotates 'ball', which"),
      ((run, root / "site", "--level=1"), 2, "give --level=auto to adapt the network"),
      ((run, mr), 2, "has 3-D mr images"), ((run, one), 1, "annotates 'cube' in a single case"),
      ((run, root / "cube", "--overlapping=cube:bax"), 2, "cube:bax is no pair of classes"),
      ((newer(bundle, tmp_path / "newer.condseg"), root / "cube"), 1, "is of version 99"),
      ((tmp_path / "none", root / "cube"), 1, "holds no checkpoint")]
  for (source, data, *more), code, line in faults:
    assert grow(source, data, tmp_path / "out", *more) == code, line
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error and error.startswith("condseg-grow: "), error
    assert not (tmp_path / "out").exists()
  assert grow(run, root / "cube", run / "out") == 2
  assert "is in --workdir" in capsys.readouterr().err
  assert grow(run, root / "cube", root / "run") == 2
