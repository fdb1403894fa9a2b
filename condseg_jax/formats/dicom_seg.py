"""Writes DICOM Segmentation objects, with highdicom.

A binary segmentation on the grid of its series: one frame of bits for each class and slice that
contains the class, in the series' frame of reference, with a reference to the source slice.

Standard: DICOM PS3.3, A.51 and C.8.20.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import TYPE_CHECKING

import numpy as np

import condseg_jax
from condseg_jax.formats import dicom_source
from condseg_jax.formats.dicom_codes import meaning
from condseg_jax.formats.dicom_source import SOFTWARE
from condseg_jax.formats.dicom_source import Source
from condseg_jax.formats.dicom_source import Structure
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

if TYPE_CHECKING:
  from pydicom import Dataset

KIND = 1  # series numbers start at 1000


def write_dicom_seg(path: str | os.PathLike, volume: Volume, names: Mapping[str, int],
                    source: Source, *, colors: Mapping[str, Sequence[int]] | None = None,
                    remarks: Mapping[str, str] | None = None, model: str = "") -> None:
  """Writes a segmentation atomically.

  The same segmentation of the same series always has the same identifiers, so that an archive
  stores it once.

  Args:
    path: the file.
    volume: a label map, or bool masks, which may overlap, along a last axis of channels; on the
      grid of the series, with axes in any order and direction.
    names: class → value in the label map, or class → its channel + 1. The object describes the
      classes that have a voxel, or all classes if none has.
    source: the series, from `dicom_source.read_source`.
    colors: class → red, green, blue, 0–255; evenly spread hues by default.
    remarks: class → the description of its segment.
    model: name of the model, in addition to this program's name and version.

  Raises:
    InputError: the volume is on another grid; the series lacks attributes that the standard
      requires; the extra `dicom` is not installed; the path cannot be written.
  """
  with dicom_source.writing(source, "DICOM-SEG"):
    dataset = _segmentation(volume, names, source, colors or {}, remarks or {}, model)
    with replacing(path) as temporary:
      dataset.save_as(temporary)


def _segmentation(volume: Volume, names: Mapping[str, int], source: Source,
                  colors: Mapping[str, Sequence[int]], remarks: Mapping[str, str],
                  model: str) -> "Dataset":
  import highdicom
  array = dicom_source.on_grid(source, volume)
  structures = dicom_source.structures(array, names, colors)
  code = dicom_source.digest(array, structures, remarks)
  pixels = _pixels(array, structures)
  return highdicom.seg.Segmentation(
      source.slices, pixels, highdicom.seg.SegmentationTypeValues.BINARY,
      [_description(structure, model, remarks.get(structure.name, ""))
       for structure in structures],
      series_instance_uid=dicom_source.result_uid(source, "SEG", model),
      series_number=dicom_source.series_number(source, KIND),
      sop_instance_uid=dicom_source.result_uid(source, "SEG", model, code), instance_number=1,
      manufacturer=SOFTWARE, manufacturer_model_name=SOFTWARE,
      software_versions=condseg_jax.__version__, device_serial_number=condseg_jax.__version__,
      content_label="SEGMENTATION",
      content_description=dicom_source.short_text(f"{SOFTWARE} {model}".strip()),
      series_description=dicom_source.series_description(source, "segmentation"),
      omit_empty_frames=bool(pixels.any()), specific_character_set=dicom_source.UTF_8)


def _pixels(array: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
  """Returns slices, rows, columns of segment numbers, or of masks with segments as last axis."""
  if array.dtype == bool:
    return array[..., [s.index for s in structures]].transpose(2, 1, 0, 3)
  numbers = np.zeros(max(int(array.max()), *(s.index for s in structures)) + 1,
                     np.min_scalar_type(len(structures)))
  for structure in structures:
    numbers[structure.index] = structure.number
  return numbers[array.transpose(2, 1, 0)]


def _description(structure: Structure, model: str, remark: str) -> "Dataset":
  import highdicom
  from pydicom.sr.codedict import codes
  code = meaning(structure.name)
  algorithm = highdicom.AlgorithmIdentificationSequence(
      SOFTWARE, codes.cid7162.ArtificialIntelligence, condseg_jax.__version__,
      parameters={"model": model} if model else None)
  description = highdicom.seg.SegmentDescription(
      structure.number, dicom_source.short_text(structure.name), code.category, code.type,
      highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm,
      anatomic_regions=[code.region] if code.region else None,
      display_color=highdicom.color.CIELabColor.from_rgb(*structure.color))
  if remark:
    description.SegmentDescription = dicom_source.remark(remark)
  if code.modifier:
    description.SegmentedPropertyTypeModifierCodeSequence = [
        highdicom.sr.CodedConcept.from_code(code.modifier)]
  return description
