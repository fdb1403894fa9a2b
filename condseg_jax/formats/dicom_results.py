"""Writes the segmentation of a DICOM series as DICOM objects: DICOM-SEG and RT Structure Set.

The extra `dicom` is imported only when something is written.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from pathlib import Path

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom_source
from condseg_jax.geometry import Volume

KINDS = ("seg", "rtstruct")


def check_kinds(kinds: Sequence[str]) -> None:
  """Raises InputError for an unknown kind, or if the extra `dicom` is not installed."""
  for kind in kinds:
    if kind not in KINDS:
      raise InputError(f"DICOM output {kind!r}", "unknown kind",
                       f"choose from: {', '.join(KINDS)}", usage=True)
  if kinds:
    dicom_source.require_extra()


def write_results(folder: str | os.PathLike, stem: str, kinds: Sequence[str], volume: Volume,
                  names: Mapping[str, int], source: str | os.PathLike, series: str = "", *,
                  colors: Mapping[str, Sequence[int]] | None = None,
                  remarks: Mapping[str, str] | None = None, model: str = "") -> list[Path]:
  """Writes STEM_seg.dcm, STEM_rtstruct.dcm, or both.

  Args:
    folder: output folder.
    stem: of the file names.
    kinds: a subset of `KINDS`.
    volume: see `dicom_seg.write_dicom_seg`.
    names: see `dicom_seg.write_dicom_seg`.
    colors: see `dicom_seg.write_dicom_seg`.
    remarks: class → what is to be said of it, up to 1,024 characters: the description of the
      segment, or of the region of interest.
    model: see `dicom_seg.write_dicom_seg`.
    source: the folder of the DICOM series.
    series: its SeriesInstanceUID, if the folder contains several series.

  Returns:
    The files.

  Raises:
    InputError: an unknown kind; see also the two writers.
  """
  check_kinds(kinds)
  if not kinds:
    return []
  from condseg_jax.formats.dicom_rtstruct import write_rtstruct
  from condseg_jax.formats.dicom_seg import write_dicom_seg
  writers = {"seg": write_dicom_seg, "rtstruct": write_rtstruct}
  headers, written = dicom_source.read_source(source, series), []
  for kind in dict.fromkeys(kinds):
    written.append(Path(folder) / f"{stem}_{kind}.dcm")
    writers[kind](written[-1], volume, names, headers, colors=colors, remarks=remarks, model=model)
  return written
