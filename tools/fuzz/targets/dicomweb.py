"""Answers of a DICOMweb server: what it finds (QIDO-RS), and the series that it sends (WADO-RS).

A server on the loopback sends the bytes of an input, whatever they are, and closes the connection.
A series that does not arrive as a whole must be refused: with fewer slices it is another valid one.
"""

import contextlib
import json
from pathlib import Path
import re
import socket
import threading

from tools.fuzz import content as standard
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.targets import images

STUDY, SERIES = "1.2.840.2", "1.2.840.3"  # as in `images.Dicom`
SEARCH, FETCH = "search", "series"
MAX_FILES, MAX_BYTES = 100, 1 << 24
TIMEOUT = 2.0  # seconds


class DicomWeb(images.Dicom):
  """A study is searched, its series fetched and read."""

  name = "dicomweb"
  seconds = 60.0
  every = 0

  def __init__(self, home: Path):
    super().__init__(home)
    self._listener: socket.socket | None = None
    self._answers: dict[bool, bytes] = {}

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the two answers, each with its head."""
    slices = super().variants()["series"].values()
    found = [{"0020000D": {"vr": "UI", "Value": [STUDY]}, "00080060": {"vr": "CS", "Value": ["MR"]},
              "0020000E": {"vr": "UI", "Value": [SERIES]},
              "00201209": {"vr": "IS", "Value": [len(slices)]}}]
    parts = b"".join(b"--frontier\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n"
                     for one in slices)
    return {"series": {
        SEARCH: _answer("application/dicom+json", json.dumps(found).encode()),
        FETCH: _answer('multipart/related; type="application/dicom"; boundary=frontier',
                       parts + b"--frontier--\r\n")}}

  def places(self, files: Files) -> list[Place]:
    """Returns heads, bodies, the JSON, the parts and their elements."""
    places = [Place(name, kind, (), 2) for name in files for kind in ("head", "bytes")]
    places += [Place(SEARCH, "json", ("body",), 6), Place(SEARCH, "bytes", ("body",), 2),
               Place(FETCH, "bytes", ("body",), 6)]
    return [*places, *(Place(FETCH, kind, ("body", f"form/{number}"))
                       for number in range(4) for kind in ("bytes", "dicom"))]

  def warm_up(self) -> None:
    """Starts the server."""
    if self._listener is None:
      from condseg_jax.dicomweb import server
      server.TIMEOUT, server.FIRST_PAUSE = TIMEOUT, 1
      self._listener = socket.create_server(("127.0.0.1", 0))
      threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

  def close(self) -> None:
    """Ends the server."""
    if self._listener is not None:
      with contextlib.suppress(OSError):
        self._listener.shutdown(socket.SHUT_RDWR)
      self._listener.close()
      self._listener = None

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Searches, fetches and reads the series."""
    from condseg_jax.dicomweb.server import Server
    self.warm_up()
    assert self._listener is not None
    self._answers = {name == FETCH: (folder / name).read_bytes() for name in (SEARCH, FETCH)}
    server = Server(f"http://127.0.0.1:{self._listener.getsockname()[1]}/dicom-web")
    series = out / "series"
    server.fetch(server.image_series(STUDY)[0], series, max_files=MAX_FILES, max_bytes=MAX_BYTES)
    return super().door(variant, series, out)

  def read_strictly(self, variant: str, files: Files) -> dict:
    """Takes the second answer apart by RFC 2046, and reads what is in it with pydicom."""
    head, _, body = files[FETCH].partition(b"\r\n\r\n")
    lengths = re.findall(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r?$", head)
    if [int(length) for length in lengths] != [len(body)]:
      raise standard.Damaged("the body has not the length that the head says")
    first, *parts = (b"\r\n" + body).split(b"\r\n--frontier")
    if first or not parts or not parts[-1].startswith(b"--"):
      raise standard.Damaged("the multipart message has no end")
    contents = [part.partition(b"\r\n\r\n")[2] for part in parts[:-1]]
    if len(contents) < self._promised(files):
      raise standard.Damaged("more slices were promised")
    return standard.dicom({f"{number}.dcm": one for number, one in enumerate(contents)})

  def subjects(self, files: Files) -> list[str]:
    """Accepts the address of the server and files of the series."""
    return ["http://127.0.0.1", "/series", ".dcm"]

  def _promised(self, files: Files) -> int:
    try:
      found = json.loads(files[SEARCH].partition(b"\r\n\r\n")[2])
      return int((found if isinstance(found, dict) else found[0])["00201209"]["Value"][0])
    except (ValueError, LookupError, TypeError):
      return len(super().variants()["series"])

  def _serve(self, listener: socket.socket) -> None:
    while True:
      try:
        connection, _ = listener.accept()
      except OSError:
        return
      with connection, contextlib.suppress(OSError):
        connection.settimeout(TIMEOUT)
        request = b""
        while b"\r\n\r\n" not in request and (part := connection.recv(1 << 16)):
          request += part
        connection.sendall(self._answers[b"/series/" in request.partition(b"\r\n")[0]])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the client has closed, too


def _answer(kind: str, body: bytes) -> bytes:
  return (f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
          "Connection: close\r\n\r\n").encode() + body
