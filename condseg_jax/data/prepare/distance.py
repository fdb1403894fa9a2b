"""Distances from regions, in little memory."""

from collections.abc import Sequence

import numpy as np


def distance_to(region: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
  """The exact distance of every voxel from the nearest one of a region, between centres.

  Takes a fifth of the memory of SciPy's, which remembers which voxel is the nearest.

  Args:
    region: bool, 2-D or 3-D.
    spacing: mm along each axis.

  Returns:
    float32 in mm, 0 inside of the region; some huge number where the region is empty.
  """
  import SimpleITK as sitk

  image = sitk.GetImageFromArray(region.astype(np.uint8))
  image.SetSpacing([float(s) for s in reversed(spacing)])
  signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False,
                                        useImageSpacing=True)
  return np.maximum(sitk.GetArrayViewFromImage(signed), np.float32(0))
