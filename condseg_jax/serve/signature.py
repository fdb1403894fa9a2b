"""Recognises what is sent by its first bytes, never by a name."""

ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
EMPTY_ZIP = b"PK\x05\x06"  # of a zip archive without members
HEAD_BYTES = 348  # of NIfTI-1; 540 of NIfTI-2, whose magic comes first


def suffix(head: bytes) -> str:
  """Returns .zip, .nii, or .nii.gz for whatever is compressed by gzip; "" for anything else.

  Args:
    head: the first `HEAD_BYTES` bytes.
  """
  if head.startswith(ZIP):
    return ".zip"
  if head.startswith(GZIP):
    return ".nii.gz"
  return ".nii" if head[344:346] in (b"n+", b"ni") or head[4:6] == b"n+" else ""
