"""Pseudo-masks from a cross-validated run to the training that uses them.

The run is the tiny one of conftest, which has learned nothing; what its members are said to have
found is written in its place, so that every mask is known by hand.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.cli import prepare
from condseg_jax.cli import pseudo
from condseg_jax.cli import train
from condseg_jax.cli import verify
from condseg_jax.config import Config
from condseg_jax.data import sampling
from condseg_jax.data.store import open_prepared
from condseg_jax.data.store import Store
from condseg_jax.infer.probability_store import ProbabilityStore
from condseg_jax.infer.probability_store import read_probability
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.load import read_model
from condseg_jax.pseudo import write
from condseg_jax.pseudo.sources import load_source
from condseg_jax.pseudo.sources import probabilities
from condseg_jax.pseudo.sources import sources
from condseg_jax.train.setup import make_setup
from support import tiny
from support.folds import arguments

OTHER = {"ball": "box", "box": "ball"}
TOO_LARGE = "case_03"  # what is found there is no organ's size


def truth(case_id, name):
  """The whole organ in a case, annotated or not."""
  _, label = tiny.case(np.random.default_rng((0, int(case_id[-2:]))))
  return label == tiny.ORGANS[name]


def found(case):
  """What a member finds of the class that a case does not annotate; some of it is mistaken."""
  own, = case.annotated
  name = OTHER[own]
  p = np.where(truth(case.id, name), 0.9, 0.05)
  p[:, 0] = 0.3  # where it is in doubt
  p[truth(case.id, own)] = 0.95  # the other organ, which is annotated
  if case.id == TOO_LARGE:
    p[:, 1:] = 0.9
  return name, p.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def data(fold_root, tmp_path_factory):
  """The stores of the run, and one of images without masks."""
  root = tmp_path_factory.mktemp("stores")
  for store in open_prepared(fold_root / "cache"):
    shutil.copytree(store.root, root / store.root.name.split("-")[0])
  shutil.copytree(fold_root / "test" / "imagesTr", root.parent / "plain" / "images")
  assert prepare.main(["condseg-prepare", "--format=folder", "--unlabelled", "--modality=ct",
                       f"--source={root.parent / 'plain'}", f"--out={root / 'bare'}",
                       "--spacing=2,1,1"]) == 0
  return root


@pytest.fixture(scope="module")
def run(fold_run, data, tmp_path_factory):
  """The run, whose members have found what `found` says, with a Dice of 0.9."""
  folder = shutil.copytree(fold_run, tmp_path_factory.mktemp("told") / "run")
  told = FoldRun.open(folder)
  for store in open_prepared(data):
    for case in store.cases:
      if case.annotated:
        name, p = found(case)
        place = told.probabilities_folder(f"{case.dataset}/{case.id}")
        shutil.rmtree(place)
        array = ProbabilityStore(place, [0, 1], case.shape, {"classes": ["ball", "box"]})
        both = [p if n == name else 1 - p for n in ("ball", "box")]
        slab = type("Slab", (), {"class_ids": (0, 1), "planes": both, "box": ()})
        list(array.keep([slab]))
  scores = json.loads(json.dumps(told.scores))
  for entry in scores["classes"].values():
    entry["dice"] = 0.9
  dataclasses.replace(told, scores=scores).write()
  return folder


def command(run, data, out, *more):
  return pseudo.main(["condseg-pseudo", f"--workdir={run}", f"--data={data}", f"--out={out}",
                      *more])


@pytest.fixture(scope="module")
def out(run, data, tmp_path_factory):
  out = tmp_path_factory.mktemp("out")
  assert command(run, data, out) == 0
  return out


def pairs(data, out):
  """Every case before and after, with its stores."""
  for before, after in zip(open_prepared(data), open_prepared(out), strict=True):
    for one, other in zip(before.cases, after.cases, strict=True):
      yield before, one, after, other


def test_masks_are_what_was_found_unless_the_case_knows_better(data, out):
  count = 0
  for _, _, store, case in pairs(data, out):
    if not case.annotated or case.id == TOO_LARGE:
      continue
    name, p = found(case)
    assert list(case.pseudo) == [name]
    expected = np.full(case.shape, UNLABELLED)
    expected[p >= 0.8], expected[p <= 0.1] = POSITIVE, NEGATIVE
    expected[truth(case.id, case.annotated[0])] = NEGATIVE
    mask, own = store.read_masks(case, [name, *case.annotated])
    np.testing.assert_array_equal(mask, expected)
    assert {NEGATIVE, POSITIVE, UNLABELLED} == set(np.unique(mask))
    assert not np.any((mask == POSITIVE) & (own == POSITIVE)), "contradicts a true label"
    assert all(mask[tuple(place)] == POSITIVE for place in case.pseudo[name])
    count += 1
  assert count == 6


def test_what_is_known_stays_as_it_was(data, out):
  """Nothing but `pseudo` and what depends on it changes; implausible volumes are left out."""
  for before, one, after, other in pairs(data, out):
    same = dataclasses.replace(other, pseudo={}, source=one.source,
                               sha256=other.sha256 if not other.pseudo else one.sha256)
    assert same == one
    np.testing.assert_array_equal(before.read_image(one), after.read_image(other))
    for name in one.annotated:
      np.testing.assert_array_equal(before.read_masks(one, [name]), after.read_masks(other, [name]))
    assert (other.sha256 != one.sha256) == bool(other.pseudo)
    if other.id == TOO_LARGE:
      assert not other.pseudo


def test_the_store_says_what_is_pseudo_and_by_whom(data, run, out, capsys):
  for before, after in zip(open_prepared(data), open_prepared(out), strict=True):
    told = after.provenance["pseudo"]
    assert told["run"] == str(run) and told["positive"] == 0.8 and told["classes"]["box"]["joins"]
    assert told == json.loads((after.root / "pseudo.json").read_text())
    assert after.table == before.table and after.overlapping == before.overlapping
  assert verify.main(["condseg-verify", str(out)]) == 0, capsys.readouterr().out


def test_no_member_labels_what_it_trained_on(data, run, tmp_path, monkeypatch):
  """By the ids, where nothing was kept and all is predicted anew."""
  told = FoldRun.open(run)
  stores = open_prepared(data)
  plain = shutil.copytree(run, tmp_path / "run")
  for path in plain.glob("out_of_fold/*/*.npz"):
    with np.load(path) as content:
      np.savez(path, **{**content, "probabilities": np.array(False)})
  used = {}

  def spy(run, store, case, source, predictor):
    used[f"{case.dataset}/{case.id}"] = source
    return probabilities(run, store, case, source, predictor)

  monkeypatch.setattr(write, "probabilities", spy)
  assert command(plain, data, tmp_path / "out") == 0
  planned = {f"{case.dataset}/{case.id}": sources(told, store)[case.id]
             for store in stores for case in store.cases}
  assert used == planned and set(told.places) < set(used)
  for key, source in used.items():
    if key in told.places:
      assert key in told.fold(source).held_out and key not in told.fold(source).training
    else:
      assert source is None and not any(key in told.fold(n).training for n in range(told.count))


def test_another_image_of_a_patient_is_labelled_by_the_same_member(data, run):
  told = FoldRun.open(run)
  store = next(s for s in open_prepared(data) if s.root.name == "ball")
  first = store.cases[0]
  assert first.patient == "case"
  new = dataclasses.replace(first, id="later")
  alone = dataclasses.replace(first, id="alone", patient="")
  test = dataclasses.replace(first, id="test", split="test")
  more = dataclasses.replace(store, cases=(*store.cases, new, alone, test))
  planned = sources(told, more)
  assert planned["later"] == planned[first.id] == told.places[f"ball/{first.id}"].fold
  assert planned["alone"] is None and "test" not in planned


def test_unseen_images_get_the_mean_of_all_members(data, run, tmp_path):
  told, store = FoldRun.open(run), Store.open(data / "bare")
  case = store.cases[0]
  members = []
  for number in range(told.count):
    load_source(told, number).predict(store.read_volume(case), clean=False,
                                      probabilities=str(tmp_path / f"{number}"))
    members.append(read_probability(tmp_path / f"{number}", "ball"))
  with probabilities(told, store, case, None, lambda source: load_source(told, source)) as read:
    np.testing.assert_allclose(read("ball", ()), np.mean(members, 0), atol=1.5e-3)  # float16


# --- training -----------------------------------------------------------------------------------
def setup_of(root, run, **changes):
  config = read_model(run, members=1).record.config
  changes = {"data.root": str(root), "data.bare": 1.0, "augment.cutmix": 0.5,
             "data.batch_size": 4} | changes
  config = Config.from_dict(config.to_dict()).override(changes)
  return make_setup(config, open_prepared(root), None, "")


def first_batches(setup, count=6):
  batches = setup.batches()
  try:
    return [next(batches) for _ in range(count)]
  finally:
    batches.close()


def test_with_weight_0_nothing_is_learned_from_them(data, out, run):
  """The step is a function of record and batches, which are the same."""
  without, zero, half = (setup_of(root, run, **{"data.pseudo_weight": weight})
                         for root, weight in ((data, 0.0), (out, 0.0), (out, 0.5)))
  drop = lambda record: record._replace(config=None)
  assert drop(without.record) == drop(zero.record) == drop(half.record)
  assert without.plan_summary == zero.plan_summary
  assert half.plan_summary["decodes_per_image"] == 1 + zero.plan_summary["decodes_per_image"]
  for a, b in zip(first_batches(without), first_batches(zero), strict=True):
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_hold_them_beside_the_true_masks(data, out, run):
  setup = setup_of(out, run, **{"augment.cutmix": 0.0, "data.bare": 0.0, "data.hold_out": 0.0,
                                "data.pseudo_weight": 0.25})
  assert sampling.decodes_per_image(setup.training, setup.record.table, setup.config.data) == 2
  names, seen = setup.record.table.names, set()
  for batch in first_batches(setup, 20):
    for ids, beta, dataset in zip(batch.class_id, batch.beta, batch.dataset, strict=True):
      own = setup.training[dataset].annotated[0]
      assert names[ids[0]] == own and names[ids[1]] == OTHER[own] and beta[0] == 1
      seen.add(beta[1])
  assert seen == {0, 0.25}  # 0 in the image whose pseudo-mask was rejected


@pytest.mark.slow
def test_training_with_weight_0_is_bit_for_bit_training_without(fold_root, data, out, tmp_path):
  def parameters(root, name, weight):
    workdir = tmp_path / name
    assert train.main(arguments(fold_root, workdir, **{
        "data.root": root, "data.pseudo_weight": weight, "train.steps": 2})) == 0
    return read_model(workdir)

  import jax
  leaves = [jax.tree.leaves(parameters(*run).params)
            for run in ((data, "a", 0.0), (out, "b", 0.0), (out, "c", 0.5))]
  assert all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[1], strict=True))
  assert any(not np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


# --- resume and bad input -----------------------------------------------------------------------
def test_a_stopped_command_goes_on_where_it_was(run, data, out, tmp_path, monkeypatch, capsys):
  copy = shutil.copytree(out, tmp_path / "out")
  cases = {path: path.read_bytes() for path in copy.rglob("case.json")}
  times = {path: path.stat().st_mtime_ns for path in cases}
  missing, damaged = (copy / "ball" / "cases" / name / "case.json" for name in
                      ("case_00", "case_01"))
  missing.unlink()
  damaged.write_text("{")
  (copy / "ball" / "manifest.json").unlink()
  monkeypatch.setattr(write, "load_source", lambda *_: pytest.fail("predicts again"))
  moved = shutil.copytree(run, tmp_path / "moved")
  assert command(moved, data, copy) == 0
  assert {path: path.read_bytes() for path in cases} == cases
  changed = {path for path in cases if path.stat().st_mtime_ns != times[path]}
  assert changed == {missing, damaged}
  assert open_prepared(copy)[0].cases == open_prepared(out)[0].cases
  printed = capsys.readouterr().out
  assert "ball    " in printed and " 0.900 " in printed  # the table of the gate
  assert "box: 3 pseudo-masks, 3 rejected for their volume" in printed


def test_refused(run, data, out, fold_run, tmp_path, capsys):
  """One line and exit code 2 each."""
  def refused(*arguments):
    capsys.readouterr()
    assert command(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith(")"), lines
    return lines[0]

  def changed(root, **changes):
    """The stores, with another record of the first case of the balls."""
    copy = shutil.copytree(data, root)
    tree = json.loads((copy / "ball" / "manifest.json").read_text())
    tree["cases"][0] |= changes
    (copy / "ball" / "manifest.json").write_text(json.dumps(tree))
    return copy

  new = tmp_path / "new"
  assert "not a cross-validated run" in refused(run / "fold_0", data, new)
  assert "no class reaches a cross-validated Dice of 0.5" in refused(fold_run, data, new)
  assert "--competence: no class" in refused(run, data, new, "--competence=0.95")
  assert "--positive: 0.4" in refused(run, data, new, "--positive=0.4")
  assert "is not a prepared store" in refused(run, run, new)
  assert f"lacks 3 cases of {run}, such as box/case_04" in refused(run, data / "ball", new)
  assert "is in the data" in refused(run, data, data / "more")
  assert "was begun with another run or other thresholds" in refused(run, data, out,
                                                                     "--positive=0.9")
  assert "older than the data: case_00 has changed" in refused(
      run, changed(tmp_path / "edited", sha256="0"), out)
  other = changed(tmp_path / "prepared", intensities=[1e4])
  assert f"{run}: is older than the data" in refused(run, other, new)
  other = changed(tmp_path / "named", annotated=["cone"])
  assert "annotates 'cone', which" in refused(run, other, new)
  (new / "ball" / "cases").mkdir(parents=True)
  assert "holds other data" in refused(run, data, new)
  unfinished = shutil.copytree(run, tmp_path / "unfinished")
  dataclasses.replace(FoldRun.open(unfinished), scores={}).write()
  assert "has not finished" in refused(unfinished, data, tmp_path / "x")


def test_a_class_without_a_competent_member_is_left_out(run, data, tmp_path, capsys, monkeypatch):
  weak = shutil.copytree(run, tmp_path / "run")
  told = FoldRun.open(weak)
  scores = json.loads(json.dumps(told.scores))
  scores["classes"]["box"]["dice"] = 0.2
  dataclasses.replace(told, scores=scores).write()
  assert command(weak, data, tmp_path / "out") == 0
  lines = capsys.readouterr().out.splitlines()
  (line,) = (line for line in lines if line.startswith("box "))
  assert "0.200" in line and "left out: no competent member (Dice below 0.5)" in line
  written = open_prepared(tmp_path / "out")
  assert {name for store in written for case in store.cases for name in case.pseudo} == {"ball"}
  monkeypatch.setattr(write, "check_data", lambda *_: read_model(weak, members=1).record)
  assert command(weak, data / "ball", tmp_path / "none") == 2
  assert "every image annotates every class that joins" in capsys.readouterr().err
