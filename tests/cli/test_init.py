"""From raw folders to a config that trains, and one line for folders that cannot be used."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from condseg_jax.cli import init
from condseg_jax.cli import train
from condseg_jax.config import Config
from condseg_jax.data.store import open_prepared
from condseg_jax.datasets.modality import guess_modality
from condseg_jax.datasets.raw import RawCase
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume
from condseg_jax.train import candidates
from support import tiny
from support.dicom_files import write_series


def write_folder(root: Path, organ: str, *, kind: str = "ct", count: int = 3) -> Path:
  """Writes images/ and masks/; a CT has air around the body, an MR image a scale of its own."""
  for number in range(count):
    image, label = tiny.case(np.random.default_rng((number, tiny.ORGANS[organ])))
    if kind == "ct":
      image[:, :3] = -1000
    elif kind == "mr":
      image = (np.clip(image, 0, None) * (1 + 0.3 * number)).astype(np.int16)
    mask = (label == tiny.ORGANS[organ]).astype(np.uint8)
    for part, array in (("images", image), ("masks", mask)):
      path = root / part / f"{organ}_{number}.nii.gz"
      path.parent.mkdir(parents=True, exist_ok=True)
      write_nifti(path, Volume(array, tiny.AFFINE), label=part == "masks")
  return root


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  """Two datasets of one organ each: a folder, and one in MSD layout."""
  root = tmp_path_factory.mktemp("raw")
  write_folder(root / "ball", "ball")
  tiny.write_msd(root / "box", range(4, 7), ["box"])
  return root


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory):
  """A config that was written with one small candidate, and what was printed."""
  out = tmp_path_factory.mktemp("config") / "mine.py"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    patch.setattr(candidates, "LEAST_STEPS", {4: 1})
    patch.setattr(candidates, "IMAGES", {3: (2,)})
    assert init.main(["condseg-init", str(raw), f"--out={out}", "--minutes=2"]) == 0
  return out


@pytest.fixture
def says(capsys, tmp_path):
  """Runs the command, which must fail with one line and write nothing; returns the line."""
  def fails(*arguments, code=2, out=None):
    out = out or tmp_path / "out" / "mine.py"
    out.parent.mkdir(exist_ok=True)
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert init.main(["condseg-init", *map(str, arguments), f"--out={out}"]) == code
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.startswith("condseg-init: ")]
    assert len(lines) == 1 and lines[0].endswith(")"), lines
    assert sorted(out.parent.iterdir()) == before
    return lines[0]
  return fails


def loaded(path: Path) -> Config:
  scope: dict = {}
  exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), scope)
  return Config.from_dict(scope["get_config"]().to_dict())


# --- the two commands ---------------------------------------------------------------------------
def test_the_config_says_everything(made, raw):
  config = loaded(made)
  assert config.data.classes == ("ball", "box") and config.data.spacing == (2.0, 1.0, 1.0)
  assert config.train.minutes == 2 and config.model.channels == config.model.growth == 4
  assert config.data.subvolume == (8, 20, 20)
  stores = open_prepared(config.data.root, config.data.spacing)
  assert [store.table.names for store in stores] == [("ball",), ("box",)]
  text = made.read_text()
  assert f"condseg-init {raw}" in text
  assert "ball: 3 cases, ball; CT, guessed: values are whole numbers" in " ".join(text.split())
  assert f"condseg-train --config={made} --workdir=RUN" in text and "steps in 2 minutes" in text
  assert all(len(line) <= 100 for line in text.splitlines() if "/" not in line)
  assert [path.name for path in made.parent.iterdir()] == ["mine.py"]


def test_training_needs_nothing_else(made, tmp_path, monkeypatch):
  """It finds the prepared data: the importers are not even looked at."""
  from condseg_jax.datasets import discover
  monkeypatch.setattr(discover, "open_stores", None)
  workdir = tmp_path / "run"
  assert train.main(["condseg-train", f"--config={made}", f"--workdir={workdir}",
                     "--config.train.minutes=0", "--config.train.steps=2"]) == 0
  run = json.loads((workdir / "run.json").read_text())
  assert run["status"] == "finished" and run["step"] == 2


def test_a_second_config_prepares_nothing_again(made, raw, monkeypatch):
  from condseg_jax.datasets import discover
  root = Path(loaded(made).data.root)
  monkeypatch.setattr(discover.prepare_lib, "prepare", None)
  sources = init.find([raw / "ball", raw / "box"])
  folders = [source.folder for source in sources]
  assert Path(discover.prepare_together(folders, cache=root.parent, progress=False)) == root


def test_stores_are_used_as_they_are(made, says):
  """They are found, and checked; only the time is missing."""
  root = loaded(made).data.root
  assert "differs from that of the prepared stores" in says(root, "--spacing=1,1,1")
  assert "is a prepared store" in says(next(Path(root).iterdir()), root)


# --- the rule -----------------------------------------------------------------------------------
def test_the_largest_that_gets_its_steps(made, monkeypatch):
  monkeypatch.setattr(candidates, "LEAST_STEPS", {2: 100, 4: 1000})
  monkeypatch.setattr(candidates, "IMAGES", {3: (2, 4)})
  monkeypatch.setattr(candidates, "VOXELS", {3: (8 * 12 * 12, 8 * 20 * 20)})
  root = loaded(made).data.root
  stores, tried = open_prepared(root), []

  def chosen(minutes, speed):
    """With steps that take 1 ms for 1000 voxels of width 2, times `speed`."""
    def seconds(config, _):
      tried.append(config)
      voxels = np.prod(config.data.subvolume) * config.data.batch_size
      return float(speed * 1e-6 * voxels * config.model.channels / 2)
    base = candidates.starting_config(root, stores, minutes)
    choice = candidates.choose(base, stores, seconds)
    Config.from_dict(choice.config.to_dict())
    return choice

  most = chosen(60, 1)
  assert (most.config.model.channels, most.config.data.batch_size) == (4, 4)
  assert most.config.data.subvolume == (8, 20, 20) and most.timed and most.compared == 8
  assert most.step == pytest.approx(12.8e-3 * 2)
  assert most.steps == pytest.approx(0.88 * 3600 / most.step, rel=1e-3)
  assert len(tried) <= 4
  # A sixth of the steps that the wide one needs, so a narrow one with the same subvolume.
  narrow = chosen(60, 1000)
  assert narrow.config.model.channels == 2 and narrow.config.data.subvolume == (8, 20, 20)
  assert narrow.steps >= 100
  small = chosen(60, 5500)
  assert np.prod(small.config.data.subvolume) < 8 * 20 * 20
  with pytest.raises(InputError, match="minutes: 1 leave time for") as caught:
    chosen(1, 1000)
  needed = int(caught.value.cure.split()[1])
  assert caught.value.usage and chosen(needed, 1000).steps >= 100


# --- bad input ----------------------------------------------------------------------------------
def test_wrong_usage(says, raw, tmp_path, capsys):
  assert init.main(["condseg-init", str(raw)]) == 2
  assert "--out: is missing" in capsys.readouterr().err
  assert "FOLDERS: is missing" in says()
  assert "nowhere: does not exist" in says(tmp_path / "nowhere")
  assert "--minutes: 0.1 leave no time" in says(raw, "--minutes=0.1")
  assert "--minutes: nan" in says(raw, "--minutes=nan")
  assert "--spacing" in says(raw, "--spacing=a")
  assert "is not the name of a config file" in says(raw, out=tmp_path / "mine.txt")
  (tmp_path / "mine.py").write_text("mine")
  assert "exists" in says(raw, out=tmp_path / "mine.py")
  assert (tmp_path / "mine.py").read_text() == "mine"


def test_folders_that_cannot_be_used(says, raw, tmp_path):
  (tmp_path / "empty").mkdir()
  assert "empty: is empty" in says(tmp_path / "empty")
  (tmp_path / "odd" / "deep").mkdir(parents=True)
  assert "contains no dataset of a known layout" in says(tmp_path / "odd")
  masks = write_folder(tmp_path / "masks_only", "ball")
  shutil.rmtree(masks / "images")
  assert "contains no folder images" in says(masks)
  assert "is given twice" in says(raw, raw / "box")
  assert "box: is declared as CT" in says(raw, "--modality=mr")
  write_folder(tmp_path / "mr", "box", kind="mr")
  line = says(raw / "ball", tmp_path / "mr")
  assert "mr: is MR (guessed: values are whole numbers from 0" in line and "ball is CT" in line
  write_folder(tmp_path / "noise", "ball", kind="noise")
  assert "its modality cannot be known" in says(tmp_path / "noise")
  (tmp_path / "twice").mkdir()
  shutil.copytree(raw / "ball", tmp_path / "twice", dirs_exist_ok=True)
  for classes, reason in (('{"liver": 1, "liver": 2}', "'liver' occurs twice"),
                          ('{"liver": 1, "Liver": 2}', "two values for one class"),
                          ('{"liver": 1, "spleen": 1}', "one value for two classes")):
    (tmp_path / "twice" / "classes.json").write_text(classes)
    assert reason in says(tmp_path / "twice")


def test_errors_of_the_data_are_listed(raw, tmp_path, capsys):
  """A class of 1, but masks of 1 and 2; and a truncated image."""
  folder = write_folder(tmp_path / "liver", "ball")
  mask = np.zeros(tiny.SHAPE, np.uint8)
  mask[2:4, 5:8, 5:8] = 2
  write_nifti(folder / "masks" / "ball_0.nii.gz", Volume(mask, tiny.AFFINE), label=True)
  (folder / "images" / "ball_1.nii.gz").write_bytes(b"")
  capsys.readouterr()
  out = tmp_path / "mine.py"
  assert init.main(["condseg-init", str(folder), str(raw / "box"), f"--out={out}"]) == 1
  said = capsys.readouterr().out
  assert "unknown label value 2" in said and "images/ball_1.nii.gz" in said
  assert "6 cases read: 2 errors" in said and not out.exists()


# --- modality -----------------------------------------------------------------------------------
def guess(folder: Path, *arrays: np.ndarray):
  folder.mkdir()
  for number, array in enumerate(arrays):
    write_nifti(folder / f"{number}.nii.gz", Volume(array, tiny.AFFINE))
  paths = sorted(folder.iterdir())
  return guess_modality([RawCase(path.name, path, (), "", "train") for path in paths])


def test_modality_of_volumes(tmp_path):
  rng = np.random.default_rng(0)
  body = rng.normal(50, 40, (10, 20, 20)).round().astype(np.int16)
  air = body.copy()
  air[:, :4] = -1000
  shifted = (air + 1024).astype(np.int16)
  scans = [np.abs(rng.normal(s, s / 3, body.shape)).astype(np.float32) for s in (300, 90)]
  grey = (np.abs(body) % 255).astype(np.uint8)
  grey[0, 0, 0] = 255
  for name, arrays, modality, reason in (
      ("ct", [air, air], "ct", "like air"), ("mr", scans, "mr", "without a common scale"),
      ("cropped", [body], "", "negative without air"),
      ("shifted", [shifted], "", "near 1024"),
      ("standard", [(s - s.mean()) / s.std() for s in scans], "", "negative without air"),
      ("grey", [grey, grey], "", "rescaled")):
    found = guess(tmp_path / name, *arrays)
    assert found.modality == modality and reason in found.reason, (name, found)


def test_modality_of_dicom_and_pictures(tmp_path):
  voxels = np.zeros((6, 5, 3), np.int16)
  for name, expected in (("CT", "ct"), ("MR", "mr"), ("PT", "")):
    write_series(tmp_path / name, voxels, np.diag([1, 1, 2, 1.0]), modality=name)
    found = guess_modality([RawCase(name, tmp_path / name, (), "", "train")])
    assert found.modality == expected and name in found.reason
  for shape, expected in (((4, 5, 3), "rgb"), ((4, 5), "")):
    path = tmp_path / f"{len(shape)}.png"
    write_png(path, np.zeros(shape, np.uint8))
    assert guess_modality([RawCase("a", path, (), "", "train")]).modality == expected
