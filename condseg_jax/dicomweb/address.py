"""Addresses of series: dicomweb+http://HOST/dicom-web?StudyInstanceUID=…&SeriesInstanceUID=…"""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl
from urllib.parse import urlsplit

from condseg_jax.errors import InputError

PREFIX = "dicomweb+"
EXAMPLE = f"{PREFIX}http://HOST/dicom-web?StudyInstanceUID=1.2.3"
_UID = re.compile(r"[0-9][0-9.]{0,63}")


class Address(NamedTuple):
  """A study or series on a server.

  Attributes:
    url: of the server, e.g. http://HOST/dicom-web.
    study: StudyInstanceUID.
    series: SeriesInstanceUID; "" for all series of the study.
  """

  url: str
  study: str
  series: str


def is_address(text: str) -> bool:
  """Returns whether a text is meant as an address, not as a path."""
  return text.startswith(PREFIX)


def is_uid(text: str) -> bool:
  """Returns whether a text can be a DICOM identifier: digits and dots, at most 64 characters."""
  return _UID.fullmatch(text) is not None


def parse_address(text: str) -> Address:
  """Parses an address.

  Raises:
    InputError: it is invalid, or contains a password, which other users of a machine can read.
  """
  url, _, query = text.removeprefix(PREFIX).partition("?")
  check_url(url)
  values = dict(parse_qsl(query, keep_blank_values=True))
  unknown = values.keys() - {"StudyInstanceUID", "SeriesInstanceUID"}
  study, series = values.get("StudyInstanceUID", ""), values.get("SeriesInstanceUID", "")
  if unknown or not is_uid(study) or not (is_uid(series) or not series):
    raise InputError(text, "does not name a study", f"give {EXAMPLE}, with or without "
                     "&SeriesInstanceUID=…", usage=True)
  return Address(url, study, series)


def check_url(url: str) -> None:
  """Raises InputError for an invalid address of a server."""
  try:
    parts = urlsplit(url)
    valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
  except ValueError:
    valid = False
  if not valid:
    raise InputError(url, "is not the address of a DICOMweb server",
                     "give, for example, http://HOST:8042/dicom-web", usage=True)
  if parts.username or parts.password or parts.query or parts.fragment:
    raise InputError(f"{parts.scheme}://{parts.hostname}", "contains more than host and path",
                     "give name and password in ~/.netrc", usage=True)
