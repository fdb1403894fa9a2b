"""Public datasets: address, digest, licence and layout.

The publishers of the open archives give no SHA-256, but MD5 values. An MD5 detects transfer errors,
not manipulation: `fetch` also checks a SHA-256 if one is given, and stores that of the archive with
the data.
"""

import dataclasses

_MSD = "https://msd-for-monai.s3-us-west-2.amazonaws.com/{}.tar"
_MSD_LICENCE = "CC BY-SA 4.0, http://medicaldecathlon.com"
_GB = 10**9
_SEVERAL_CHANNELS = ("Task01_BrainTumour", "Task05_Prostate")
_CHANNELS = ("its images have several channels, but only one is supported: split them, and declare "
             "one in dataset.json")


@dataclasses.dataclass(frozen=True)
class Archive:
  """An archive of open access.

  Attributes:
    url: https address; its last component is the archive's file name.
    digest: `md5:` or `sha256:` and the hexadecimal value, as published.
    licence: the licence and its address.
    format: layout, a key of `datasets.layouts.FORMATS`.
    folder: folder of the dataset in the archive; "" for the whole archive, or its only top folder.
    unpacked: maximal unpacked size in bytes.
    note: a hint for preparing it.
  """

  url: str
  digest: str
  licence: str
  format: str
  folder: str = ""
  unpacked: int = 100 * _GB
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Licensed:
  """A dataset that requires registration, so that users download it themselves.

  Attributes:
    page: address of its web page.
    expected: the expected content of its folder.
    format: layout, a key of `datasets.layouts.FORMATS`.
  """

  page: str
  expected: str
  format: str


# MD5 values: https://github.com/Project-MONAI/MONAI/blob/dev/monai/apps/datasets.py
_MSD_MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}

DATASETS: dict[str, Archive | Licensed] = {
    **{f"msd_{name.partition('_')[2].lower()}": Archive(
        _MSD.format(name), f"md5:{md5}", _MSD_LICENCE, "msd", name,
        note=_CHANNELS if name in _SEVERAL_CHANNELS else "")
       for name, md5 in _MSD_MD5.items()},
    # MD5 values: those of the Zenodo records.
    "totalsegmentator": Archive(
        "https://zenodo.org/records/10047292/files/Totalsegmentator_dataset_v201.zip",
        "md5:fe250e5718e0a3b5df4c4ea9d58a62fe",
        "CC BY 4.0, https://zenodo.org/records/10047292", "totalsegmentator"),
    "totalsegmentator_small": Archive(
        "https://zenodo.org/records/10047263/files/Totalsegmentator_dataset_small_v201.zip",
        "md5:6b5524af4b15e6ba06ef2d700c0c73e0",
        "CC BY 4.0, https://zenodo.org/records/10047263", "totalsegmentator"),
    "totalsegmentator_mr": Archive(
        "https://zenodo.org/records/14710732/files/TotalsegmentatorMRI_dataset_v200.zip",
        "md5:54638f4cb883ce3b34225195358c398f",
        "see https://zenodo.org/records/14710732", "totalsegmentator"),
    "sliver07": Licensed(
        "https://sliver07.grand-challenge.org",
        "liver-orig001.mhd … liver-orig020.mhd and liver-seg001.mhd …, each with its .raw, in any "
        "sub-folders", "sliver07"),
    "nih_pancreas": Licensed(
        "https://www.cancerimagingarchive.net/collection/pancreas-ct",
        "PANCREAS_0001/ … with the DICOM slices, and label0001.nii.gz …, in any sub-folders",
        "nih_pancreas"),
    "btcv": Licensed(
        "https://www.synapse.org/Synapse:syn3193805",
        "img0001.nii.gz … and label0001.nii.gz …, in any sub-folders (RawData/Training)", "btcv"),
    "cityscapes": Licensed(
        "https://www.cityscapes-dataset.com",
        "leftImg8bit/{train,val}/CITY/*.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png",
        "cityscapes"),
}
