"""Addresses of series on DICOMweb servers."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from condseg_jax.dicomweb.address import Address
from condseg_jax.dicomweb.address import is_uid
from condseg_jax.dicomweb.address import parse_address
from condseg_jax.errors import InputError


def test_addresses():
  assert parse_address("dicomweb+https://pacs:8042/a/dicom-web?StudyInstanceUID=1.2") == Address(
      "https://pacs:8042/a/dicom-web", "1.2", "")
  assert parse_address("dicomweb+http://[::1]/w?SeriesInstanceUID=3&StudyInstanceUID=1.2") == (
      Address("http://[::1]/w", "1.2", "3"))


@pytest.mark.parametrize("text", [
    "dicomweb+http://h/w", "dicomweb+http://h/w?StudyInstanceUID=", "dicomweb+ftp://h/w?StudyIns",
    "dicomweb+http://h/w?StudyInstanceUID=../x", "dicomweb+http://h/w?StudyInstanceUID=1&x=2",
    "dicomweb+http:///w?StudyInstanceUID=1", "dicomweb+http://h:x/w?StudyInstanceUID=1",
    "dicomweb+file:///etc/passwd?StudyInstanceUID=1",
    f"dicomweb+http://h/w?StudyInstanceUID={'1' * 65}"])
def test_invalid_addresses(text):
  with pytest.raises(InputError) as caught:
    parse_address(text)
  assert caught.value.usage


def test_a_password_is_not_repeated():
  with pytest.raises(InputError, match="netrc") as caught:
    parse_address("dicomweb+http://me:secret@h/w?StudyInstanceUID=1")
  assert "secret" not in str(caught.value)


@given(st.text(alphabet="0123456789./\\ \0a%?", max_size=70))
def test_identifiers_are_digits_and_dots(text):
  assert is_uid(text) == (set(text) <= set("0123456789.") and 0 < len(text) <= 64
                          and text[0] != ".")
