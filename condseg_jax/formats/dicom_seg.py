"""DICOM Segmentation objects, by highdicom: what archives and viewers take as a result.

A binary segmentation on the grid of its series: one frame of bits for every slice on which a class
is found, in the series' frame of reference, each frame naming the slice it was made from.

Standard: DICOM PS3.3, A.51 and C.8.20.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os

import numpy as np

import condseg_jax
from condseg_jax.errors import InputError
from condseg_jax.formats import dicom_source
from condseg_jax.formats.dicom_codes import meaning
from condseg_jax.formats.dicom_source import SOFTWARE
from condseg_jax.formats.dicom_source import Source
from condseg_jax.formats.dicom_source import Structure
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

KIND = 1  # of results: its series numbers begin at 1000


def write_dicom_seg(path: str | os.PathLike, volume: Volume, names: Mapping[str, int],
                    source: Source, *, colors: Mapping[str, Sequence[int]] | None = None,
                    model: str = "") -> None:
  """Writes a segmentation; the file appears whole or not at all.

  The same segmentation of the same series has the same identifiers whenever it is written, so that
  an archive takes it once.

  Args:
    path: of the file.
    volume: a label map, or bool masks, which may overlap, along a last axis of channels; on the
      grid of the series, along any of its axes.
    names: class → value in the label map, or class → its channel + 1. Described are the classes
      that have a voxel; all of them where none has.
    source: the series, from `dicom_source.read_source`.
    colors: class → red, green, blue, 0–255; evenly spread hues where none is given.
    model: what made the segmentation, besides this program's name and version.

  Raises:
    InputError: the volume lies elsewhere; the series lacks what the standard demands; the extra
      `dicom` is not installed; a path that cannot be written.
  """
  with dicom_source.lenient():
    dataset = _segmentation(volume, names, source, colors or {}, model)
    with replacing(path) as temporary:
      dataset.save_as(temporary)


def _segmentation(volume, names, source, colors, model):
  import highdicom
  array = dicom_source.on_grid(source, volume)
  found = dicom_source.structures(array, names, colors)
  code = dicom_source.digest(array, found)
  pixels = _pixels(array, found)
  try:
    return highdicom.seg.Segmentation(
        source.slices, pixels, highdicom.seg.SegmentationTypeValues.BINARY,
        [_description(one, model) for one in found],
        series_instance_uid=dicom_source.result_uid(source, "SEG", model),
        series_number=dicom_source.series_number(source, KIND),
        sop_instance_uid=dicom_source.result_uid(source, "SEG", model, code), instance_number=1,
        manufacturer=SOFTWARE, manufacturer_model_name=SOFTWARE,
        software_versions=condseg_jax.__version__, device_serial_number=condseg_jax.__version__,
        content_label="SEGMENTATION",
        content_description=dicom_source.short_text(f"{SOFTWARE} {model}".strip()),
        series_description=dicom_source.series_description(source, "segmentation"),
        omit_empty_frames=bool(pixels.any()), specific_character_set=dicom_source.UTF_8)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(source.folder, f"takes no DICOM-SEG ({error})",
                     "export the original series again") from error


def _pixels(array: np.ndarray, found: Sequence[Structure]) -> np.ndarray:
  """Slices first; the number of the segment as value, or segments as last axis."""
  if array.dtype == bool:
    return array[..., [one.index for one in found]].transpose(2, 1, 0, 3)
  numbers = np.zeros(max(int(array.max()), *(one.index for one in found)) + 1,
                     np.min_scalar_type(len(found)))
  for one in found:
    numbers[one.index] = one.number
  return numbers[array.transpose(2, 1, 0)]


def _description(one: Structure, model: str):
  import highdicom
  from pydicom.sr.codedict import codes
  what = meaning(one.name)
  algorithm = highdicom.AlgorithmIdentificationSequence(
      SOFTWARE, codes.cid7162.ArtificialIntelligence, condseg_jax.__version__,
      parameters={"model": model} if model else None)
  description = highdicom.seg.SegmentDescription(
      one.number, dicom_source.short_text(one.name), what.category, what.type,
      highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm,
      anatomic_regions=[what.region] if what.region else None,
      display_color=highdicom.color.CIELabColor.from_rgb(*one.color))
  if what.modifier:
    description.SegmentedPropertyTypeModifierCodeSequence = [
        highdicom.sr.CodedConcept.from_code(what.modifier)]
  return description
