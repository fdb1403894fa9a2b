"""What is told of a prediction in numbers."""

import numpy as np

from condseg_jax.predictor import Prediction


def statistics(prediction: Prediction) -> dict[str, dict]:
  """Class → its value in the label map, voxels, and volume in ml; of masks that overlap, theirs."""
  voxel_ml = abs(float(np.linalg.det(prediction.label.affine[:-1, :-1]))) / 1000
  told = {}
  for name, value in prediction.names.items():
    voxels = int(np.count_nonzero(prediction.masks[name]))
    told[name] = {"value": value, "voxels": voxels, "volume_ml": round(voxels * voxel_ml, 4)}
  return told
