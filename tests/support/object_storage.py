"""Real servers of S3 and Google Cloud Storage on the loopback, each in a process of its own."""

from collections import Counter
from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple
import urllib.parse
import urllib.request

import pytest

from support.waiting import free_port
from support.waiting import listens
from support.waiting import until

ROOT = Path(__file__).parents[2]
# moto needs an older python-dateutil than is pinned here, so it has an environment of its own.
MOTO = ROOT / ".venv" / "moto" / "bin" / "moto_server"
REQUEST = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/1\.1" (?P<status>\d+)')


class Request(NamedTuple):
  """A line of the access log; the path is decoded and begins with the bucket."""

  method: str
  path: str
  status: int


class Relay:
  """Passes bytes on to a server and counts those that it sends; can be cut like a cable."""

  def __init__(self, port: int):
    self._port, self.sent, self.port = port, 0, free_port()
    self._ends: set[socket.socket] = set()
    self.start()

  def start(self) -> None:
    """Listens."""
    self._listener = socket.create_server(("127.0.0.1", self.port))
    threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

  def cut(self) -> None:
    """Refuses connections, and ends those there are."""
    with contextlib.suppress(OSError):  # wakes the thread that accepts
      self._listener.shutdown(socket.SHUT_RDWR)
    self._listener.close()
    for end in tuple(self._ends):  # their threads close them
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  def _accept(self, listener: socket.socket) -> None:
    while True:
      try:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", self._port))
      except OSError:
        return
      self._ends |= {client, server}
      threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

  def _relay(self, client: socket.socket, server: socket.socket) -> None:
    back = threading.Thread(target=self._pass, args=(server, client, True), daemon=True)
    back.start()
    self._pass(client, server, False)
    back.join()
    for end in (client, server):
      self._ends.discard(end)
      end.close()

  def _pass(self, one: socket.socket, other: socket.socket, counts: bool) -> None:
    with contextlib.suppress(OSError):
      while data := one.recv(1 << 16):
        self.sent += len(data) * counts
        other.sendall(data)
    for end in (one, other):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class S3:
  """A running moto.

  Attributes:
    relay: where clients reach it.
    url: address of the relay.
  """

  def __init__(self, port: int, log: Path):
    self._log, self._direct = log, f"http://127.0.0.1:{port}"
    self.relay = Relay(port)
    self.url = f"http://127.0.0.1:{self.relay.port}"
    self._names = 0

  @property
  def environment(self) -> dict[str, str]:
    """What a client needs, and nothing else."""
    return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2"}

  def bucket(self) -> str:
    """Makes a new bucket and returns its name."""
    self._names += 1
    self._ask("PUT", f"bucket-{self._names}")
    return f"bucket-{self._names}"

  def authorise(self, required: bool) -> None:
    """Lets it check who asks: with `required`, it knows nobody and refuses everybody."""
    self._ask("POST", "moto-api/reset-auth", b"0" if required else b"inf")

  def requests(self) -> list[Request]:
    """Returns all requests so far."""
    found = REQUEST.finditer(self._log.read_text())
    return [Request(m["method"], urllib.parse.unquote(m["path"]).lstrip("/"), int(m["status"]))
            for m in found]

  def reads(self, since: int, part: str) -> Counter:
    """Counts object → reads of it, after a number of requests, whose path contains a part."""
    return Counter(r.path for r in self.requests()[since:]
                   if r.method == "GET" and part in r.path and "?" not in r.path)

  def _ask(self, method: str, path: str, data: bytes = b"") -> None:
    request = urllib.request.Request(f"{self._direct}/{path}", data=data, method=method,
                                     headers={"Content-Type": "text/plain"})
    with urllib.request.urlopen(request) as answer:
      answer.read()


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[S3]:
  """Starts moto's server; the test is skipped where it is not installed."""
  program = str(MOTO) if MOTO.exists() else shutil.which("moto_server")
  if not program:
    pytest.skip("moto_server is not installed")
  port, log = free_port(), folder / "moto.log"
  inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "AWS_"))}
  with _server([program, "-H", "127.0.0.1", "-p", str(port)], log, port, inherited):
    server = S3(port, log)
    yield server
    server.relay.cut()


@contextlib.contextmanager
def google(folder: Path) -> Iterator[str]:
  """Starts an emulator of Google Cloud Storage with the bucket `bucket`; yields its address."""
  for name in ("gcsfs", "gcp_storage_emulator"):
    pytest.importorskip(name, reason=f"{name} is not installed, see docs/buckets.md")
  port = free_port()
  program = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port",
             str(port), "--in-memory", "--default-bucket", "bucket"]
  with _server(program, folder / "gcs.log", port, dict(os.environ)):
    yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _server(program: list[str], log: Path, port: int, environment: dict) -> Iterator[None]:
  with log.open("w") as stream:
    process = subprocess.Popen(program, stdout=stream, stderr=stream, env=environment,
                               start_new_session=True)
  try:
    until(lambda: listens(port) or process.poll() is not None)
    assert process.poll() is None, log.read_text()[-2000:]
    time.sleep(0.1)
    yield
  finally:
    process.terminate()
    process.wait(30)
