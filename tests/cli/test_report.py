"""--report: the page of a prediction or evaluation, without names unless requested."""

import csv
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.cli import evaluate
from condseg_jax.cli import predict
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from support.tiny import AFFINE
from support.tiny import case
from support.tiny import write_datasets


def untrained(window, modality):
  table = ClassTable.create(["ball", "box"])
  model = DenseUNet(codes=tuple(table.codes.tolist()), strides=((2,) * len(window),),
                    layers_per_level=(1, 1), channels=4, growth=4)
  image = jnp.zeros((1, *window, 3 if modality == "rgb" else 1))
  variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))
  spacing = (2.0, 1.0, 1.0)[-len(window):]
  return Predictor(model, variables, table, Plan(modality, spacing, window))


@pytest.fixture
def network(monkeypatch):
  """Replaces the trained network by an untrained one."""
  def use(window=(8, 16, 16), modality="mr"):
    found = untrained(window, modality)
    monkeypatch.setattr("condseg_jax.loading.load", lambda *_, **__: found)
    return found
  return use


def images(folder: Path) -> Path:
  folder.mkdir()
  for number, name in enumerate(("doe_jane", "roe_richard")):
    image, _ = case(np.random.default_rng(number))
    write_nifti(folder / f"{name}.nii.gz", Volume(image, AFFINE))
  (folder / "broken_tom.nii.gz").write_text("hello")
  return folder


def run(command, *arguments):
  name = command.__name__.rpartition(".")[2]
  return command.main([f"condseg-{name}", "--workdir=unused", *map(str, arguments)])


def readable(page: Path) -> str:
  """A page without embedded data and images."""
  return re.sub(r"[A-Za-z0-9+/=]{200,}", "", page.read_text(encoding="utf-8"))


def test_predict_names_nobody(network, tmp_path, capsys, monkeypatch):
  network()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # without a viewer
  folder, out = images(tmp_path / "ward_7b"), tmp_path / "out"
  assert run(predict, f"--input={folder}", f"--output={out}", "--report", "--nopicture") == 1
  printed = capsys.readouterr().out
  assert f"report: {out / 'report.html'}" in printed
  assert "condseg_jax.report.page" in printed, "how the viewer is had"
  text = readable(out / "report.html")
  for word in ("doe", "jane", "roe", "broken", "tom.", "ward_7b", str(tmp_path), str(Path.home())):
    assert word not in text, word
  # Cases are numbered in the order of the files.
  failed = sorted(p.name for p in folder.iterdir()).index("broken_tom.nii.gz") + 1
  article = text[text.index(f'id="case-{failed}"'):]
  assert article.index("Failed: ") < article.index("</article>")
  assert text.count("<article") == 3 and text.count("<figure") == 6
  assert [p.name for p in out.iterdir() if p.suffix == ".html"] == ["report.html"]


def test_predict_names_files_when_asked(network, tmp_path):
  network()
  folder, out = images(tmp_path / "ward_7b"), tmp_path / "out"
  assert run(predict, f"--input={folder}", f"--output={out}", "--report", "--report_names",
             "--nopicture") == 1
  text = readable(out / "report.html")
  assert "doe_jane" in text and "case 1<" not in text and str(tmp_path) not in text


def test_no_report_unless_asked(network, tmp_path):
  network()
  folder, out = images(tmp_path / "ward_7b"), tmp_path / "out"
  assert run(predict, f"--input={folder}", f"--output={out}", "--nopicture") == 1
  assert not list(out.glob("*.html"))


def test_predict_shows_pictures(network, tmp_path):
  network((16, 16), "rgb")
  (tmp_path / "in").mkdir()
  write_png(tmp_path / "in" / "street.png",
            np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
  assert run(predict, f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--report") == 0
  text = readable(tmp_path / "out" / "report.html")
  assert text.count("<figure") == 2 and "40 × 50 pixels" in text and "area, px" in text


def test_evaluate_shows_its_scores(network, tmp_path):
  network()
  root = write_datasets(tmp_path / "data")
  out = tmp_path / "scores"
  assert run(evaluate, f"--data={root / 'test'}", f"--out={out}", "--report") == 0
  text = readable(out / "report.html")
  assert "case_08" not in text and str(tmp_path) not in text
  with open(out / "cases.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  values = {float(value) for value in re.findall(r'data-value="([\d.e-]+)"', text)}
  for row in rows:
    for key in ("dice", "volume_ml", "truth_volume_ml"):
      if row[key]:
        assert any(abs(float(row[key]) - value) < 1e-8 for value in values), (row["case"], key)
  assert "errors" in text and 'class="boxplot' in text
