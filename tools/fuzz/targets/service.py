"""The service: requests with bodies of NIfTI and DICOM to a running condseg-serve.

Every request gets one answer: 4xx or 5xx with one line of JSON, or what the intact request gets,
or the answer to another valid request. A request that its own Content-Length makes incomplete may
end without an answer. Afterwards the service has to be ready, without files and without memory of
the request.
"""

import contextlib
import gzip
import http.client
import io
import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys
import time
import zipfile

import h11

from condseg_jax.errors import InputError
from tools.fuzz import content as standard
from tools.fuzz.members import zip_members
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target
from tools.fuzz.targets import images

ANSWER_SECONDS = 45.0  # longer than the service waits for a slow body
START_SECONDS = 120.0
MAX_GROWTH = 1 << 30  # bytes that a worker may keep
ROOT = Path(__file__).parents[3]


class Service(Target):
  """Requests to /predict, raw: head and body."""

  name = "http"
  command_name = "serve"
  seconds = 2 * ANSWER_SECONDS
  every = 0
  isolated = False  # the service is a process of its own

  def __init__(self, home: Path):
    super().__init__(home)
    self._process: subprocess.Popen | None = None
    self._port, self._memory = 0, 0

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the requests."""
    plain = next(iter(images.Nifti(self.home).variants()["plain"].values()))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
      for name, content in images.Dicom(self.home).variants()["series"].items():
        opened.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    form = (b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
            + plain + b"\r\n--frontier--\r\n")
    kind = "Content-Type: multipart/form-data; boundary=frontier"
    return {"plain": {"request": request(plain)},
            "gz": {"request": request(gzip.compress(plain, mtime=0))},
            "zip": {"request": request(stream.getvalue())},
            "form": {"request": request(form, kind)}}

  def places(self, files: Files) -> list[Place]:
    """Returns the head, the bytes of all, and the body with its length made right."""
    body = files["request"].partition(b"\r\n\r\n")[2]
    places = [Place("request", "head", (), 3), Place("request"),
              Place("request", "bytes", ("body",), 3)]
    if body.startswith(b"\x1f\x8b"):
      return [*places, Place("request", "nifti", ("body", "gzip"), 3)]
    if body.startswith(b"PK"):
      return [*places, Place("request", "zip", ("body",), 2), Place(
          "request", "dicom", ("body", "zip/slice_1.dcm"), 2)]
    return [*places, *([] if body.startswith(b"--") else [Place("request", "nifti", ("body",), 3)])]

  def flags(self) -> list[str]:
    """Returns further flags of the service."""
    return []

  def left(self) -> list[Path]:
    """Returns files of requests that should have been removed."""
    return list((self.home / "requests").glob("condseg-serve-*/*"))

  def warm_up(self) -> None:
    """Starts the service and waits until it is ready."""
    if self._process is not None and self._process.poll() is None:
      return
    from tools.fuzz.targets import models
    (self.home / "requests").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "condseg_jax.cli.serve", "--port=0", "--max_mb=4",
               f"--workdir={models.bundle_path(self.home)}", *self.flags()]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with (self.home / "service.log").open("wb") as log:
      self._process = subprocess.Popen(command, stdout=log, stderr=log, env={
          **os.environ, "TMPDIR": str(self.home / "requests"), "PYTHONPATH": path,
          "JAX_PLATFORMS": "cpu"})
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and self._process.poll() is None:
      text = (self.home / "service.log").read_text(errors="replace")
      if re.search(r"  ready$", text, re.MULTILINE):
        found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        assert found is not None
        self._port, self._memory = int(found[1]), self._resident()
        return
      time.sleep(0.1)
    self.close()
    raise RuntimeError("the service does not start")

  def close(self) -> None:
    """Ends the service."""
    if self._process is not None:
      self._process.terminate()
      try:
        self._process.wait(20)
      except subprocess.TimeoutExpired:
        self._process.kill()
        self._process.wait()
      self._process = None

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Sends the request, and looks at the service afterwards."""
    self.warm_up()
    request = (folder / "request").read_bytes()
    status, headers, body = self._send(request)
    trouble = self.trouble()
    if trouble:
      return 0, {"unsound": trouble}
    if status is None:
      if _complete(request):
        return 0, {"unsound": "no answer to a whole request"}
      raise InputError("request", "is incomplete; the connection was closed", "send all of it")
    if status < 300:
      return 0, {"status": status, "answer": self.answer(headers, body)}
    if status < 400:
      place = headers.get("location", "")
      return 0, {"unsound": f"redirects to {place}" if "//" in place else "redirects"}
    return self._refusal(request, status, body)

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts answers to other valid requests, and for bodies that are other valid volumes."""
    head, _, body = files["request"].partition(b"\r\n\r\n")
    if not head.startswith(b"POST /predict"):
      return "a request to another address"
    length = re.search(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r?$", head)
    if length:
      body = body[:int(length[1])]  # the rest would be another request
    if body == intact["request"].partition(b"\r\n\r\n")[2]:
      return "another query, or other headers"
    volume, answer = _strictly(body), content["answer"]
    if isinstance(answer, dict) and answer.get("shape") != volume["shape"]:
      raise standard.Damaged("the body has another shape")
    return images.VALID

  def answer(self, headers: dict[str, str], body: bytes) -> object:
    """Returns of an answer what equal requests have in common."""
    if "json" not in headers.get("content-type", ""):
      return headers.get("content-type", "")
    tree = json.loads(body)
    tree.pop("seconds", None)
    return tree

  def subjects(self, files: Files) -> list[str]:
    """Accepts any subject: errors are in terms of the request."""
    return [""]

  def _send(self, request: bytes) -> tuple[int | None, dict[str, str], bytes]:
    """Returns status, headers and body of the answer; None for no answer."""
    with socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS) as connection:
      with contextlib.suppress(ConnectionError):  # refused while it is being sent
        connection.sendall(request)
        if not _complete(request):
          connection.shutdown(socket.SHUT_WR)
      method = "HEAD" if request.startswith(b"HEAD ") else "GET"
      response = http.client.HTTPResponse(connection, method=method)
      try:
        response.begin()
        body = response.read()
      except (http.client.HTTPException, ConnectionError):
        return None, {}, b""
      return response.status, {k.lower(): v for k, v in response.getheaders()}, body

  def _refusal(self, request: bytes, status: int, body: bytes) -> tuple[int, dict]:
    if request.startswith(b"HEAD "):
      raise InputError("request", str(status), "no body to look at")
    try:
      line = json.loads(body)
      parts = line["error"], line["reason"], line["cure"]
    except (ValueError, KeyError, TypeError):
      return 0, {"unsound": f"{status} without its line of JSON"}
    if body.count(b"\n") > 1 or str(self.home) in body.decode("utf-8", "replace"):
      return 0, {"unsound": f"{status} with more than a line, or with a path of the machine"}
    if status == 500 or "crashed" in parts[1] or "exited" in parts[1]:
      return 0, {"unsound": f"{status}: {parts[1]}"}
    raise InputError(*map(_one_line, parts))

  def trouble(self) -> str:
    """Returns what is wrong with the service now, "" for nothing."""
    end = time.monotonic() + 5
    while left := self.left():
      if time.monotonic() > end:
        return f"files are left: {left[0].name}"
      time.sleep(0.01)
    connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
    try:
      connection.request("GET", "/health")
      if connection.getresponse().status != 200:
        return "not ready afterwards"
    except OSError as error:
      return f"does not answer afterwards: {error}"
    finally:
      connection.close()
    growth = self._resident() - self._memory
    return f"keeps {growth >> 20} MiB" if growth > MAX_GROWTH else ""

  def _resident(self) -> int:
    """Returns the memory of the service and its worker, in bytes."""
    assert self._process is not None
    total, waiting = 0, [self._process.pid]
    while waiting:
      process = Path("/proc") / str(waiting.pop())
      with contextlib.suppress(OSError, AttributeError):
        text = (process / "status").read_text()
        total += 1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1])
        waiting += (process / "task" / process.name / "children").read_text().split()
    return total


def request(body: bytes, *headers: str, to: str = "POST /predict?output=statistics") -> bytes:
  """Returns a request.

  Args:
    body: its body.
    headers: further lines of its head.
    to: method and address.
  """
  head = [f"{to} HTTP/1.1", "Host: 127.0.0.1", "Connection: close",
          f"Content-Length: {len(body)}", *headers]
  return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _complete(request: bytes) -> bool:
  """Returns whether a request is a whole one, by its own length, or is no HTTP."""
  connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
  if not request:  # would be the end of a connection for h11
    return False
  try:
    connection.receive_data(request)
    while True:
      event = connection.next_event()
      if event is h11.NEED_DATA:
        return False
      if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
        return True
  except h11.RemoteProtocolError:
    return True


def _strictly(body: bytes) -> dict:
  if body.startswith(b"PK"):
    zip_members(body)
    with zipfile.ZipFile(io.BytesIO(body)) as opened:
      return standard.dicom({name: opened.read(name) for name in opened.namelist()
                             if not name.startswith((".", "__MACOSX/"))})  # hidden: skipped
  if body.startswith(b"--"):
    body = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
  return standard.nifti(body, body.startswith(b"\x1f\x8b"))


def _one_line(text: str) -> str:
  return " ".join(str(text).split())
