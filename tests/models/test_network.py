"""A network of another kind, in one file: it trains, is saved, loaded and predicts."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import condseg_jax
from condseg_jax.analysis.run import analyse
from condseg_jax.classes import ClassTable
from condseg_jax.cli.export import main as export
from condseg_jax.cli.train import main as train
from condseg_jax.config import Loss
from condseg_jax.errors import InputError
from condseg_jax.export.network import onnx_halves
from condseg_jax.infer.full_volume import full_volume_slabs
from condseg_jax.models import build
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.memory import training_bytes
from condseg_jax.models.network import initial_variables
from condseg_jax.models.network import level_logits
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from support.tiny import overrides
from support.tiny import write_datasets


class TwoScales(nn.Module):
  """Features at full and at half resolution; the class scales their channels."""

  classes: int
  channels: int
  ndim: int
  deep_supervision: int = 0
  batch_axes: tuple[str, ...] = ()
  encoder_sees_class: bool = False

  @property
  def stride(self):
    return (2,) * self.ndim

  def setup(self):
    window = (3,) * self.ndim
    self.fine, self.coarse = (nn.Conv(self.channels, window, dtype=jnp.float32) for _ in range(2))
    self.scale = nn.Embed(self.classes, 2 * self.channels)
    self.out = nn.Conv(1, (1,) * self.ndim)

  def encode(self, image_BDHWC, class_id_B=None):
    half = image_BDHWC[(slice(None), *(slice(None, None, 2),) * self.ndim)]
    coarse = nn.relu(self.coarse(half))
    for axis in range(1, self.ndim + 1):
      coarse = jnp.repeat(coarse, 2, axis=axis)
    return {"features": jnp.concatenate([nn.relu(self.fine(image_BDHWC)), coarse], -1)}

  def decode(self, features, class_id_B):
    return self.decode_levels(features, class_id_B)[0]

  def decode_levels(self, features, class_id_B):
    scale = jnp.expand_dims(self.scale(class_id_B), tuple(range(1, self.ndim + 1)))
    return (self.out(features["features"] * scale)[..., 0],)

  def __call__(self, image_BDHWC, class_id_B):
    return self.decode(self.encode(image_BDHWC), class_id_B)


def two_scales(model, conditioning, codes):
  return TwoScales(len(codes), model.channels, len(model.strides[0]))


@pytest.mark.parametrize("name, changes", [
    ("two_scales", {}),
    # `sizes:M` in small: no image is large enough for its six levels.
    ("res_unet", {"model.growth": None, "model.norm": "instance", "model.layers_per_level": "(1,2)",
                  "model.dtype": "bfloat16", "model.remat": True, "optimizer.name": "sgd"})])
def test_it_trains_is_saved_and_predicts(name, changes, tmp_path, monkeypatch):
  monkeypatch.setitem(build.NETWORKS, "two_scales", two_scales)
  root = write_datasets(tmp_path / "data")
  flags = overrides(root, **{"data.cache": tmp_path / "cache", "model.network": name,
                             "train.steps": 2, "train.eval_every": 2, **changes})
  run, bundle = tmp_path / "run", tmp_path / "model.condseg"
  assert train(["condseg-train", "--config=base", f"--workdir={run}", *flags]) == 0
  assert export(["condseg-export", f"--workdir={run}", f"--out={bundle}"]) == 0
  image = condseg_jax.read(sorted((root / "test" / "imagesTr").glob("*.nii.gz"))[0])
  masks = [condseg_jax.load(source).predict(image, fusion="independent").masks
           for source in (run, bundle)]
  assert list(masks[0]) == ["ball", "box"] and masks[0]["ball"].shape == image.array.shape
  for name in masks[0]:
    np.testing.assert_array_equal(masks[0][name], masks[1][name])


def test_its_logits_and_memory():
  model = TwoScales(3, 4, 2)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
  ids = jnp.asarray([[0, 2], [1, 0]])
  variables = jax.jit(model.init)(jax.random.key(0), image, ids[:, 0])
  logits, = level_logits(model, variables, image, ids)
  assert logits.shape == (2, 8, 8, 2)
  alone = model.apply(variables, image, ids[:, 1])
  np.testing.assert_allclose(logits[..., 1], alone, rtol=1e-5, atol=1e-6)
  small, large = (training_bytes(model, (n, n), 1, 2, platform="cpu") for n in (16, 64))
  assert 0 < small < large


def test_what_knows_some_networks_only_refuses_it_by_name():
  model = TwoScales(3, 4, 2)
  image, table = np.zeros((8, 8, 1), np.float32), ClassTable.create(["ball", "box", "rod"])
  predictor = Predictor(model, {}, table, Plan("mr", (1.0, 1.0), (8, 8)))
  with pytest.raises(InputError, match="ONNX export does not support TwoScales"):
    onnx_halves(model, {}, (8, 8), 1)
  with pytest.raises(InputError, match="cannot be split over devices .* TwoScales"):
    next(full_volume_slabs(model, {}, image, [0]))
  with pytest.raises(InputError, match="the analysis does not know TwoScales"):
    analyse(predictor, [], loss=Loss(), seed=0, gradient_images=1)


# --- initial parameters ---------------------------------------------------------------------
UNET = DenseUNet(codes=(-0.7, 0.1), strides=((2, 2),), layers_per_level=(1, 1), channels=8,
                 growth=8)


@pytest.mark.slow
def test_fewer_compiler_passes_change_no_bit():
  jax.config.update("jax_disable_most_optimizations", False)
  try:
    initial = initial_variables(UNET, 3, (8, 8, 1))
    expected = jax.jit(UNET.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 1)),
                                   jnp.zeros(1, jnp.int32))
  finally:
    jax.config.update("jax_disable_most_optimizations", True)
  assert jax.tree.structure(initial) == jax.tree.structure(expected)
  for ours, theirs in zip(jax.tree.leaves(initial), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(ours, theirs)
