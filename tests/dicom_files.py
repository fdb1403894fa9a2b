"""DICOM series from arrays; shared by the tests of the reader and of an importer."""

import locale
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def write_series(folder: Path, voxels_xyz: np.ndarray, affine: np.ndarray, *, uid="1.2.840.1",
                 order=None, tags=None) -> list[Path]:
  """Writes whole HU as slices, stored as unsigned numbers with an intercept of -1024.

  Args:
    voxels_xyz: columns, rows, slices.
    affine: index → RAS+ mm, perpendicular columns.
    order: numbers in the file names, so that their order need not be that of the slices.
    tags: slice → tag → text, over what is derived from the affine.
  """
  folder.mkdir(parents=True, exist_ok=True)
  lps = np.diag([-1, -1, 1, 1]) @ affine
  spacing = np.linalg.norm(lps[:3, :3], axis=0)
  axes = lps[:3, :3] / spacing
  paths = []
  spoken = locale.setlocale(locale.LC_ALL)  # writing DICOM leaves "C" behind
  for k in range(voxels_xyz.shape[2]):
    image = sitk.GetImageFromArray(voxels_xyz[:, :, k].T.astype(np.int16)[None])
    image.SetSpacing(spacing.tolist())
    position = lps[:3, 3] + k * lps[:3, 2]
    values = {"0008|0060": "CT", "0008|103e": "a series", "0020|000e": uid,
              "0020|0032": "\\".join(f"{x:.6f}" for x in position),
              "0020|0037": "\\".join(f"{x:.9f}" for x in axes[:, :2].T.ravel()),
              "0028|1052": "-1024", "0028|1053": "1", "0018|0050": f"{spacing[2]:g}"}
    for tag, text in {**values, **(tags or {}).get(k, {})}.items():
      image.SetMetaData(tag, text)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    number = k if order is None else order[k]
    paths.append(folder / f"slice_{number:03d}.dcm")
    writer.SetFileName(str(paths[-1]))
    writer.Execute(image)
  locale.setlocale(locale.LC_ALL, spoken)
  return paths
