"""The same image gives the same features here and in nnU-Net's network."""

import ast
import importlib.util
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.cli.import_ import main
from condseg_jax.cli.train import main as train
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.model_io.load import read_model
from condseg_jax.model_io.nnunet.encoder import import_encoder
from condseg_jax.model_io.nnunet.encoder import settings_to_train
from condseg_jax.model_io.transfer import of_encoder
from condseg_jax.model_io.transfer import transfer
from condseg_jax.models.build import build_model
from condseg_jax.plan import Plan
from support.tiny import overrides
from support.tiny import write_datasets

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
# Random weights, written by `random_networks.py` with torch 2.13 and
# dynamic_network_architectures 0.4.4.
FIXTURES = HERE / "fixtures"
SPEC = importlib.util.spec_from_file_location("random_networks", HERE / "random_networks.py")
random_networks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(random_networks)


def features(bundle, image):
  """The features of every level [C, *shape] for an image [C, *shape], both in nnU-Net's order."""
  record = bundle.record
  network = build_model(record.config.model, record.config.conditioning, record.table.codes)
  x = jnp.asarray(np.moveaxis(image, 0, -1)[None])
  random = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1, jnp.int32))
  random = jax.tree.map(lambda s: np.full(s.shape, np.nan, np.float32), random)
  done = transfer(bundle.variables, random, wanted=of_encoder)
  assert not done.left and not done.unused
  keep = lambda module, _: module.name is not None and module.name.startswith(("down", "stem"))
  _, state = network.apply(done.variables, x, method=network.encode, capture_intermediates=keep,
                           mutable="intermediates")
  levels = state["intermediates"]
  for level in range(len(record.config.model.strides) + 1):
    # A plain level of a single layer is the stem.
    output = levels[f"down_{level}"]["__call__"][0]
    yield np.moveaxis(np.asarray(output)[0], -1, 0)


def compare(folder, name, expected):
  """Compares the features of an imported encoder with those of nnU-Net."""
  order = np.argsort(random_networks.NETWORKS[name][-1][-len(expected[0].shape[1:]):])
  to_ours = lambda array: array.transpose([0, *(1 + order)])
  found = list(features(import_encoder(folder), to_ours(random_networks.image(name))))
  assert len(found) == len(expected)
  for ours, theirs in zip(found, map(to_ours, expected), strict=True):
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["plain_3d", "residual_3d"])
def test_features_of_the_fixtures(name):
  """Anisotropic strides and kernels; the residual one also transposes its axes."""
  with np.load(FIXTURES / name / "features.npz") as file:
    expected = [file[f"level_{i}"] for i in range(len(file.files))]
  compare(FIXTURES / name, name, expected)


@pytest.mark.parametrize("name", random_networks.NETWORKS)
def test_features_of_networks_made_now(name, tmp_path):
  for package in ("torch", "dynamic_network_architectures"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs {package}, as tests/model_io/nnunet/fixtures were made with it")
  expected = random_networks.write(name, tmp_path / "net")
  compare(tmp_path / "net", name, expected)


# --- what comes along -----------------------------------------------------------------------
def test_plan_network_and_classes_come_along():
  """With axes in the order of images here: the second axis of nnU-Net's patch is its first."""
  bundle = import_encoder(FIXTURES / "residual_3d")
  record = bundle.record
  assert record.plan == Plan("ct", (1.5, 3.0, 1.0), (16, 4, 8), -900.0, 800.0, 40.0, 120.0)
  model = record.config.model
  assert (model.network, model.strides, model.layers_per_level) == (
      "res_unet", ((2, 1, 2), (2, 2, 2)), (1, 2, 2))
  assert (model.channels, model.max_channels, model.activation) == (2, 6, "leaky_relu")
  assert record.table.names == ("liver", "spleen")
  assert bundle.facts["origin"]["checkpoint"] == "fold_0/checkpoint_final.pth"
  again = Config().override(settings_to_train(record))
  assert again.model == model and again.data.spacing == record.plan.spacing


def test_intensities_of_magnetic_resonance(tmp_path):
  folder = edited(tmp_path, normalization_schemes=["ZScoreNormalization"],
                  use_mask_for_norm=[True])
  bundle = import_encoder(folder)
  assert bundle.record.plan == Plan("mr", (3.0, 1.5, 1.0), (8, 16, 16))
  assert bundle.facts["origin"]["intensities"] == "of non-zero voxels alone"


def test_plans_of_before_the_architecture_was_named(tmp_path):
  """As of the public weights of TotalSegmentator 2."""
  folder = edited(tmp_path)
  tree = json.loads((folder / "plans.json").read_text())
  entry = tree["configurations"]["base"]
  settings = entry.pop("architecture")["arch_kwargs"]
  entry |= {"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 2,
            "unet_max_num_features": 6, "n_conv_per_stage_encoder": [2, 1, 1],
            "n_conv_per_stage_decoder": [1, 1], "num_pool_per_axis": [1, 2, 2],
            "pool_op_kernel_sizes": settings["strides"],
            "conv_kernel_sizes": settings["kernel_sizes"]}
  tree["foreground_intensity_properties_by_modality"] = tree.pop(
      "foreground_intensity_properties_per_channel")
  (folder / "plans.json").write_text(json.dumps(tree))
  new, old = import_encoder(FIXTURES / "plain_3d"), import_encoder(folder)
  assert old.record == new.record
  jax.tree.map(np.testing.assert_array_equal, old.params, new.params)


# --- what has no counterpart ----------------------------------------------------------------
def edited(tmp_path, network=None, dataset=None, **changes):
  """The plain fixture with other settings of the network or of its configuration."""
  folder = shutil.copytree(FIXTURES / "plain_3d", tmp_path / "edited")
  tree = json.loads((folder / "plans.json").read_text())
  tree["configurations"]["base"] |= changes
  if network:
    tree["configurations"]["base"]["architecture"]["arch_kwargs"] |= network
  (folder / "plans.json").write_text(json.dumps(tree))
  if dataset is not None:
    (folder / "dataset.json").write_text(json.dumps(dataset))
  return folder


@pytest.mark.parametrize("changes, fault", [
    (dict(normalization_schemes=["ZScoreNormalization"] * 4), "images have 4 channels"),
    (dict(normalization_schemes=["RGBTo01Normalization"]), "normalised by RGBTo01Normalization"),
    (dict(network={"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}), "is BatchNorm3d"),
    (dict(network={"kernel_sizes": [[5, 3, 3]] * 3}), "size 5"),
    (dict(network={"features_per_stage": [2, 4, 5, 9]}), "not doubled"),
    (dict(network={"features_per_stage": [2, 4, 8]}), "the shape"),
    (dict(network={"nonlin": "torch.nn.GELU"}), "activation is torch.nn.GELU"),
    (dict(network={"nonlin_kwargs": {"negative_slope": 0.2}}), "slope 0.2"),
    (dict(network={"nonlin_first": True}), "nonlin_first"),
    (dict(network={"strides": [[2, 2, 2]] * 3}), "its first level has strides"),
    (dict(network={"n_conv_per_stage": [2, 2, 1]}), "has no encoder.stages.1.0.convs.1.conv"),
    (dict(network={"strides": "much"}), "misstates"),
    (dict(architecture={"network_class_name": "a.b.Primus", "arch_kwargs": {}}), "is Primus"),
    (dict(patch_size=[8, 16, 15]), "not a multiple of the network's stride"),
    (dict(spacing=None), "misstates"), (dict(spacing=[0.0, 1.0, 1.0]), "must be positive"),
    (dict(inherits_from="3d_fullres"), "a circle"),
    (dict(dataset={}), "labels"), (dict(dataset={"labels": {"a/b": 1}}), "is a path")], ids=str)
def test_networks_that_cannot_be_imported(changes, fault, tmp_path):
  with pytest.raises(InputError, match=fault) as caught:
    import_encoder(edited(tmp_path, **changes))
  assert "\n" not in str(caught.value)


def test_folders_that_are_none(tmp_path, capsys):
  out = f"--out={tmp_path / 'encoder.condseg'}"
  for folder, fault in ((tmp_path / "none", "is not a folder"), (tmp_path, "has no fold_*/")):
    assert main(["condseg-import", "nnunet", str(folder), out]) == 1
    assert fault in capsys.readouterr().err
  source = str(FIXTURES / "plain_3d")
  assert main(["condseg-import", "nnunet", source, out, "--fold=3"]) == 1
  assert "has no fold_3/checkpoint_final.pth (there are: fold_0" in capsys.readouterr().err
  for words in (["nnunet", source], ["nnunet", source, "--out=a.zip"], ["monai", source, out],
                ["nnunet", out], [out]):
    assert main(["condseg-import", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
  assert not list(tmp_path.glob("*.condseg"))


# --- the command, and a training ------------------------------------------------------------
@pytest.mark.slow
def test_a_network_trains_from_it(tmp_path, capsys, said):
  """With the settings that the command prints; every array of the encoder is taken."""
  path = tmp_path / "encoder.condseg"
  assert main(["condseg-import", "nnunet", str(FIXTURES / "plain_3d"), f"--out={path}"]) == 0
  printed = capsys.readouterr().out
  assert "keep their licence" in printed and "--config.model.network=plain_unet" in printed
  flags = [line.strip().replace("'", "") for line in printed.splitlines()
           if line.startswith("  --config.model")]
  root = write_datasets(tmp_path / "data")
  base = overrides(root, **{
      "data.cache": tmp_path / "cache", "model.strides": None, "model.layers_per_level": None,
      "model.channels": None, "model.growth": None, "train.steps": 1, "data.hold_out": 0.0,
      "init.source": path, "init.what": "encoder"})
  assert train(["condseg-train", "--config=base", f"--workdir={tmp_path / 'run'}", *base,
                *flags]) == 0
  log = "\n".join(said())
  assert f"starting from {path}: 12 of 12 arrays taken" in log and "random" not in log
  assert "clipped to -900 to 800, mean 40" in log
  assert "spacing is (2.0, 1.0, 1.0), that of the data; the source has (3.0, 1.5, 1.0)" in log
  record = read_model(tmp_path / "run").record
  assert record.plan.mean == 40.0 and record.config.init.source == str(path)


def test_torch_and_pickle_are_not_imported():
  """The one would be a large dependency, the other executes what it reads."""
  for path in (ROOT / "condseg_jax" / "model_io").rglob("*.py"):
    imports = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text("utf-8")))
               if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [line for line in imports if line.split()[1] in ("torch", "pickle")], path
