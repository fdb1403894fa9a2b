"""The command on two tiny networks: all files, and the same files from analysis.json alone."""

import csv
import json

import numpy as np
from PIL import Image
import pytest

from condseg_jax.analysis import curves
from condseg_jax.analysis import files
from condseg_jax.cli import analyse
from condseg_jax.cli import train
from support.tiny import overrides
from support.tiny import write_datasets

PICTURES = {"class.png", "masks.png", "cka.png", "gradient_norm.png", "gradient_conflict.png",
            "features_first.png", "features_second.png"}


def command(*arguments):
  return analyse.main(["condseg-analyse", *map(str, arguments)])


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
  """Networks conditioned at the input and in the decoder, on cases that show both classes."""
  root = write_datasets(tmp_path_factory.mktemp("data"))
  runs = []
  for position in ("input", "decoder"):
    runs.append(root / position)
    settings = overrides(root, **{"data.cache": root / "cache", "train.steps": 2,
                                  "conditioning.position": position})
    assert train.main(["condseg-train", "--config=base", f"--workdir={runs[-1]}",
                       *settings]) == 0
  out = root / "analysis"
  assert command(f"--workdir={runs[0]},{runs[1]}", "--names=first,second", f"--out={out}",
                 f"--data={root / 'test'}", f"--cache={root / 'cache'}", "--cases=2",
                 "--gradient_cases=2") == 0
  return out, runs, json.loads((out / "analysis.json").read_text())


@pytest.mark.slow
def test_files(analysed):
  out, _, study = analysed
  assert {p.name for p in out.iterdir()} == PICTURES | {files.JSON, files.CSV, files.SUMMARY}
  for name in PICTURES:
    picture = np.asarray(Image.open(out / name).convert("L"))
    assert min(picture.shape) > 300 and picture.std() > 5
  with open(out / "analysis.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == ["network", "run", "layer", "part", "level", "measure", "class", "value"]
  keys = [tuple(row.values())[:-1] for row in rows]
  assert len(set(keys)) == len(keys)
  values = [v for runs in study["networks"].values() for n in runs
            for table in n["measures"].values() for column in table.values() for v in column
            if v is not None]
  assert len(rows) == len(values)
  assert {row["class"] for row in rows} == {"", "ball", "box", "ball|box"}


@pytest.mark.slow
def test_numbers(analysed):
  _, _, study = analysed
  (first,), (second,) = study["networks"]["first"], study["networks"]["second"]
  assert first["layers"][0]["name"] == "stem" and first["layers"][-1]["name"] == "head"
  assert [x["name"] for x in first["layers"]] == [x["name"] for x in second["layers"]]
  encoder = [x["part"] for x in second["layers"]].count("encoder") + 1  # and the first upsampling
  measures = second["measures"]
  assert measures["class_probe"][""][:encoder] == [0.5] * encoder
  assert measures["cka"]["ball|box"][:encoder] == [pytest.approx(1)] * encoder
  assert measures["class_share"][""][:encoder] == [0] * encoder
  assert min(measures["class_share"][""][encoder:]) > 0
  assert min(first["measures"]["class_share"][""]) > 0
  own, other = (measures[m]["ball"][:encoder] for m in ("mask_auc", "mask_auc_other"))
  assert own == other and None not in own
  for network in (first, second):
    count = sum(p["count"] for p in network["parameters"])
    assert sum(layer["parameters"] for layer in network["layers"]) == count
    assert min(network["measures"]["gradient_norm_init"]["box"]) > 0
    assert network["no_gradient"] == {"trained": [], "init": []}


@pytest.mark.slow
def test_redrawn_from_the_numbers_alone(analysed, tmp_path):
  out, _, _ = analysed
  (tmp_path / "analysis.json").write_bytes((out / "analysis.json").read_bytes())
  assert command("--redraw", f"--out={tmp_path}") == 0
  for path in out.iterdir():
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_without_maps_the_numbers_are_the_same_and_no_image_is_kept(analysed, tmp_path):
  _, runs, study = analysed
  assert command(f"--workdir={runs[0]}", "--names=first", f"--out={tmp_path}", "--nomaps",
                 f"--data={runs[0].parent / 'test'}", f"--cache={runs[0].parent / 'cache'}",
                 "--cases=2", "--gradient_cases=2") == 0
  found = json.loads((tmp_path / "analysis.json").read_text())["networks"]["first"]
  shown = study["networks"]["first"][0]
  assert found[0]["maps"] is None and shown["maps"] is not None
  assert {**found[0], "maps": None} == {**shown, "maps": None}
  assert {p.name for p in tmp_path.glob("*.png")} == {
      name for name in PICTURES if not name.startswith("features_")}


@pytest.mark.slow
def test_wrong_usage(analysed, tmp_path, capsys):
  _, runs, _ = analysed
  both = f"--workdir={runs[0]},{runs[1]}"
  usual = (f"--data={runs[0].parent / 'test'}", f"--out={tmp_path}")
  for arguments, code, message in (
      ((both, f"--out={tmp_path}"), 2, "--data: is missing"),
      ((both, "--names=a", *usual), 2, "--names: 1 names for 2 runs"),
      ((f"--workdir={runs[0]},{runs[0]}", *usual), 2, "--workdir: has folders of the same name"),
      ((both, "--names=a,a", *usual), 2, "decoder: differs in network or classes"),
      ((both, "--split=val", *usual), 1, "no case of the split 'val'"),
      (("--redraw", f"--out={tmp_path}"), 1, "analysis.json: does not exist")):
    assert command(*arguments) == code
    assert message in capsys.readouterr().err
  (tmp_path / "analysis.json").write_text('{"networks": 3}')
  assert command("--redraw", f"--out={tmp_path}") == 1
  assert "is damaged" in capsys.readouterr().err


def network(dice, cka):
  """A network of analysis.json with two layers and two measures."""
  layers = [{"name": "stem", "part": "encoder", "level": 0},
            {"name": "head", "part": "decoder", "level": 0}]
  return {"layers": layers, "classes": ["a"], "class_plane": None, "maps": None,
          "measures": {"mask_dice": {"a": dice}, "cka": {"a": cka}},
          "no_gradient": {"trained": [], "init": []}}


def test_runs_of_one_name_are_summarised_as_one(tmp_path):
  files.write_summary(tmp_path, {"networks": {
      "one": [network([0.2, 0.5], [1, 0]), network([0.4, 0.9], [1, 0.5])],
      "two": [network([0.6, None], [0, 0])]}})
  text = (tmp_path / "analysis.md").read_text()
  assert "| measure | one, encoder | one, decoder | two, encoder | two, decoder |" in text
  assert "| mask_dice | 0.30 [0.20, 0.40] | 0.70 [0.50, 0.90] | 0.60 | – |" in text
  assert "| cka | 1.00 [1.00, 1.00] | 0.25 [0.00, 0.50] | 0.00 | 0.00 |" in text


def test_runs_of_one_name_are_drawn_as_one(tmp_path):
  """Runs with the same name add a band; for identical runs it is empty."""
  def picture(*runs):
    study = {"networks": {"one": list(runs)}}
    curves.draw_curves(tmp_path / "cka.png", study, curves.panels(study)["cka.png"])
    return np.asarray(Image.open(tmp_path / "cka.png").convert("RGB"), np.float64)

  low, high = network([0, 0], [0.2, 0.4]), network([0, 0], [0.4, 0.8])
  middle = network([0, 0], [0.3, 0.6])
  lines = picture(middle)
  np.testing.assert_array_equal(picture(middle, middle), lines)
  changed = np.abs(picture(low, high) - lines).max(-1) > 0
  assert 0.01 < changed.mean() < 0.3


def test_networks_have_unique_styles():
  assert len({(curves.color(i), curves.marker(i)) for i in range(36)}) == 36


def test_orders_of_layers_are_joined():
  assert curves.union([["a", "b", "d"], ["a", "c", "d"], ["b", "d", "e"]]) == list("acbde")
  assert curves.union([["a", "b"], ["a", "b"]]) == ["a", "b"]


def test_means_ignore_missing_values():
  means = curves.mean_over_classes({"a": [1, None, None], "b": [2, 3, None]})
  np.testing.assert_array_equal(means, [1.5, 3, np.nan])
