"""DICOMweb servers (PS3.18), with dicomweb-client: series to predict, and a place for results."""
