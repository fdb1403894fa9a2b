"""DICOM-SEG: what is read back lies in the same frame of reference, in the same voxels."""

import highdicom
from nibabel import orientations
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

import condseg_jax
from condseg_jax.errors import InputError
from condseg_jax.formats import dicom_source
from condseg_jax.formats import files
from condseg_jax.formats.dicom_codes import meaning
from condseg_jax.formats.dicom_results import check_kinds
from condseg_jax.formats.dicom_seg import write_dicom_seg
from condseg_jax.formats.dicom_source import read_source
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from support.dicom_files import read_segments
from support.dicom_files import write_series

SHAPE = (7, 6, 5)
VOXELS = np.random.default_rng(0).integers(-1000, 1500, SHAPE)
LABEL = np.random.default_rng(1).choice([0, 0, 0, 2, 7], SHAPE).astype(np.uint8)
NAMES = {"liver": 2, "heart": 3, "left kidney": 7}
AXIAL = np.array([[-0.8, 0, 0, 20], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1]])


def turned(angles, flip=(1, 1, 1)):
  affine = AXIAL.copy()
  rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
  affine[:3, :3] = rotation @ affine[:3, :3] * flip
  return affine


AFFINES = {"axial": AXIAL, "oblique": turned([20, -30, 10]), "coronal": turned([90, 0, 0]),
           "sagittal": turned([90, 0, 90]), "upside down": turned([180, 0, 0])}


def series(folder, affine=AXIAL, **more):
  write_series(folder, VOXELS, affine, **more)
  return read_source(folder)


def masks_of(label):
  return {name: label == value for name, value in NAMES.items() if (label == value).any()}


def assert_same(found, expected):
  assert list(found) == list(expected)
  for name, mask in expected.items():
    np.testing.assert_array_equal(found[name], mask)


@pytest.mark.parametrize("kind", AFFINES)
def test_the_same_voxels_whatever_the_orientation(kind, tmp_path):
  source = series(tmp_path / "in", AFFINES[kind], order=[4, 1, 3, 0, 2])
  volume = files.read_volume(tmp_path / "in")
  np.testing.assert_array_equal(volume.array, VOXELS)
  write_dicom_seg(tmp_path / "seg.dcm", Volume(LABEL, volume.affine), NAMES, source)
  assert_same(read_segments(tmp_path / "seg.dcm", volume.geometry), masks_of(LABEL))


def test_every_frame_names_the_slice_it_was_made_from(tmp_path):
  source = series(tmp_path / "in", order=[4, 1, 3, 0, 2])
  label = np.zeros(SHAPE, np.uint8)
  label[2, 3, [0, 3]] = 2
  write_dicom_seg(tmp_path / "seg.dcm", Volume(label, source.geometry.affine), NAMES, source)
  dataset = pydicom.dcmread(tmp_path / "seg.dcm")
  slices = [pydicom.dcmread(path) for path in files.members(tmp_path / "in")]
  assert dataset.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
  assert dataset.StudyInstanceUID == slices[0].StudyInstanceUID
  assert dataset.SeriesInstanceUID != slices[0].SeriesInstanceUID
  assert dataset.NumberOfFrames == 2
  named = {}
  for frame in dataset.PerFrameFunctionalGroupsSequence:
    image = frame.DerivationImageSequence[0].SourceImageSequence[0]
    position = frame.PlanePositionSequence[0].ImagePositionPatient
    named[image.ReferencedSOPInstanceUID] = list(position)
  assert named == {slices[k].SOPInstanceUID: list(slices[k].ImagePositionPatient) for k in (0, 3)}


def test_a_label_map_stored_along_other_axes(tmp_path):
  source = series(tmp_path / "in", AFFINES["oblique"])
  volume = Volume(LABEL, source.geometry.affine)
  for number, other in enumerate([to_canonical(volume), flipped(volume)]):
    assert not np.array_equal(other.affine, volume.affine)
    write_dicom_seg(tmp_path / f"{number}.dcm", other, NAMES, source)
    assert_same(read_segments(tmp_path / f"{number}.dcm", volume.geometry), masks_of(LABEL))


def flipped(volume):
  change = np.array([[1, -1], [0, 1], [2, -1]])
  return Volume(orientations.apply_orientation(volume.array, change),
                volume.affine @ orientations.inv_ornt_aff(change, volume.array.shape))


def test_masks_may_overlap(tmp_path):
  source = series(tmp_path / "in")
  masks = np.random.default_rng(2).random((*SHAPE, 3)) < 0.4
  masks[..., 1] = False
  write_dicom_seg(tmp_path / "seg.dcm", Volume(masks, source.geometry.affine),
                  {"liver": 1, "heart": 2, "tumour": 3}, source)
  found = read_segments(tmp_path / "seg.dcm", source.geometry)
  assert_same(found, {"liver": masks[..., 0], "tumour": masks[..., 2]})
  assert (found["liver"] & found["tumour"]).any()
  assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentsOverlap == "YES"


def test_names_codes_colours_and_what_made_it(tmp_path):
  source = series(tmp_path / "in")
  colors = {"liver": (200, 30, 7), "left kidney": (0, 128, 255)}
  write_dicom_seg(tmp_path / "seg.dcm", Volume(LABEL, source.geometry.affine), NAMES, source,
                  colors=colors, model="step 12")
  segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
  assert segmentation.segmentation_type == highdicom.seg.SegmentationTypeValues.BINARY
  assert segmentation.SoftwareVersions == condseg_jax.__version__
  liver, kidney = segmentation.SegmentSequence
  assert (liver.SegmentLabel, kidney.SegmentLabel) == ("liver", "left kidney")
  assert (liver.SegmentNumber, kidney.SegmentNumber) == (1, 2)
  assert liver.segmented_property_category.value == "91723000"
  assert liver.segmented_property_type.value == "10200004"
  assert kidney.segmented_property_type.value == "64033007"
  assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
  for one, color in ((liver, colors["liver"]), (kidney, colors["left kidney"])):
    lab = highdicom.color.CIELabColor.from_dicom_value(one.RecommendedDisplayCIELabValue)
    np.testing.assert_allclose(lab.to_rgb(), color, atol=1)
    algorithm = one.SegmentationAlgorithmIdentificationSequence[0]
    assert one.SegmentAlgorithmType == "AUTOMATIC"
    assert algorithm.AlgorithmName == "condseg_jax"
    assert algorithm.AlgorithmVersion == condseg_jax.__version__
    assert "step 12" in algorithm.AlgorithmParameters


def test_nothing_found_is_written_too(tmp_path):
  source = series(tmp_path / "in")
  empty = Volume(np.zeros(SHAPE, np.uint8), source.geometry.affine)
  write_dicom_seg(tmp_path / "seg.dcm", empty, NAMES, source)
  found = read_segments(tmp_path / "seg.dcm", source.geometry)
  assert list(found) == list(NAMES) and not any(mask.any() for mask in found.values())


def test_the_same_result_has_the_same_identifiers(tmp_path):
  source = series(tmp_path / "in")

  def written(label, **more):
    write_dicom_seg(tmp_path / "seg.dcm", Volume(label, source.geometry.affine), NAMES, source,
                    **more)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    return dataset.SeriesInstanceUID, dataset.SOPInstanceUID

  first = written(LABEL)
  assert written(LABEL.copy()) == first
  other = LABEL.copy()
  other[0, 0, 0] = 2 if LABEL[0, 0, 0] == 7 else 7
  assert written(other)[1] != first[1]
  assert written(LABEL, model="step 2")[0] != first[0]
  said = written(LABEL, remarks={"liver": "doubtful"})
  assert said[0] == first[0] and said[1] != first[1]
  assert written(LABEL, remarks={}) == first
  for uid in first:
    assert pydicom.uid.UID(uid).is_valid and len(uid) <= 64


def test_an_unknown_kind_of_output():
  with pytest.raises(InputError, match=r"'pdf': unknown kind \(choose from: seg, rtstruct\)"):
    check_kinds(["seg", "pdf"])


def test_what_does_not_belong_to_the_series(tmp_path):
  source = series(tmp_path / "in")
  moved = source.geometry.affine.copy()
  moved[0, 3] += 1
  for volume, reason in ((Volume(LABEL, moved), "away from the image"),
                       (Volume(LABEL[:-1], source.geometry.affine), "shape"),
                       (Volume(LABEL + np.uint8(1), source.geometry.affine), "the value 1, which")):
    with pytest.raises(InputError, match=reason):
      write_dicom_seg(tmp_path / "seg.dcm", volume, NAMES, source)
  assert not (tmp_path / "seg.dcm").exists()


# --- series as archives and anonymisers leave them ----------------------------------------------
def changed(folder, change):
  write_series(folder, VOXELS, AXIAL)
  for path in folder.iterdir():
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
  return read_source(folder)


def test_a_series_without_identifiers(tmp_path):
  def anonymise(dataset):
    for keyword in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
      dataset[keyword].value = ""
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyID"):
      if keyword in dataset:
        del dataset[keyword]

  def anonymise_more(dataset):
    anonymise(dataset)
    dataset.FrameOfReferenceUID = ""

  for number, change in enumerate((anonymise, anonymise_more)):
    source = changed(tmp_path / str(number), change)
    path = tmp_path / f"{number}.dcm"
    write_dicom_seg(path, Volume(LABEL, source.geometry.affine), NAMES, source)
    assert_same(read_segments(path, source.geometry), masks_of(LABEL))
    dataset, again = pydicom.dcmread(path), read_source(tmp_path / str(number))
    assert dataset.StudyInstanceUID == again.slices[0].StudyInstanceUID != ""
    assert dataset.FrameOfReferenceUID == again.slices[0].FrameOfReferenceUID != ""
    assert dataset.PatientName == "" and dataset.PatientID == ""


def test_slices_that_nothing_can_refer_to(tmp_path):
  def anonymise(dataset):
    dataset.SOPInstanceUID = ""
    dataset.file_meta.MediaStorageSOPInstanceUID = ""

  write_series(tmp_path / "in", VOXELS, AXIAL)
  path = next((tmp_path / "in").iterdir())
  dataset = pydicom.dcmread(path)
  anonymise(dataset)
  dataset.save_as(path)
  with pytest.raises(InputError, match="SOPInstanceUID") as caught:
    read_source(tmp_path / "in")
  assert caught.value.subject == str(path)


def test_values_against_the_rules_and_other_alphabets(tmp_path):
  def spoil(dataset):
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Müller^Jörg"
    dataset.PatientSex = "unknown"
    dataset.PatientBirthDate = "19600231"
    dataset.StudyTime = "noon"
    dataset.StudyDate = "20240229"

  with pydicom.config.disable_value_validation():
    source = changed(tmp_path / "in", spoil)
  write_dicom_seg(tmp_path / "seg.dcm", Volume(LABEL, source.geometry.affine),
                  {"Längsmuskel \\ " + "x" * 70: 2, "σπλήν": 7}, source)
  dataset = pydicom.dcmread(tmp_path / "seg.dcm")
  assert dataset.PatientName == "Müller^Jörg" and dataset.StudyDate == "20240229"
  assert dataset.PatientSex == dataset.PatientBirthDate == ""
  labels = [segment.SegmentLabel for segment in dataset.SegmentSequence]
  assert labels[0].startswith("Längsmuskel / xxx") and len(labels[0].encode()) == 64
  assert labels[1] == "σπλήν"


def test_without_the_extra(tmp_path, monkeypatch):
  source = series(tmp_path / "in")
  monkeypatch.setattr(dicom_source.importlib.util, "find_spec", lambda name: None)
  for work in (lambda: read_source(tmp_path / "in"),
               lambda: write_dicom_seg(tmp_path / "seg.dcm", Volume(LABEL, AXIAL), NAMES, source)):
    with pytest.raises(InputError, match="needs pydicom and highdicom") as caught:
      work()
    assert "pip install" in caught.value.cure


# --- codes --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "kind", "value", "side", "region"), [
    ("Spleen", "91723000", "78961009", None, None),
    ("kidney_left", "91723000", "64033007", "7771000", None),
    ("Right Adrenal Gland", "91723000", "23451007", "24028007", None),
    ("lungs", "91723000", "39607008", None, None),
    ("oesophagus", "91723000", "32849002", None, None),
    ("urinary bladder", "91723000", "89837001", None, None),
    ("left atrium", "91723000", "82471001", None, None),
    ("vertebrae_L1", "91723000", "66794005", None, None),
    ("liver tumour", "49755003", "108369006", None, "10200004"),
    ("kidney_cyst_left", "49755003", "367643001", "7771000", "64033007"),
    ("anterior", "85756007", "85756007", None, None), ("left", "85756007", "85756007", None, None),
    ("", "85756007", "85756007", None, None), ("background", "85756007", "85756007", None, None)])
def test_codes_of_names(name, kind, value, side, region):
  found = meaning(name)
  assert found.known == (kind != "85756007")
  assert (found.category.value, found.type.value) == (kind, value)
  assert (found.modifier and found.modifier.value) == side
  assert (found.region and found.region.value) == region


# --- the real series ----------------------------------------------------------------------------
def test_a_real_series_comes_back(real_data, tmp_path):
  """Anonymised, compressed as JPEG 2000; the label's y axis runs the other way."""
  root = real_data / "ct_sample"
  image = files.read_volume(root / "ct_dicom")
  stored = files.read_label(root / "ct_dicom_labels.nii.gz")
  names = {"spleen": 1, "liver": 5, "stomach": 6, "pancreas": 7, "colon": 20, "aorta": 52}
  stored = Volume(stored.array * np.isin(stored.array, list(names.values())), stored.affine)
  source = read_source(root / "ct_dicom")
  write_dicom_seg(tmp_path / "seg.dcm", stored, names, source)
  label = match_grid("image", image.geometry, "label", stored).array
  found = read_segments(tmp_path / "seg.dcm", image.geometry)
  assert_same(found, {name: label == value for name, value in names.items()})
  frame = pydicom.dcmread(files.members(root / "ct_dicom")[0]).FrameOfReferenceUID
  assert pydicom.dcmread(tmp_path / "seg.dcm").FrameOfReferenceUID == frame
  liver = image.array[found["liver"]]
  assert 20 < liver.mean() < 250
