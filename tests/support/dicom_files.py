"""DICOM series from arrays; shared by the tests of the reader and of an importer."""

import locale
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk


def write_series(folder: Path, voxels_xyz: np.ndarray, affine: np.ndarray, *, uid="1.2.840.1",
                 order=None, tags=None, modality="CT") -> list[Path]:
  """Writes whole HU as slices, stored as unsigned numbers with an intercept of -1024.

  Args:
    folder: to write into; it is made.
    voxels_xyz: columns, rows, slices.
    affine: index → RAS+ mm, perpendicular columns.
    uid: SeriesInstanceUID.
    order: numbers in the file names, so that their order need not be that of the slices.
    tags: slice → tag → text, over what is derived from the affine.
    modality: as DICOM calls it.
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
              "0020|0052": "1.2.840.2",
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
    if modality != "CT":  # of which SimpleITK would write no place
      slice_ = pydicom.dcmread(paths[-1])
      slice_.Modality = modality
      slice_.save_as(paths[-1])
  locale.setlocale(locale.LC_ALL, spoken)
  return paths


def read_segments(path: Path, geometry) -> dict[str, np.ndarray]:
  """The segments of a DICOM-SEG as highdicom reads them: name → bool on the grid of a volume."""
  import highdicom
  segmentation = highdicom.seg.segread(path)
  masks = {}
  for number in segmentation.segment_numbers:
    name = segmentation.get_segment_description(number).segment_label
    volume = segmentation.get_volume(segment_numbers=[number], allow_missing_positions=True)
    found = np.argwhere(volume.array[..., 0])
    world = np.column_stack([found, np.ones(len(found))]) @ (np.diag([-1, -1, 1, 1])
                                                             @ volume.affine).T
    index = (world @ np.linalg.inv(geometry.affine).T)[:, :3]
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    mask = np.zeros(geometry.shape, bool)
    mask[tuple(np.rint(index).astype(int).T)] = True
    masks[name] = mask
  return masks


def fill_polygons(path: Path, geometry) -> dict[str, np.ndarray]:
  """The outlines of an RTSTRUCT filled by the even-odd rule: name → bool on the grid of a volume.

  A voxel is inside where a ray along its row crosses the outlines an odd number of times.
  """
  dataset = pydicom.dcmread(path)
  names = {roi.ROINumber: roi.ROIName for roi in dataset.StructureSetROISequence}
  to_index = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ geometry.affine)
  masks = {}
  for roi in dataset.ROIContourSequence:
    crossings = np.zeros(geometry.shape, int)
    for contour in roi.get("ContourSequence", []):
      points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
      assert len(points) == contour.NumberOfContourPoints >= 3
      index = np.round(np.column_stack([points, np.ones(len(points))]) @ to_index.T, 2)[:, :3]
      assert len(set(index[:, 2])) == 1 and index[0, 2] == round(index[0, 2])
      for (x0, y0, z), (x1, y1, _) in zip(index, np.roll(index, -1, axis=0), strict=True):
        for row in range(int(np.ceil(min(y0, y1))), int(np.ceil(max(y0, y1)))):
          crossed = x0 + (row - y0) * (x1 - x0) / (y1 - y0)
          crossings[:max(0, int(np.ceil(crossed))), row, int(z)] += 1
    masks[names[roi.ReferencedROINumber]] = crossings % 2 == 1
  return masks
