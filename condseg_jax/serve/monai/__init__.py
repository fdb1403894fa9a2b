"""The protocol of MONAI Label, for 3D Slicer's module, OHIF's plugin and `monailabel.client`."""
