"""Images of a DICOMweb server as input of a command, and the way back for its results."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from pathlib import Path
import sys
import tempfile

from condseg_jax.cli.inputs import InputImage
from condseg_jax.dicomweb.address import parse_address
from condseg_jax.dicomweb.server import Server
from condseg_jax.errors import InputError


class Remote:
  """The series at an address, fetched into a temporary folder.

  Attributes:
    images: one for each series; its results are named after its SeriesInstanceUID.
  """

  def __init__(self, server: Server, images: list[InputImage]):
    self._server, self.images = server, images

  def send(self, files: Sequence[Path]) -> None:
    """Stores the DICOM objects among results on the server.

    Raises:
      InputError: see `Server.store`.
    """
    objects = [path for path in files if path.suffix == ".dcm"]
    self._server.store(objects)
    print(f"stored {len(objects)} objects on {self._server.url}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def fetched(text: str, series: str = "") -> Iterator[Remote]:
  """Fetches the series at an address; they are removed at the end.

  Args:
    text: see `dicomweb.address`.
    series: SeriesInstanceUID, if the address has none.

  Raises:
    InputError: an invalid address, or the server fails.
  """
  address = parse_address(text)
  if series and address.series not in ("", series):
    raise InputError("--series", "differs from the SeriesInstanceUID of the address",
                     "give one of them", usage=True)
  server = Server(address.url)
  found = server.image_series(address.study, address.series or series)
  with tempfile.TemporaryDirectory(prefix="condseg-", ignore_cleanup_errors=True) as name:
    images = []
    for one in found:
      path = Path(name) / one.uid
      count = server.fetch(one, path)
      print(f"fetched {count} instances of series {one.uid}", file=sys.stderr, flush=True)
      images.append(InputImage(path, one.uid, origin=f"{address.url}/studies/{one.study}/series/"
                               f"{one.uid}"))
    yield Remote(server, images)
