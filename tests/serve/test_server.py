"""Connections with invalid HTTP or without any data, and the imports of the web process."""

import json
import socket
import subprocess
import sys

import pytest

from condseg_jax.serve import server
from support.service import Inside
from support.service import LIMITS
from support.service import listening
from support.service import network

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  with listening(Inside(network(), LIMITS), tmp_path_factory.mktemp("requests")) as made:
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
  monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)
  assert answer(address, b"") == answer(address, HEAD) == b""
  monkeypatch.setattr(server, "HEADER_SECONDS", 3600)
  request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
  assert answer(address, request).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_begins_another_request_and_stops_is_closed(address, monkeypatch):
  monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
  found = answer(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG")
  assert found.startswith(b"HTTP/1.1 200 ") and found.count(b"HTTP/1.1") == 1
