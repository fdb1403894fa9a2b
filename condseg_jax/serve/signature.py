"""Recognises what is sent by its first bytes, never by a name."""

ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
EMPTY_ZIP = b"PK\x05\x06"  # of a zip archive without members
PICTURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif",
            b"MM\0*": ".tif"}
HEAD_BYTES = 348  # of NIfTI-1; 540 of NIfTI-2, whose magic comes first


def suffix(head: bytes) -> str:
  """Returns .zip, .nii, .png, .jpg, .tif, or .nii.gz for whatever is compressed by gzip.

  For anything else, the result is "".

  Args:
    head: the first `HEAD_BYTES` bytes.
  """
  if head.startswith(ZIP):
    return ".zip"
  if head.startswith(GZIP):
    return ".nii.gz"
  for start, name in PICTURES.items():
    if head.startswith(start):
      return name
  return ".nii" if head[344:346] in (b"n+", b"ni") or head[4:6] == b"n+" else ""
