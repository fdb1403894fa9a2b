"""De-identifies DICOM objects by the Basic Application Level Confidentiality Profile (PS3.15, E).

The table of attributes and actions (E.1-1, edition 2026c) is that of the package dicom-anonymizer
(extra `deidentify`); it is applied here to nested items, too. Beyond the table, everything goes
that may hold anything: private and unknown attributes, overlays and curves, and the preamble.

Pixel data are neither decoded nor changed. Faces in images of heads are left to tools for defacing.
"""

from collections.abc import Iterator
import functools
import hashlib
import hmac
import re
import secrets
import uuid

from pydicom import DataElement
from pydicom import Dataset
from pydicom import FileDataset
from pydicom import Sequence
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

import condseg_jax
from condseg_jax.errors import InputError

EDITION = "2026c"
REMOVE, EMPTY, DUMMY, UIDS = "X", "Z", "D", "U"
# Table of the package → action. Where the action depends on the kind of object, the one is taken
# that suits all kinds.
ACTIONS = {"X_TAGS": REMOVE, "Z_TAGS": EMPTY, "X_Z_TAGS": EMPTY, "D_TAGS": DUMMY,
           "Z_D_TAGS": DUMMY, "X_D_TAGS": DUMMY, "X_Z_D_TAGS": DUMMY, "U_TAGS": UIDS,
           "X_Z_U_STAR_TAGS": UIDS}
REGISTERED = re.compile(r"1\.2\.840\.10008\.[0-9.]+")  # UIDs of the standard: of no patient
GRAPHICS = (0x5000, 0x6000)  # groups of curves and overlays: 50xx, 60xx
NAMES = ("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName",
         "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "AccessionNumber")
SHORTEST = 4  # characters of a name that is sought in what is kept
# Kinds of images that often have names and numbers in their pixels.
BURNT_MODALITIES = ("US", "IVUS", "ES", "GM", "XC", "OP", "OT", "DOC")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SCREENS = ("SCREEN SAVE", "SCREENSHOT", "DOSE_INFO", "REPORT")  # values of ImageType


class Deidentifier:
  """De-identifies objects; the same identifier always gets the same replacement.

  The replacements are made with a random key that is forgotten with this object: nobody can go
  back, or connect them with those of another run.
  """

  def __init__(self) -> None:
    self._key, self._actions = secrets.token_bytes(32), actions()

  def apply(self, dataset: FileDataset) -> list[str]:
    """De-identifies an object, in place.

    Returns:
      Why a person has to look at it before it is given away; [] for no reason.

    Raises:
      InputError: it has no identifiers, or an attribute that cannot be de-identified.
    """
    for name in ("SOPClassUID", "SOPInstanceUID"):
      if not dataset.get(name):
        raise InputError(name, "is missing", "leave the file out")
    reasons, names = visible_identity(dataset), set(_names(dataset))
    person = str(dataset.get("PatientID") or dataset.get("PatientName")
                 or dataset.get("StudyInstanceUID") or dataset.SOPInstanceUID)
    self._clean(dataset)
    dataset.PatientID = dataset.PatientName = f"P{self._digest('patient', person).hex()[:12]}"
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    dataset.DeidentificationMethod = f"condseg_jax {condseg_jax.__version__}, PS3.15 {EDITION}"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = Sequence([code])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    return reasons + [f"{place} contains what was in another attribute, a name or number"
                      for place in _places(dataset, names)]

  def uid(self, old: str) -> str:
    """Returns the replacement of a UID; those of the standard stay."""
    if not old or REGISTERED.fullmatch(old):
      return old
    number = uuid.UUID(bytes=self._digest("uid", old)[:16], version=4).int
    return f"2.25.{number}"  # PS3.5, B.2

  def _clean(self, dataset: Dataset) -> None:
    for tag in list(dataset.keys()):
      action = self._action(tag)
      if action == REMOVE:
        del dataset[tag]
        continue
      element = dataset[tag]
      if action == EMPTY:
        dataset[tag] = DataElement(tag, element.VR, None if element.VR != "SQ" else [])
      elif action == DUMMY:
        self._replace(element)
      elif element.VR == "SQ":
        for item in element.value:
          self._clean(item)
      elif action == UIDS:
        self._replace_uids(element)

  def _action(self, tag: BaseTag) -> str:
    """Returns the action for an attribute; "" if it is kept."""
    unknown = not dictionary_has_tag(tag)
    if tag.is_private or tag.group & 0xFF00 in GRAPHICS or unknown or tag.element == 0:
      return REMOVE
    return self._actions.get((tag.group, tag.element), "")

  def _replace(self, element: DataElement) -> None:
    """Puts a dummy in place of the value, and of all values of a sequence."""
    from dicomanonymizer.simpledicomanonymizer import replace_element
    if element.VR == "SQ":
      for item in element.value:
        for tag in list(item.keys()):
          if self._action(tag) == REMOVE:
            del item[tag]
          else:
            self._replace(item[tag])
    elif element.VR == "UI":
      self._replace_uids(element)
    else:
      try:
        replace_element(element)
      except NotImplementedError as error:
        raise InputError(f"attribute {element.tag}", f"has the VR {element.VR}, of which there is "
                         "no dummy", "leave the file out") from error

  def _replace_uids(self, element: DataElement) -> None:
    if element.VR != "UI":  # by a writer who was wrong
      element.value = None
    elif element.VM > 1:
      element.value = [self.uid(str(one)) for one in element.value]
    elif element.value:
      element.value = UID(self.uid(str(element.value)))

  def _digest(self, kind: str, text: str) -> bytes:
    return hmac.digest(self._key, f"{kind}\0{text}".encode(errors="surrogateescape"),
                       hashlib.sha256)


@functools.cache
def actions() -> dict[tuple[int, int], str]:
  """Returns (group, element) → action of the profile; "" for what is kept.

  Raises:
    InputError: the extra `deidentify` is not installed.
  """
  try:
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
  except ImportError as error:
    raise InputError("package dicom-anonymizer", "is not installed",
                     'pip install "condseg-jax[deidentify]"') from error
  tables = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")
  return {tag: action for name, action in ACTIONS.items() for tag in tables[name]
          if len(tag) == 2}  # longer ones are of curves and overlays


def visible_identity(dataset: Dataset) -> list[str]:
  """Returns why the pixels may show who the patient is, by what the object says of itself."""
  reasons = []
  burnt = str(dataset.get("BurnedInAnnotation", ""))
  if burnt == "YES":
    reasons.append("has annotation in its pixels (BurnedInAnnotation)")
  if str(dataset.get("RecognizableVisualFeatures", "")) == "YES":
    reasons.append("shows who it is (RecognizableVisualFeatures)")
  kinds = dataset.get("ImageType") or []
  kind = next((f"modality {one}" for one in BURNT_MODALITIES if dataset.get("Modality") == one), "")
  if str(dataset.SOPClassUID).startswith(SECONDARY_CAPTURE) or dataset.get("ConversionType"):
    kind = "secondary capture"
  kind = next((f"ImageType {one}" for one in SCREENS if one in kinds), kind)
  if kind and burnt != "NO":
    reasons.append(f"is of a kind that often has annotation in its pixels ({kind})")
  return reasons


def _names(dataset: Dataset) -> Iterator[str]:
  """Returns the words of names and numbers that must not be left anywhere."""
  for name in NAMES:
    for word in re.split(r"[\^=\\\s,]+", str(dataset.get(name) or "")):
      if len(word) >= SHORTEST and word.lower() != "anonymized":  # our own dummy
        yield word.lower()


def _places(dataset: Dataset, names: set[str]) -> Iterator[str]:
  """Returns the attributes of text that contain one of the names as a word."""
  for element in dataset.iterall():
    if element.VR in ("LO", "LT", "SH", "ST", "UC", "UT", "PN", "CS", "AE", "UR"):
      if names & set(re.split(r"[^\w]+", str(element.value).lower())):
        yield element.keyword or str(element.tag)
