"""Every suite runs at a tiny size, with and without PyTorch; times are not checked."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from condseg_jax.formats.nifti import read_nifti
from condseg_jax.models import layers
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.res_unet import ResUNet
from tools.benchmark import __main__ as command
from tools.benchmark import conv
from tools.benchmark import cost
from tools.benchmark import export
from tools.benchmark import large
from tools.benchmark import memory
from tools.benchmark import nets
from tools.benchmark import peer
from tools.benchmark import predict
from tools.benchmark import scale
from tools.benchmark import sizes
from tools.benchmark import step
from tools.benchmark import table

TINY = {"model": {"channels": 4, "growth": 4, "layers_per_level": (1, 1), "strides": ((2, 2, 2),)}}


def run(suite, tmp_path):
  assert command.main([suite, f"--json={tmp_path / 'f.json'}", f"--data={tmp_path}"]) == 0
  tree = json.loads((tmp_path / "f.json").read_text())
  assert tree["device"] and tree["versions"]["jax"] and tree["settings"] and tree["rows"]
  assert len({row["name"] for row in tree["rows"]}) == len(tree["rows"])
  for row in tree["rows"]:
    check(row)
  return tree["rows"]


def check(row):
  if row["peer"] is None:
    assert row["ratio"] is None and row["note"]
    assert row["ours"] is None or row["ours"] > 0
  else:
    rate = row["unit"].startswith("1/")
    ahead = row["ours"] / row["peer"] if rate else row["peer"] / row["ours"]
    assert row["ratio"] == pytest.approx(ahead)


@pytest.fixture(params=["without", "with"])
def torch_or_not(request, monkeypatch):
  """Runs a test without and, if the extra is installed, with PyTorch."""
  if request.param == "with":
    pytest.importorskip("torch")
    ways = peer.ways
    monkeypatch.setattr(peer, "ways", lambda ndim=3, **_: ways(ndim, compiled=False))
  else:
    monkeypatch.setattr(peer, "installed", lambda *_: False)
  return request.param


def test_conv(tmp_path, monkeypatch, torch_or_not):
  monkeypatch.setattr(conv, "SIZES", (conv.Size(3, 4, 3, (4, 6, 5)), conv.Size(2, 3, 1, (5, 4))))
  rows = run("conv", tmp_path)
  assert len(rows) == 4 and all(row["gflops"] > 0 for row in rows)
  assert ("peer_kind" in rows[0]) == (torch_or_not == "with")


def test_step(tmp_path, monkeypatch, torch_or_not):
  cases = (step.Case("small", "hippocampus", (4, 6, 4), 2),
           step.Case("long", "ct_abdomen", (4, 6, 4), 2, once=True))
  monkeypatch.setattr(step, "CASES", cases)
  config_of = nets.config_of
  monkeypatch.setattr(nets, "config_of", lambda name, changes=None: config_of(
      name, {**TINY, **(changes or {}), "model": {**TINY["model"], **changes["model"]}}))
  rows = run("step", tmp_path)
  assert len(rows) == 12
  assert [row["name"].split(",")[0] for row in rows] == ["forward", "step"] * 6
  assert all("not measured" in row["note"] for row in rows if "GPU" in row["name"])
  if torch_or_not == "with":
    assert all(row["largest_difference"] < 1e-3 for row in rows[:4])


def small_windows(monkeypatch):
  config_of = nets.config_of
  window = {"data": {"subvolume": (4, 4, 4)}}
  monkeypatch.setattr(nets, "config_of", lambda name, changes=None: config_of(
      name, {**TINY, **window, **(changes or {})}))


def test_predict(tmp_path, monkeypatch, torch_or_not):
  small_windows(monkeypatch)
  monkeypatch.setattr(predict, "VOLUME", (6, 4, 6))
  monkeypatch.setattr(predict, "CLASSES", (1, 3))
  rows = run("predict", tmp_path)
  assert [row["classes"] for row in rows] == [1, 3]
  if torch_or_not == "with":
    pytest.importorskip("monai")
    assert all(row["largest_difference"] < 1e-3 for row in rows)


def test_cost(tmp_path, monkeypatch):
  small_windows(monkeypatch)
  monkeypatch.setattr(cost, "CLASSES", (1, 2, 9))
  monkeypatch.setattr(cost, "BUDGET", 0.0)
  monkeypatch.setattr(cost, "NETS", {
      "decoder": ("hippocampus", {}, (0,)),
      "head": ("hippocampus", {"conditioning": cost.DYNAMIC}, (None,))})
  rows = run("cost", tmp_path)
  assert [row["classes"] for row in rows] == [2, 9, 2, 9]
  assert all(1 < row["predicted_least"] <= row["peer"] <= row["classes"] for row in rows)
  assert rows[0]["predicted_least"] < rows[0]["peer"]
  assert (tmp_path / "f.png").stat().st_size > 1000


@pytest.mark.slow
def test_scale(tmp_path, monkeypatch):
  monkeypatch.setattr(scale, "CHANGES", {**TINY, "data": {"subvolume": (4, 4, 4)}})
  monkeypatch.setattr(scale, "LAYOUTS", {
      name: scale.LAYOUTS[name] for name in (scale.FIRST, "2 devices, jit", "2 processes, pmap")})
  monkeypatch.setattr(scale, "ROUNDS", 1)
  assert len(run("scale", tmp_path)) == 3


@pytest.mark.slow
def test_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, "SHAPE", (8, 8, 12))
  monkeypatch.setattr(memory, "WINDOW", (8, 8, 8))
  monkeypatch.setattr(memory, "CLASSES", (9,))
  monkeypatch.setattr(peer, "installed", lambda *_: False)
  rows = run("memory", tmp_path)
  assert [row["classes"] for row in rows] == [9]
  assert all(row["peak_bytes"] > 2**20 and row["baseline_bytes"] > 2**20 for row in rows)


def test_export(tmp_path, monkeypatch):
  """Both methods give the same label map except where classes touch."""
  monkeypatch.setattr(export, "NETWORK", (32, 40, 40))
  monkeypatch.setattr(export, "NATIVE", (40, 64, 64))
  labels = []
  for way in (export.ours, export.all_classes):
    assert way(tmp_path / "label.nii.gz")["seconds"] > 0
    labels.append(read_nifti(tmp_path / "label.nii.gz").array)
  assert len(np.unique(labels[0])) > 3
  assert np.mean(labels[0] == labels[1]) > 0.99


def test_the_table_shows_every_row(tmp_path):
  rows = [{"name": "fast", "ours": 0.5, "peer": 1.0, "ratio": 2.0, "unit": "s",
           "peer_kind": "channels-last"},
          {"name": "big", "ours": 2**30, "peer": None, "ratio": None, "unit": "bytes",
           "note": "alone"},
          {"name": "far", "ours": None, "peer": None, "ratio": None, "note": "no GPU"}]
  (tmp_path / "a.json").write_text(json.dumps(
      {"device": "machine", "versions": {"jax": "1"}, "settings": {"malloc": "default"},
       "rows": rows}))
  text = table.markdown(tmp_path)
  assert "**a** (machine; jax 1; malloc: default)" in text
  assert "| fast | 500 ms | 1 s | **2.00** | channels-last |" in text
  assert "| big | 1.00 GiB | – |  | alone |" in text
  assert "| far | – | – |  | no GPU |" in text


def test_the_pages_show_the_rows_as_they_are():
  assert table.markdown() in table.PAGE.read_text(encoding="utf-8")
  assert table.summary() in table.README.read_text(encoding="utf-8")
  assert len(table.SUMMARY) <= 6


def test_the_tables_are_written_between_the_marks(tmp_path):
  page, readme = tmp_path / "page.md", tmp_path / "readme.md"
  for path in (page, readme):
    path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
  table.write_pages(page, readme)
  for path, tables in ((page, table.markdown()), (readme, table.summary())):
    assert path.read_text(encoding="utf-8") == (
        f"before\n{table.BEGIN}\n\n{tables}\n{table.END}\nafter\n")
  page.write_text("no marks", encoding="utf-8")
  with pytest.raises(ValueError, match="lacks"):
    table.write_pages(page, readme)


@pytest.mark.slow
def test_the_table_of_the_sizes_is_in_the_documents():
  page = Path(__file__).parents[2] / "docs" / "training.md"
  assert sizes.markdown() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("model", [
    DenseUNet((-.5, .5), ((1, 1, 1), (2, 2, 2)), (1, 1, 1), channels=16, growth=16, norm="none",
              activation="relu", from_level=0),
    ResUNet((-.5, .5), ((2, 2),), (1, 2), channels=16, norm="none", activation="relu")],
    ids=["dense", "residual"])
def test_work_is_what_the_compiler_counts(model, monkeypatch):
  """With native convolutions, for which XLA excludes the padding; norms and pooling remain."""
  monkeypatch.setattr(layers, "convolve", layers.convolve_native)
  params, shape = nets.parameters(model), (16,) * model.ndim
  variables = {"params": params}
  image = np.zeros((1, *shape, 1), np.float32)
  ids = np.zeros(1, np.int32)

  def counted(call, *arguments):
    return jax.jit(call).lower(*arguments).compile().cost_analysis()["flops"]

  encode = lambda x: model.apply(variables, x, method=model.encode)
  decode = lambda f, i: model.apply(variables, f, i, method=model.decode)
  features = encode(image)
  assert nets.work(params, model, shape) == pytest.approx(
      (counted(encode, image), counted(decode, features, ids)), rel=0.15)


NETS = {
    "3-D, hash": dict(strides=((1, 2, 2), (2, 2, 2))),
    "3-D, embedding, one level": dict(strides=((1, 2, 2), (2, 2, 2)), vector="embedding",
                                      from_level=0),
    "2-D, instance": dict(strides=((2, 2), (2, 1)), norm="instance", from_level=1),
    "3-D, no norm": dict(strides=((2, 2, 2), (2, 2, 2)), norm="none", activation="gelu"),
    "unconditioned": dict(strides=((2, 2), (2, 2)), position="none"),
}


@pytest.mark.parametrize("settings", NETS.values(), ids=NETS)
def test_the_peer_is_the_same_network(settings):
  """Output and gradients, for parameters that are neither zero nor one."""
  torch = pytest.importorskip("torch")
  from tools.benchmark import torch_net
  model = DenseUNet(codes=(-.5, .5), layers_per_level=(1, 2, 1), channels=8, growth=12, **settings)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: p + rng.normal(0, 0.05, p.shape).astype(np.float32),
                        nets.parameters(model))
  image, class_id, _ = nets.inputs((4, 8, 8)[3 - model.ndim:], 2)

  def score(params):
    logits = model.apply({"params": params}, image, class_id)
    return (logits**2).sum(), logits

  gradient, logits = jax.grad(score, has_aux=True)(params)
  net = torch_net.TorchNet(model).load(params)
  out = net(torch.tensor(image).movedim(-1, 1), torch.tensor(class_id).long())
  np.testing.assert_allclose(out.detach().numpy(), logits, atol=1e-4)
  (out**2).sum().backward()
  gradients = {name: p.grad for name, p in net.named_parameters()}
  expected = torch_net.TorchNet(model).load(gradient).named_parameters()
  for name, value in expected:
    np.testing.assert_allclose(gradients[name], value.detach(), rtol=1e-3, atol=1e-3)


def test_the_large_suite(tmp_path, monkeypatch):
  monkeypatch.setattr(large, "SHAPE", (40, 40, 30))
  monkeypatch.setattr(large, "SUBVOLUME", (8, 16, 16))
  monkeypatch.setattr(large, "CASES", 40)
  monkeypatch.setattr(large, "FEW", 10)
  names = [row["name"] for row in run("large", tmp_path)]
  assert names[-2:] == ["40 CTs: from the start of the process to the first batch",
                        "40 CTs: peak memory by then"]
