"""RTSTRUCT: outlines that, filled again, are the voxels they were drawn around."""

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.contours import outlines
from condseg_jax.formats.dicom_rtstruct import write_rtstruct
from condseg_jax.formats.dicom_source import read_source
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from support.dicom_files import fill_polygons
from support.dicom_files import write_series

AXIAL = np.array([[-0.8, 0, 0, 20], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1]])
TURN = Rotation.from_euler("xyz", [20, -30, 10], degrees=True).as_matrix()
OBLIQUE = AXIAL.copy()
OBLIQUE[:3, :3] = TURN @ AXIAL[:3, :3]
SHAPE = (24, 20, 5)


def shapes():
  """A ring with an island, dots that touch at their corners, and a box in a corner of the grid."""
  x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
  distance = np.hypot(x - 9, y - 10)
  label = np.zeros(SHAPE, np.uint8)
  label[((distance < 8) & (distance > 4) | (distance < 2)) & (z > 0)] = 1
  label[(x > 18) & ((x + y) % 2 == 0) & (z == 2)] = 2
  label[18:, :4, 3:] = 3
  return label


NAMES = {"liver": 1, "dots": 2, "liver tumour": 3, "absent": 9}


def series(folder, affine=AXIAL):
  write_series(folder, np.zeros(SHAPE, int), affine, order=[4, 1, 3, 0, 2])
  return read_source(folder)


def area(polygon):
  x, y = polygon.T
  return 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


# --- outlines of one slice ----------------------------------------------------------------------
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (3, 4), (6, 7)])
def test_a_box_has_cut_corners_half_a_voxel_outside(height, width):
  mask = np.zeros((8, 9), bool)
  mask[1:1 + height, 2:2 + width] = True
  polygon, = outlines(mask)
  assert polygon.min(0).tolist() == [0.5, 1.5]
  assert polygon.max(0).tolist() == [0.5 + height, 1.5 + width]
  assert area(polygon) == height * width - 0.5
  assert len(polygon) == 8 - 2 * (height == 1) - 2 * (width == 1)


def test_a_hole_is_left_out_and_an_island_is_not():
  mask = np.ones((9, 9), bool)
  mask[2:7, 2:7] = False
  mask[4, 4] = True
  ring, island = sorted(outlines(mask), key=len, reverse=True)
  assert area(island) == 0.5
  # The keyhole runs to the hole and back on the same line: it has no area of its own.
  assert area(ring) == (81 - 0.5) - (25 - 0.5)


def test_nothing_has_no_outline():
  assert outlines(np.zeros((4, 5), bool)) == []


# --- whole structure sets -----------------------------------------------------------------------
@pytest.mark.parametrize("affine", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_filled_again_they_are_the_same_voxels(affine, tmp_path):
  source, label = series(tmp_path / "in", affine), shapes()
  volume = Volume(label, source.geometry.affine)
  for one in (volume, to_canonical(volume)):
    write_rtstruct(tmp_path / "rt.dcm", one, NAMES, source)
    found = fill_polygons(tmp_path / "rt.dcm", source.geometry)
    assert list(found) == ["liver", "dots", "liver tumour"]
    for name, mask in found.items():
      np.testing.assert_array_equal(mask, label == NAMES[name])


def test_any_noise_comes_back(tmp_path):
  source = series(tmp_path / "in")
  masks = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(*SHAPE, 2)),
                                  (1, 1, 1, 0)) > 0.05
  write_rtstruct(tmp_path / "rt.dcm", Volume(masks, source.geometry.affine), {"a": 1, "b": 2},
                 source)
  found = fill_polygons(tmp_path / "rt.dcm", source.geometry)
  for channel, name in enumerate(["a", "b"]):
    np.testing.assert_array_equal(found[name], masks[..., channel])
  assert (found["a"] & found["b"]).any()


def test_an_outline_around_many_holes_is_still_numbers(tmp_path):
  """More than 64 kB of coordinates in one contour: a plate with a hole in every second voxel."""
  size = 80
  write_series(tmp_path / "in", np.zeros((size, size, 2), int), AXIAL)
  source = read_source(tmp_path / "in")
  mask = np.zeros((size, size, 2), np.uint8)
  mask[1:-1, 1:-1, 0] = 1
  mask[2:-2:2, 2:-2:2, 0] = 0
  write_rtstruct(tmp_path / "rt.dcm", Volume(mask, source.geometry.affine), {"a": 1}, source)
  contour, = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
  assert len("\\".join(map(str, contour.ContourData))) > 1 << 16
  np.testing.assert_array_equal(fill_polygons(tmp_path / "rt.dcm", source.geometry)["a"], mask)


def test_it_refers_to_its_slices(tmp_path):
  source = series(tmp_path / "in")
  write_rtstruct(tmp_path / "rt.dcm", Volume(shapes(), source.geometry.affine), NAMES, source,
                 colors={"liver": (1, 2, 3)}, model="step 12")
  dataset = pydicom.dcmread(tmp_path / "rt.dcm")
  slices = [pydicom.dcmread(path) for path in files.members(tmp_path / "in")]
  assert dataset.file_meta.MediaStorageSOPClassUID.name == "RT Structure Set Storage"
  assert dataset.FrameOfReferenceUID == slices[0].FrameOfReferenceUID == "1.2.840.2"
  frame, = dataset.ReferencedFrameOfReferenceSequence
  assert frame.FrameOfReferenceUID == "1.2.840.2"
  study, = frame.RTReferencedStudySequence
  assert study.ReferencedSOPInstanceUID == slices[0].StudyInstanceUID == dataset.StudyInstanceUID
  referred, = study.RTReferencedSeriesSequence
  assert referred.SeriesInstanceUID == slices[0].SeriesInstanceUID
  assert {i.ReferencedSOPInstanceUID for i in referred.ContourImageSequence} == {
      s.SOPInstanceUID for s in slices}
  heights = {s.SOPInstanceUID: s.ImagePositionPatient[2] for s in slices}
  for contour in dataset.ROIContourSequence[0].ContourSequence:
    assert contour.ContourGeometricType == "CLOSED_PLANAR"
    image, = contour.ContourImageSequence
    assert set(contour.ContourData[2::3]) == {heights[image.ReferencedSOPInstanceUID]}
  assert list(dataset.ROIContourSequence[0].ROIDisplayColor) == [1, 2, 3]
  organ, dots, tumour = dataset.RTROIObservationsSequence
  assert organ.RTROIInterpretedType == "ORGAN"
  assert organ.RTROIIdentificationCodeSequence[0].CodeValue == "10200004"
  assert dots.RTROIInterpretedType == "" and "RTROIIdentificationCodeSequence" not in dots
  assert tumour.RTROIInterpretedType == ""
  assert dataset.ApprovalStatus == "UNAPPROVED" and "step 12" in dataset.StructureSetName


def test_nothing_found_is_written_too(tmp_path):
  source = series(tmp_path / "in")
  write_rtstruct(tmp_path / "rt.dcm", Volume(np.zeros(SHAPE, np.uint8), source.geometry.affine),
                 NAMES, source)
  dataset = pydicom.dcmread(tmp_path / "rt.dcm")
  assert [roi.ROIName for roi in dataset.StructureSetROISequence] == list(NAMES)
  assert not any("ContourSequence" in roi for roi in dataset.ROIContourSequence)


def test_what_lies_elsewhere_is_refused(tmp_path):
  source = series(tmp_path / "in")
  with pytest.raises(InputError, match="shape"):
    write_rtstruct(tmp_path / "rt.dcm", Volume(shapes()[1:], source.geometry.affine), NAMES, source)
  assert not (tmp_path / "rt.dcm").exists()


def test_real_organs_come_back(real_data, tmp_path):
  root = real_data / "ct_sample"
  source = read_source(root / "ct_dicom")
  stored = files.read_label(root / "ct_dicom_labels.nii.gz")
  label = match_grid("image", source.geometry, "label", stored).array
  names = {"liver": 5, "stomach": 6, "colon": 20}
  kept = Volume(label * np.isin(label, list(names.values())), source.geometry.affine)
  write_rtstruct(tmp_path / "rt.dcm", kept, names, source)
  for name, mask in fill_polygons(tmp_path / "rt.dcm", source.geometry).items():
    truth = label == names[name]
    assert truth.sum() > 1000
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9999, name
