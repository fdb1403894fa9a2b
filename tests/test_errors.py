"""Errors of users: one line of text that every terminal and file can show."""

import os

from hypothesis import given
from hypothesis import strategies as st
import pytest

from condseg_jax.errors import InputError
from condseg_jax.errors import printable


@pytest.mark.parametrize(("text", "shown"), [
    ("größe $x$ 👍🏽", "größe $x$ 👍🏽"), ("a\nb\r\tc", r"a\nb\r\tc"), ("\x1b[31m", r"\x1b[31m"),
    ("\x00\x7f\x85", r"\x00\x7f\x85"), ("a\u2028b", r"a\u2028b"),
    (os.fsdecode(b"caf\xe9"), r"caf\xe9"), ("\ud800", r"\ud800")])
def test_what_cannot_be_shown_is_escaped(text, shown):
  assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_every_text_becomes_one_line_of_unicode(text):
  shown = printable(text)
  assert len(shown.splitlines()) <= 1 and shown.encode() and printable(shown) == shown or not text


def test_an_error_is_one_line():
  error = InputError("a\nb", "is \x1b", os.fsdecode(b"\xff"))
  assert str(error) == r"a\nb: is \x1b (\xff)"
  assert (error.subject, error.reason, error.cure) == (r"a\nb", r"is \x1b", r"\xff")


def test_a_path_gets_another_name():
  error = InputError("/tmp/x/a.nii", "/tmp/x/a.nii is empty", "see /tmp/x/a.nii", usage=True)
  named = error.renamed("/tmp/x", "s3://b")
  assert (named.subject, named.reason) == ("s3://b/a.nii", "s3://b/a.nii is empty")
  assert (named.cure, named.usage, named.kind) == (error.cure, True, error.kind)
  odd = InputError("/tmp/a\nb.nii", "is empty", "see it")
  assert odd.renamed("/tmp/a\nb.nii", "c").subject == "c"
