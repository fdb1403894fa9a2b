"""Descriptions of public datasets, in the form that `description` documents."""

BTCV = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
        "aorta", "inferior vena cava", "portal vein and splenic vein", "pancreas",
        "right adrenal gland", "left adrenal gland")

KNOWN = {
    # https://sliver07.grand-challenge.org: 20 CTs as MetaImage.
    "sliver07": {"modality": "ct", "images": "**/liver-orig{id}.mhd",
                 "labels": "**/liver-seg{id}.mhd", "classes": {1: "liver"}},
    # https://www.cancerimagingarchive.net/collection/pancreas-ct: DICOM images, and NIfTI labels
    # with an inverted y axis.
    "nih_pancreas": {"modality": "ct", "images": "**/PANCREAS_{id}",
                     "labels": "**/label{id}.nii.gz", "classes": {1: "pancreas"},
                     "unlabelled": "skip"},
    # https://www.synapse.org/Synapse:syn3193805: the test images have no labels.
    "btcv": {"modality": "ct", "images": "**/img{id}.nii.gz", "labels": "**/label{id}.nii.gz",
             "classes": dict(enumerate(BTCV, 1)), "unlabelled": "skip"},
}
