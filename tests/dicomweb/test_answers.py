"""What a server sends that is no whole series: refused, although its parser takes it."""

import pytest

pytest.importorskip("dicomweb_client", reason="the extra pacs is not installed")

from condseg_jax.errors import InputError
from tools.fuzz import mutate
from tools.fuzz.targets.dicomweb import DicomWeb
from tools.fuzz.targets.dicomweb import FETCH
from tools.fuzz.targets.dicomweb import SEARCH


@pytest.fixture
def fetched(tmp_path):
  """Searches, fetches and reads from a server with these answers, after an operation on one."""
  target = DicomWeb(tmp_path / "home")

  def fetch(operation=None):
    files = target.variants()["series"]
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (mutate.apply(files, operation) if operation else files).items():
      (folder / name).write_bytes(content)
    return target.door("series", folder, tmp_path / "out")

  yield fetch
  target.close()


def test_a_whole_series(fetched):
  assert fetched()[1]["shape"] == [12, 10, 4]


def test_a_message_that_ends_after_three_of_four_slices(fetched):
  body = DicomWeb(None).variants()["series"][FETCH].partition(b"\r\n\r\n")[2]
  end = body.rindex(b"\r\n--frontier\r\n")
  with pytest.raises(InputError, match="sends 3 of 4 instances"):
    fetched({"file": FETCH, "through": ["body"], "do": "cut", "args": [end]})


def test_a_search_that_finds_no_list(fetched):
  with pytest.raises(InputError, match="sends what is no DICOMweb answer"):
    fetched({"file": SEARCH, "through": ["body"], "do": "json", "args": ["number", [], "one"]})
