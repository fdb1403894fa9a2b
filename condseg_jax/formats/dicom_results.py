"""What is written beside the masks of a DICOM series: objects that its archive takes back.

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
  """Raises InputError for a kind that does not exist, or for want of the extra `dicom`."""
  for kind in kinds:
    if kind not in KINDS:
      raise InputError(f"DICOM output {kind!r}", "is not known", f"choose of {', '.join(KINDS)}",
                       usage=True)
  if kinds:
    dicom_source.need_extra()


def write_results(folder: str | os.PathLike, stem: str, kinds: Sequence[str], volume: Volume,
                  names: Mapping[str, int], source: str | os.PathLike, series: str = "", *,
                  colors: Mapping[str, Sequence[int]] | None = None,
                  model: str = "") -> list[Path]:
  """Writes STEM_seg.dcm and STEM_rtstruct.dcm, or one of them.

  Args:
    folder: to write to.
    stem: of the names of the files.
    kinds: some of `KINDS`.
    volume, names, colors, model: as of `dicom_seg.write_dicom_seg`.
    source: the folder of the DICOM series.
    series: its SeriesInstanceUID, where the folder holds several.

  Returns:
    The files.

  Raises:
    InputError: as the two writers.
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
    writers[kind](written[-1], volume, names, headers, colors=colors, model=model)
  return written
