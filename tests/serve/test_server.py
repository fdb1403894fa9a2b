"""Connections with invalid HTTP or without any data, and the imports of the web process."""

import contextlib
import json
import socket
import subprocess
import sys

import psutil
import pytest

from condseg_jax.serve import server
from condseg_jax.serve.app import WEB
from condseg_jax.serve.request import Limits
from support.service import Inside
from support.service import LIMITS
from support.service import listening
from support.service import network
from support.waiting import until

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture(scope="module")
def address(predictor, tmp_path_factory):
  with listening(Inside(predictor, LIMITS), tmp_path_factory.mktemp("requests")) as made:
    yield made.removeprefix("http://").split(":")


def answer(address, sent):
  """All that comes back until the connection is closed."""
  with socket.create_connection((address[0], int(address[1]))) as connection:
    connection.sendall(sent)
    parts = []
    while part := connection.recv(1 << 16):
      parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("sent", [
    b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    HEAD + b"Content-Length: -5\r\n\r\n", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n"])
def test_invalid_http(address, sent):
  head, _, body = answer(address, sent).partition(b"\r\n\r\n")
  assert head.startswith(b"HTTP/1.1 400 "), head
  assert body.count(b"\n") == 1 and set(json.loads(body)) == {"error", "reason", "cure"}


def test_the_web_process_is_light():
  """What reads images or predicts is imported by the worker alone."""
  code = "import sys, condseg_jax.serve.server; print(*sys.modules)"
  loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
  assert not {b"jax", b"scipy", b"nibabel", b"SimpleITK", b"matplotlib"} & set(loaded.split())


def test_a_connection_that_says_nothing_is_closed(address, monkeypatch):
  monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
  assert answer(address, b"") == answer(address, HEAD) == b""
  monkeypatch.setattr(server, "IDLE_SECONDS", 3600)
  request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
  assert answer(address, request).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_begins_another_request_and_stops_is_closed(address, monkeypatch):
  monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
  found = answer(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG")
  assert found.startswith(b"HTTP/1.1 200 ") and found.count(b"HTTP/1.1") == 1


# Nothing, half of a header, and a request that is refused before its body is complete.
@pytest.mark.parametrize("begin", [b"", b"GET /he", HEAD.replace(b"localhost", b"other")
                                   + b"Content-Length: 99\r\n\r\nbegin"])
def test_idle_connections_give_way(address, monkeypatch, begin):
  monkeypatch.setattr(server, "MAX_CONNECTIONS", 10)
  request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
  with contextlib.ExitStack() as stack:
    idle = []
    for _ in range(30):
      idle.append(stack.enter_context(socket.create_connection((address[0], int(address[1])))))
      idle[-1].sendall(begin)
    assert answer(address, request).startswith(b"HTTP/1.1 200 ")
    with contextlib.suppress(ConnectionResetError):
      while idle[0].recv(1000):  # the oldest
        pass


def is_accepted(connection):
  """Whether the service, in this process, has a socket for a connection."""
  return connection.getsockname() in [c.raddr for c in psutil.Process().net_connections()]


def test_a_connection_that_reads_nothing_is_closed(address, monkeypatch):
  monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
  count, request = 1000, b"GET /viewer.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
  with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address[0], int(address[1])))
    connection.sendall(count * request)
    until(lambda: is_accepted(connection))
    until(lambda: not is_accepted(connection))
    received = 0
    with contextlib.suppress(ConnectionResetError):
      while part := connection.recv(1 << 20):
        received += len(part)
  assert received < count * (WEB / "viewer.js").stat().st_size


def test_slow_senders_do_not_keep_others_out(predictor, tmp_path):
  limits = Limits(body=1 << 20, waiting=1, contended_seconds=0.2)
  with contextlib.ExitStack() as stack:
    made = stack.enter_context(listening(Inside(predictor, limits), tmp_path, limits))
    place = made.removeprefix("http://").split(":")
    slow = [stack.enter_context(socket.create_connection((place[0], int(place[1]))))
            for _ in range(6)]
    for connection in slow:
      connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nbegin")
    request = HEAD + b"Content-Length: 5\r\nConnection: close\r\n\r\nwhole"
    until(lambda: answer(place, request).startswith(b"HTTP/1.1 415 "))  # it has been read
    assert any(connection.recv(100).startswith(b"HTTP/1.1 408 ") for connection in slow[:2])
