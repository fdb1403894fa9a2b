"""The basic profile of PS3.15: what goes, what stays, and that replacements agree."""

import copy
import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom import Sequence
import pydicom.data
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.uid import ImplicitVRLittleEndian
from pydicom.uid import RLELossless
import pytest

pytest.importorskip("dicomanonymizer", reason="the extra deidentify is not installed")

from condseg_jax.errors import InputError  # noqa: E402
from condseg_jax.formats.dicom_deidentify import actions  # noqa: E402
from condseg_jax.formats.dicom_deidentify import Deidentifier  # noqa: E402
from support.dicom_files import write_series  # noqa: E402

SECRET = "Zyxwv"  # in every attribute that may name somebody
STUDY, SERIES, FRAME = "1.2.826.7.1", "1.2.826.7.1.1", "1.2.826.7.2"


@pytest.fixture(autouse=True)
def lenient():
  """As the command reads what others wrote."""
  with pydicom.config.disable_value_validation():
    yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A slice as scanners write it."""
  voxels = np.arange(120).reshape(12, 10, 1)
  (path,) = write_series(tmp_path_factory.mktemp("in"), voxels, np.eye(4), uid=SERIES,
                         tags={0: {"0020|000d": STUDY, "0020|0052": FRAME}})
  return path.read_bytes()


@pytest.fixture
def dataset(written):
  """The slice with a name wherever one may be, and private, nested and unknown attributes."""
  made = pydicom.dcmread(io.BytesIO(written))
  made.PatientName, made.PatientID, made.PatientBirthDate = f"{SECRET}^Jane", "4711815", "19700101"
  made.ReferringPhysicianName, made.InstitutionName = f"{SECRET}^Max", SECRET
  made.StudyDate, made.AcquisitionDateTime, made.StudyID = "20260101", "20260101080000", SECRET
  made.StudyDescription = made.SeriesDescription = made.ImageComments = SECRET
  made.StationName, made.DeviceSerialNumber, made.AccessionNumber = SECRET, SECRET, SECRET
  made.ProtocolName, made.PatientAge, made.Manufacturer = SECRET, "055Y", "Maker"
  inner, reference = Dataset(), Dataset()
  reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4", STUDY
  inner.PatientName, inner.CodeMeaning, inner.FrameOfReferenceUID = SECRET, "kept", FRAME
  inner.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", SECRET)
  inner.ReferencedImageSequence = Sequence([copy.deepcopy(reference)])
  made.ReferencedImageSequence = Sequence([reference])
  made.DerivationCodeSequence = Sequence([copy.deepcopy(inner)])  # not in the table
  made.ContentSequence = Sequence([inner])  # in the table: a dummy
  made.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", SECRET)
  made.add_new(0x00189FFE, "LO", SECRET)  # in no dictionary
  made.add_new(0x60000010, "US", 8)
  made.add_new(0x60003000, "OW", SECRET.encode() + b" ")
  made.add_new(0x50000005, "US", 1)
  made.file_meta.SourceApplicationEntityTitle = SECRET
  made.preamble = SECRET.encode().ljust(128, b"\0")
  return made


def saved(dataset) -> bytes:
  stream = io.BytesIO()
  dataset.save_as(stream, enforce_file_format=True)
  return stream.getvalue()


def test_nothing_of_a_patient_is_left(dataset):
  assert saved(dataset).count(SECRET.encode()) > 12
  assert Deidentifier().apply(dataset) == []
  content = saved(dataset)
  for text in (SECRET, "Jane", "Max", "4711815", "19700101", "20260101", "055Y", STUDY, SERIES):
    assert text.encode() not in content, text
  assert not [e for e in dataset.iterall() if e.tag.is_private or e.tag.group >> 8 in (0x50, 0x60)]
  assert dataset.PatientIdentityRemoved == "YES"
  (code,) = dataset.DeidentificationMethodCodeSequence
  assert (code.CodeValue, code.CodingSchemeDesignator) == ("113100", "DCM")


def test_the_image_stays(dataset, written):
  original = pydicom.dcmread(io.BytesIO(written))
  Deidentifier().apply(dataset)
  read = pydicom.dcmread(io.BytesIO(saved(dataset)))
  for name in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient",
               "PixelSpacing", "RescaleSlope", "RescaleIntercept", "Modality", "SOPClassUID"):
    assert read[name].value == original[name].value, name
  assert read.Manufacturer == "Maker" and read.DerivationCodeSequence[0].CodeMeaning == "kept"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian,
                                    RLELossless])
def test_pixel_data_are_the_same_bytes_in_every_encoding(dataset, syntax):
  if syntax == RLELossless:
    dataset.compress(syntax, generate_instance_uid=False)
  dataset.file_meta.TransferSyntaxUID = syntax
  read = pydicom.dcmread(io.BytesIO(saved(dataset)))
  pixels, array = bytes(read.PixelData), read.pixel_array
  Deidentifier().apply(read)
  again = pydicom.dcmread(io.BytesIO(saved(read)))
  assert again.PixelData == pixels and again.file_meta.TransferSyntaxUID == syntax
  np.testing.assert_array_equal(again.pixel_array, array)


def test_identifiers_are_replaced_alike(dataset, written):
  other = pydicom.dcmread(io.BytesIO(written))
  other.PatientID, other.SOPInstanceUID = dataset.PatientID, "1.2.826.7.1.9"
  third = pydicom.dcmread(io.BytesIO(written))
  third.PatientID = "another"
  one = Deidentifier()
  for each in (dataset, other, third):
    one.apply(each)
  assert dataset.StudyInstanceUID == other.StudyInstanceUID != STUDY
  assert dataset.SOPInstanceUID != other.SOPInstanceUID
  assert dataset.FrameOfReferenceUID == dataset.DerivationCodeSequence[0].FrameOfReferenceUID
  (reference,) = dataset.ReferencedImageSequence
  assert reference.ReferencedSOPInstanceUID == dataset.StudyInstanceUID  # the same one before
  assert reference.ReferencedSOPClassUID == "1.2.840.10008.5.1.4"
  assert dataset.PatientID == other.PatientID == str(dataset.PatientName) != third.PatientID
  assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
  assert dataset.StudyInstanceUID.is_valid and dataset.StudyInstanceUID.startswith("2.25.")
  again = pydicom.dcmread(io.BytesIO(written))
  Deidentifier().apply(again)  # of another run: nobody can connect them
  assert again.StudyInstanceUID != other.StudyInstanceUID


def test_every_attribute_of_the_table(written):
  """A value in each of them, of its VR: what is removed is gone, what is replaced differs."""
  made, texts = pydicom.dcmread(io.BytesIO(written)), {}
  for (group, element), action in actions().items():
    if group == 2 or not pydicom.datadict.dictionary_has_tag((group, element)):
      continue
    vr = pydicom.datadict.dictionary_VR((group, element)).split(" or ")[0]
    value = {"SQ": Sequence([Dataset()]), "UI": "1.2.3.4", "DA": "20260102", "TM": "010203",
             "DT": "20260102030405", "AS": "033Y", "DS": "7.5", "IS": "7", "UR": "http://a.b",
             "OB": b"12", "OW": b"12", "UN": b"12"}.get(vr, SECRET if vr[0] in "ACLPSU" else 7)
    value = 7 if vr in ("US", "UL", "SS", "SL", "FL", "FD") else value
    made.add_new((group, element), vr, value)
    texts[group, element] = action, value
  Deidentifier().apply(made)
  for tag, (action, value) in texts.items():
    if tag in ((0x10, 0x10), (0x10, 0x20)) or action == "U" and made[tag].VR == "SQ":
      continue  # the pseudonym; references, which are kept
    if action == "X":
      assert tag not in made, tag
    elif action == "Z":
      assert made[tag].is_empty, tag
    elif made[tag].VR != "SQ":
      assert made[tag].value not in (value, "", None), tag


@pytest.mark.parametrize("changes, reason", [
    ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"), ({"Modality": "US"}, "modality US"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "secondary capture"),
    ({"ConversionType": "DF"}, "secondary capture"), ({"RecognizableVisualFeatures": "YES"}, "who"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "SCREEN SAVE"),
    ({"Manufacturer": f"made for {SECRET}"}, "Manufacturer contains"), ({"Modality": "MR"}, ""),
    ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""), ({"BurnedInAnnotation": "NO"}, "")])
def test_what_a_person_has_to_look_at(dataset, changes, reason):
  for name, value in changes.items():
    setattr(dataset, name, value)
  reasons = Deidentifier().apply(dataset)
  assert bool(reasons) == bool(reason) and all(reason in one for one in reasons)
  assert SECRET.lower() not in str(reasons).lower()


def test_an_object_without_identifiers_is_refused(dataset):
  del dataset.SOPInstanceUID
  with pytest.raises(InputError, match="SOPInstanceUID: is missing"):
    Deidentifier().apply(dataset)


def test_an_identifier_cannot_name_a_path(dataset):
  dataset.SeriesInstanceUID = "1.2.840.10008./../../x"
  dataset.SOPInstanceUID = "../x"
  Deidentifier().apply(dataset)
  assert "/" not in dataset.SeriesInstanceUID + dataset.SOPInstanceUID


@pytest.mark.filterwarnings("ignore")
def test_files_of_many_makers():
  """Those that come with pydicom: pixel data are the same, and no name or identifier is left."""
  one, seen = Deidentifier(), 0
  for path in sorted(Path(pydicom.data.__file__).parent.glob("test_files/*.dcm")):
    if path.stat().st_size > 200_000:
      continue
    made = pydicom.dcmread(path, force=True)
    pixels = made.get("PixelData")
    secrets = [str(made.get(name) or "") for name in (
        "PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "SOPInstanceUID")]
    try:
      one.apply(made)
      content = saved(made)
    except (InputError, AttributeError):  # fragments: no identifiers, or no head
      continue
    seen += 1
    assert pydicom.dcmread(io.BytesIO(content)).get("PixelData") == pixels, path.name
    rest = content.replace(pixels, b"") if pixels else content
    assert not [text for text in secrets if len(text) > 5 and text.encode() in rest], path.name
  assert seen > 40
