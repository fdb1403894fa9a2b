"""A DICOM node (PS3.7, PS3.8), with pynetdicom: receives series, and sends back their results."""
