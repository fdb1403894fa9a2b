"""Images: the readers of the formats, and condseg-predict on what they read.

What no reader can know, so that a difference is no find: voxels, slope, spacing and position have
no checksum in any of the formats, a compressed stream has one but can be packed again. `content`
therefore reads every mutated file strictly by its standard; the package has to refuse the file,
or read what is read there, or what the intact file says (a damaged field that is of no use). A file
that is longer or shorter than its header says shows its damage.
"""

import abc
import gzip
import io
from pathlib import Path
import tempfile
import warnings

import nibabel
import numpy as np

from condseg_jax.formats import dicom
from condseg_jax.formats import dicom_slices
from condseg_jax.formats import files as image_files
from condseg_jax.formats import nifti
from condseg_jax.geometry import Volume
from tools.fuzz import content as standard
from tools.fuzz import mutate
from tools.fuzz.judge import same
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target

SHAPE = (12, 10, 6)
AFFINE = np.array([[-1.0, 0, 0, 9], [0, -1.0, 0, 7], [0, 0, 2.0, -5], [0, 0, 0, 1]])
VALID = "another valid file: voxels and geometry have no checksum"


def voxels() -> np.ndarray:
  """Returns the intact volume, along the axes of its file."""
  return np.random.default_rng(0).normal(60, 60, SHAPE).astype(np.int16)


class Image(Target):
  """Common to all formats of images: one file, or a folder."""

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Reads header and voxels."""
    path = self.path(variant, folder)
    header = image_files.read_header(path)
    volume = image_files.read_volume(path)
    content = standard.describe(volume.array, volume.affine)
    if header.geometry.shape != volume.array.shape or (header.geometry.affine
                                                       != volume.affine).any():
      content["unsound"] = "the header alone gives another grid than the whole file"
    return 0, content

  def command(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Predicts with a small network; the mask has to lie on the grid of the image."""
    from condseg_jax.cli import predict
    from tools.fuzz.targets import models
    path = self.path(variant, folder)
    code = predict.main(["condseg-predict", f"--workdir={models.bundle_path(self.home)}",
                         f"--input={path}", f"--output={out}", "--nopicture"])
    if code:
      return code, {}
    mask, image = image_files.read_volume(next(out.glob("*.nii.gz"))), image_files.read_volume(path)
    content = standard.describe(mask.array, mask.affine)
    grid = standard.describe(image.array, image.affine)
    if not same({**content, "voxels": ""}, {**grid, "voxels": ""}):
      content["unsound"] = "the mask does not lie on the grid of the image"
    return code, content

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Returns `VALID` if the strict reading of the file gives the same."""
    if not same(content, self.read_strictly(variant, files)):
      raise standard.Damaged("by its standard the file says something else")
    return VALID

  @abc.abstractmethod
  def path(self, variant: str, folder: Path) -> Path:
    """Returns the path to read: the header of a pair, or the only file."""

  @abc.abstractmethod
  def read_strictly(self, variant: str, files: Files) -> dict:
    """Returns what the file says by its standard, see `content`."""


class Nifti(Image):
  """NIfTI: compressed, plain, NIfTI-2, big-endian with a qform and a slope, and a label map."""

  name = "nifti"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the files."""
    image, volume = voxels(), Volume(voxels(), AFFINE)
    label = Volume((image > 100).astype(np.uint8) + (image > 150), AFFINE)
    second = nibabel.Nifti2Image(image, AFFINE, dtype=np.int16)
    scaled = nibabel.Nifti1Image(image, None, nibabel.Nifti1Header(endianness=">"), dtype=np.int16)
    scaled.header.set_qform(AFFINE, 1)
    scaled.header.set_slope_inter(0.5, 3.0)
    scaled.header["vox_offset"], scaled.header["magic"] = 352, b"n+1"
    content = scaled.header.binaryblock + bytes(4) + image.astype(">i2").tobytes("F")
    return {"gz": {"a.nii.gz": _written(volume)},
            "plain": {"a.nii": gzip.decompress(_written(volume))},
            "nifti2": {"a.nii": second.to_bytes()}, "scaled": {"a.nii": content},
            "label": {"a.nii.gz": _written(label, label=True, names={"liver": 1, "spleen": 2})}}

  def places(self, files: Files) -> list[Place]:
    """Returns the file, the stream in it, and the fields of its header."""
    name, = files
    if name.endswith(".gz"):
      return [Place(name), Place(name, "bytes", ("gzip",), 2), Place(name, "nifti", ("gzip",), 4)]
    return [Place(name), Place(name, "nifti", (), 2)]

  def path(self, variant: str, folder: Path) -> Path:
    """Returns the only file."""
    return folder / ("a.nii.gz" if variant in ("gz", "label") else "a.nii")

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Reads the image; of a label map the names and colours, too."""
    path = self.path(variant, folder)
    if variant == "label":
      image_files.read_label(path)
      nifti.read_names(path)
      nifti.read_colors(path)
    return super().door(variant, folder, out)

  def read_strictly(self, variant: str, files: Files) -> dict:
    """Reads by nifti1.h."""
    (name, data), = files.items()
    return standard.nifti(data, name.endswith(".gz"))


def _written(volume: Volume, **options) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "a.nii"
    nifti.write_nifti(path, volume, **options)
    return gzip.compress(path.read_bytes(), mtime=0)


class _Simple(Image):
  """MetaImage and NRRD, written by SimpleITK."""

  def written(self, name: str, *, compressed: bool = False) -> dict[str, bytes]:
    """Returns the files of the intact volume."""
    import SimpleITK as sitk
    image = sitk.GetImageFromArray(voxels().transpose(2, 1, 0))
    image.SetSpacing([1.0, 1.0, 2.0])
    image.SetOrigin([-9.0, -7.0, -5.0])
    with tempfile.TemporaryDirectory() as folder:
      sitk.WriteImage(image, f"{folder}/{name}", compressed)
      return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}

  def places(self, files: Files) -> list[Place]:
    """Returns all files, the lines of the header, and a compressed stream."""
    header = next(name for name in files if name.endswith(_HEADERS))
    places = [Place(header, "lines", (), 4), *map(Place, files)]
    if len(files) == 1 and (b"CompressedData = True" in files[header]
                            or b"encoding: gzip" in files[header]):
      places.append(Place(header, "bytes", ("packed",), 2))
    if len(files) > 1:
      places += [Place(name, mutate.FILE) for name in files if name != header]
    return places

  def path(self, variant: str, folder: Path) -> Path:
    """Returns the header."""
    return folder / f"a.{variant.partition(' ')[0]}"


_HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")


class MetaImage(_Simple):
  """MetaImage in one file, compressed or not, and header and voxels apart, big-endian."""

  name = "metaimage"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the files."""
    pair = self.written("a.mhd")
    pair["a.mhd"] = pair["a.mhd"].replace(b"MSB = False", b"MSB = True")
    pair["a.raw"] = voxels().astype(">i2").tobytes("F")
    return {"mha": self.written("a.mha"), "mha packed": self.written("a.mha", compressed=True),
            "mhd": pair, "mhd packed": self.written("a.mhd", compressed=True)}

  def read_strictly(self, variant: str, files: Files) -> dict:
    """Reads the header line by line."""
    return standard.metaimage(files, f"a.{variant.partition(' ')[0]}")


class Nrrd(_Simple):
  """NRRD in one file, compressed or not, and header and voxels apart."""

  name = "nrrd"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the files."""
    return {"nrrd": self.written("a.nrrd"), "nrrd packed": self.written("a.nrrd", compressed=True),
            "nhdr": self.written("a.nhdr"), "nhdr packed": self.written("a.nhdr", compressed=True)}

  def read_strictly(self, variant: str, files: Files) -> dict:
    """Reads the header line by line."""
    return standard.nrrd(files, f"a.{variant.partition(' ')[0]}")


class Dicom(Image):
  """A DICOM series; `scaled` has a slope of its own in every slice.

  A series without its first or last slices is a valid one: nothing in it counts the slices.
  """

  name = "dicom"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the slices."""
    return {"series": _series((1.0,) * 4), "scaled": _series((0.25, 0.5, 0.75, 1.0))}

  def places(self, files: Files) -> list[Place]:
    """Returns all slices: their bytes, their elements, and each as a whole."""
    return [Place(name, kind, (), weight) for name in files
            for kind, weight in (("bytes", 2), ("dicom", 3), (mutate.FILE, 1))]

  def path(self, variant: str, folder: Path) -> Path:
    """Returns the folder."""
    return folder

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Reads the series, and lists those of the folder as the command does."""
    dicom.list_series(folder)
    try:
      return super().door(variant, folder, out)
    finally:
      dicom_slices.clear_header_cache()

  def read_strictly(self, variant: str, files: Files) -> dict:
    """Reads with pydicom."""
    return standard.dicom(files)


def _series(slopes) -> dict[str, bytes]:
  import pydicom
  array, files = voxels()[..., :4], {}
  lps = np.diag([-1, -1, 1, 1]) @ AFFINE
  for k in range(array.shape[2]):
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"1.2.840.1.{k + 1}"
    one.Modality, one.PatientID, one.PatientName = "MR", "p", "a^b"
    one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.840.2", "1.2.840.3"
    one.FrameOfReferenceUID, one.SeriesDescription = "1.2.840.4", "a series"
    one.StudyDate, one.StudyTime = "20200101", "120000"
    one.PatientBirthDate, one.PatientSex = "", ""
    one.StudyID, one.AccessionNumber, one.ReferringPhysicianName = "1", "", ""
    one.SeriesNumber, one.InstanceNumber = 1, k + 1
    one.ImagePositionPatient = (lps[:3, 3] + k * lps[:3, 2]).tolist()
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.PixelSpacing, one.SliceThickness = [1, 1], 2
    one.Rows, one.Columns = array.shape[1], array.shape[0]
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.RescaleSlope, one.RescaleIntercept = slopes[k], 0
    one.PixelData = array[:, :, k].T.astype("<i2").tobytes()
    stream = io.BytesIO()
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      one.save_as(stream, enforce_file_format=True)
    files[f"slice_{k}.dcm"] = stream.getvalue()
  return files
