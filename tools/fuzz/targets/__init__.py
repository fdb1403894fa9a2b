"""The targets, imported on use: the readers of images need neither JAX nor the service."""

# Name on the command line → MODULE:CLASS.
TARGETS = {
    "nifti": "tools.fuzz.targets.images:Nifti",
    "metaimage": "tools.fuzz.targets.images:MetaImage",
    "nrrd": "tools.fuzz.targets.images:Nrrd",
    "dicom": "tools.fuzz.targets.images:Dicom",
    "zip": "tools.fuzz.targets.archives:Archive",
    "bundle": "tools.fuzz.targets.models:Bundle",
    "checkpoint": "tools.fuzz.targets.models:Checkpoint",
    "description": "tools.fuzz.targets.descriptions:Description",
    "config": "tools.fuzz.targets.settings:Settings",
    "http": "tools.fuzz.targets.service:Service",
    "monai": "tools.fuzz.targets.monai:Monai",
    "dicomweb": "tools.fuzz.targets.dicomweb:DicomWeb",
    "dimse": "tools.fuzz.targets.dimse:Dimse",
}
