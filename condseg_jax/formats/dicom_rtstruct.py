"""Writes RT Structure Sets for radiotherapy planning, with pydicom: outlines of a segmentation.

Outlines are closed planar polygons on the slices of the series, in its frame of reference; see
`contours` for their position and for holes. Outlines do not reproduce the voxels exactly; DICOM-SEG
and NIfTI do.

Standard: DICOM PS3.3, A.19 and C.8.8.5, C.8.8.6, C.8.8.8.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import os
from typing import TYPE_CHECKING

import numpy as np

import condseg_jax
from condseg_jax.formats import dicom_source
from condseg_jax.formats.contours import outlines
from condseg_jax.formats.dicom_codes import meaning
from condseg_jax.formats.dicom_source import SOFTWARE
from condseg_jax.formats.dicom_source import Source
from condseg_jax.formats.dicom_source import Structure
from condseg_jax.formats.sitk import LPS_TO_RAS
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

if TYPE_CHECKING:
  from pydicom import Dataset
  from pydicom.sr.coding import Code

KIND = 2  # series numbers start at 2000
SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"  # SOP class of a referenced study, retired but required
LABEL_LENGTH = 16
DECIMALS = 4  # of coordinates in mm: a DICOM decimal string has at most 16 characters


def write_rtstruct(path: str | os.PathLike, volume: Volume, names: Mapping[str, int],
                   source: Source, *, colors: Mapping[str, Sequence[int]] | None = None,
                   remarks: Mapping[str, str] | None = None, model: str = "") -> None:
  """Writes a structure set atomically.

  Arguments and identifiers are those of `dicom_seg.write_dicom_seg`.

  Raises:
    InputError: the volume is on another grid; the series has invalid elements; the extra `dicom`
      is not installed; the path cannot be written.
  """
  with dicom_source.writing(source, "RTSTRUCT"):
    dataset = _structure_set(volume, names, source, colors or {}, remarks or {}, model)
    with replacing(path) as temporary:
      dataset.save_as(temporary, enforce_file_format=True)


def _structure_set(volume: Volume, names: Mapping[str, int], source: Source,
                   colors: Mapping[str, Sequence[int]], remarks: Mapping[str, str],
                   model: str) -> "Dataset":
  from pydicom.dataset import FileMetaDataset
  from pydicom.uid import ImplicitVRLittleEndian
  array = dicom_source.on_grid(source, volume)
  structures = dicom_source.structures(array, names, colors)
  first, now = source.slices[0], datetime.datetime.now()
  date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
  uid = dicom_source.result_uid(source, "RTSTRUCT", model,
                                dicom_source.digest(array, structures, remarks))
  dataset = _dataset(
      SpecificCharacterSet=dicom_source.UTF_8, InstanceCreationDate=date, InstanceCreationTime=time,
      SOPClassUID=SOP_CLASS, SOPInstanceUID=uid, Modality="RTSTRUCT", Manufacturer=SOFTWARE,
      ManufacturerModelName=SOFTWARE, SoftwareVersions=condseg_jax.__version__,
      SeriesDescription=dicom_source.series_description(source, "outlines"),
      SeriesNumber=dicom_source.series_number(source, KIND), InstanceNumber=1, OperatorsName="",
      StudyInstanceUID=first.StudyInstanceUID,
      SeriesInstanceUID=dicom_source.result_uid(source, "RTSTRUCT", model),
      FrameOfReferenceUID=first.FrameOfReferenceUID, PositionReferenceIndicator="",
      StructureSetLabel=SOFTWARE[:LABEL_LENGTH], StructureSetDate=date, StructureSetTime=time,
      StructureSetName=dicom_source.short_text(f"{SOFTWARE} {model}".strip()),
      ReferencedFrameOfReferenceSequence=[_referenced_frame(source)],
      StructureSetROISequence=[_dataset(
          ROINumber=structure.number, ROIName=dicom_source.short_text(structure.name),
          ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
          ROIGenerationAlgorithm="AUTOMATIC", **_remark(remarks.get(structure.name, "")))
          for structure in structures],
      ROIContourSequence=[_contours(structure, array, source) for structure in structures],
      RTROIObservationsSequence=[_observation(structure) for structure in structures],
      ApprovalStatus="UNAPPROVED",
      **{keyword: first.get(keyword) for keyword in dicom_source.REPEATED})
  dataset.file_meta = FileMetaDataset()
  # An explicit VR limits the coordinates to 64 kB, which an outline around many holes exceeds.
  dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
  return dataset


def _remark(text: str) -> dict[str, str]:
  return {"ROIDescription": dicom_source.remark(text)} if text else {}


def _referenced_frame(source: Source) -> "Dataset":
  first = source.slices[0]
  series = _dataset(SeriesInstanceUID=first.SeriesInstanceUID,
                    ContourImageSequence=[_image(header) for header in source.slices])
  study = _dataset(ReferencedSOPClassUID=STUDY_COMPONENT,
                   ReferencedSOPInstanceUID=first.StudyInstanceUID,
                   RTReferencedSeriesSequence=[series])
  return _dataset(FrameOfReferenceUID=first.FrameOfReferenceUID,
                  RTReferencedStudySequence=[study])


def _contours(structure: Structure, array: np.ndarray, source: Source) -> "Dataset":
  affine = LPS_TO_RAS @ source.geometry.affine
  contours = []
  for k, header in enumerate(source.slices):
    for polygon in outlines(structure.mask(array[:, :, k]).T):
      index = np.column_stack([polygon[:, ::-1], np.full(len(polygon), k), np.ones(len(polygon))])
      points = (index @ affine.T)[:, :3]
      contours.append(_dataset(
          ContourImageSequence=[_image(header)], ContourGeometricType="CLOSED_PLANAR",
          NumberOfContourPoints=len(points),
          ContourData=[f"{value:.{DECIMALS}f}" for value in points.ravel() + 0.0]))
  dataset = _dataset(ReferencedROINumber=structure.number, ROIDisplayColor=list(structure.color))
  if contours:
    dataset.ContourSequence = contours
  return dataset


def _observation(structure: Structure) -> "Dataset":
  code = meaning(structure.name)
  anatomy = code.known and code.category.meaning == "Anatomical Structure"
  dataset = _dataset(ObservationNumber=structure.number, ReferencedROINumber=structure.number,
                     RTROIInterpretedType="ORGAN" if anatomy else "", ROIInterpreter="")
  if code.known:
    dataset.RTROIIdentificationCodeSequence = [_code(code.type)]
    if code.modifier:
      dataset.RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
          _code(code.modifier)]
  return dataset


def _code(code: "Code") -> "Dataset":
  return _dataset(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator,
                  CodeMeaning=code.meaning)


def _image(header: "Dataset") -> "Dataset":
  return _dataset(ReferencedSOPClassUID=header.SOPClassUID,
                  ReferencedSOPInstanceUID=header.SOPInstanceUID)


def _dataset(**values: object) -> "Dataset":
  from pydicom import Dataset
  dataset = Dataset()
  for keyword, value in values.items():
    setattr(dataset, keyword, value)
  return dataset
