"""Folders as nnU-Net v2 leaves them, with random weights; the features of their encoders.

    python tests/model_io/nnunet/random_networks.py FOLDER

writes those of `NETWORKS` that the tests bring along; needs torch and
dynamic_network_architectures.
"""

import json
from pathlib import Path
import sys

import numpy as np

CLASSES = {"background": 0, "Liver": 1, "spleen": 2}
INTENSITIES = {"0": {"mean": 40.0, "std": 120.0, "percentile_00_5": -900.0,
                     "percentile_99_5": 800.0, "median": 30.0, "min": -1000.0, "max": 2000.0}}
# Name → network, configuration, shape, channels, kernels, strides, layers, features, transposition.
NETWORKS = {
    "plain_3d": ("PlainConvUNet", (8, 16, 16), 1, [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                 [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [2, 1, 1], [2, 4, 6], [0, 1, 2]),
    "plain_2d": ("PlainConvUNet", (24, 16), 1, [[3, 3]] * 3, [[1, 1], [2, 2], [2, 1]], [2, 1, 3],
                 [4, 8, 16], [0, 2, 1]),
    "residual_3d": ("ResidualEncoderUNet", (4, 16, 8), 1, [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                    [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [1, 2, 2], [2, 4, 6], [1, 0, 2]),
    "residual_2d": ("ResidualEncoderUNet", (16, 24), 1, [[3, 3]] * 3, [[1, 1], [2, 2], [1, 2]],
                    [1, 3, 1], [4, 8, 16], [0, 1, 2]),
}


def arguments(name: str) -> tuple[str, dict]:
  """The class of the network and its arguments, with names in place of classes as in plans.json."""
  kind, shape, _, kernels, strides, layers, features, _ = NETWORKS[name]
  counts = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
  axes = len(shape)
  return kind, {
      "n_stages": len(features), "features_per_stage": features,
      "conv_op": f"torch.nn.modules.conv.Conv{axes}d", "kernel_sizes": kernels,
      "strides": strides, counts: layers, "n_conv_per_stage_decoder": [1] * (len(features) - 1),
      "conv_bias": True, "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
      "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
      "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
      "nonlin_kwargs": {"inplace": True}}


def configuration(name: str) -> str:
  return "2d" if len(NETWORKS[name][1]) == 2 else "3d_fullres"


def plans(name: str) -> dict:
  """plans.json, with a configuration that inherits."""
  kind, settings = arguments(name)
  shape, transposed = NETWORKS[name][1], NETWORKS[name][-1]
  ct = name.endswith("3d")
  base = {
      "spacing": [3.0, 1.5, 1.0][-len(shape):], "patch_size": list(shape), "batch_size": 2,
      "normalization_schemes": ["CTNormalization" if ct else "ZScoreNormalization"],
      "use_mask_for_norm": [not ct],
      "architecture": {
          "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
          "arch_kwargs": settings,
          "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}}
  return {"dataset_name": "Dataset001_Random", "plans_name": "nnUNetPlans",
          "transpose_forward": transposed,
          "foreground_intensity_properties_per_channel": INTENSITIES,
          "configurations": {"base": base, configuration(name): {"inherits_from": "base",
                                                                  "batch_size": 4}}}


def image(name: str) -> np.ndarray:
  """A normalised image [C, *shape], as nnU-Net gives it to the network."""
  _, shape, channels, *_ = NETWORKS[name]
  return np.random.default_rng(5).normal(0, 1, (channels, *shape)).astype(np.float32)


def write(name: str, folder: Path) -> list[np.ndarray]:
  """Writes the folder of a training; returns the features of every level for `image`."""
  from dynamic_network_architectures.architectures import unet
  import torch

  kind, settings = arguments(name)
  made = dict(settings)
  for key in ("conv_op", "norm_op", "nonlin"):
    made[key] = getattr(torch.nn, settings[key].rpartition(".")[2])
  torch.manual_seed(3)
  network = getattr(unet, kind)(input_channels=NETWORKS[name][2], num_classes=3, **made,
                                deep_supervision=False)
  network.apply(network.initialize)
  with torch.no_grad():  # as after a training: no weight is 0 or 1, some variances are tiny
    for key, value in network.named_parameters():
      value += 0.2 * torch.randn_like(value)
      if "conv.weight" in key:
        value *= 0.05
    features = [level[0].numpy() for level in network.encoder(torch.tensor(image(name))[None])]
  fold = folder / "fold_0"
  fold.mkdir(parents=True)
  (folder / "plans.json").write_text(json.dumps(plans(name)))
  (folder / "dataset.json").write_text(json.dumps(
      {"channel_names": {"0": "CT"}, "labels": CLASSES, "file_ending": ".nii.gz"}))
  torch.save({
      "network_weights": network.state_dict(), "optimizer_state": {"state": {}},
      "grad_scaler_state": None, "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.4)]},
      "_best_ema": np.float64(0.5), "current_epoch": 1,
      "init_args": {"configuration": configuration(name), "fold": 0,
                    "device": torch.device("cuda")},
      "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": (0, 1)},
      fold / "checkpoint_final.pth")
  return features


if __name__ == "__main__":
  for example in ("plain_3d", "residual_3d"):
    target = Path(sys.argv[1]) / example
    found = write(example, target)
    np.savez_compressed(target / "features.npz", **{f"level_{i}": f for i, f in enumerate(found)})
