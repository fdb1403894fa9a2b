"""Which requests are refused because of their Host, Origin or Sec-Fetch-Site."""

import socket

import pytest

from condseg_jax.errors import InputError
from condseg_jax.serve import hosts as module
from condseg_jax.serve.hosts import Hosts
from condseg_jax.serve.request import HttpError


def status(hosts, method="GET", **headers):
  """The status of a refusal, or 200."""
  try:
    hosts.check(method, {name.replace("_", "-"): value for name, value in headers.items()})
  except HttpError as error:
    return error.status
  return 200


LOCAL = ("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "127.0.0.2", "[::1]:80",
         "[0:0:0:0:0:0:0:1]")


@pytest.mark.parametrize("listen, names, own, others", [
    ("127.0.0.1", (), LOCAL, ("192.168.1.5:8000", "[fe80::1]", "scanner")),
    ("localhost", (), LOCAL, ("192.168.1.5",)),
    ("::1", (), LOCAL, ("[::2]",)),
    ("192.168.1.5", (), (*LOCAL, "192.168.1.5:8000"), ("192.168.1.6:8000", "scanner")),
    ("scanner", (), (*LOCAL, "Scanner:8000"), ("scanner.example", "192.168.1.5")),
    ("127.0.0.1", ("seg.example", "10.0.0.1"), (*LOCAL, "seg.example", "SEG.example:443",
                                                "10.0.0.1:80"), ("a.seg.example", "10.0.0.2")),
    ("0.0.0.0", (), (*LOCAL, "192.168.1.5:8000", "[fe80::1]:8000", "Lab7", "lab7.clinic.example"),
     ("lab7.evil.example",)),
    ("::", (), (*LOCAL, "192.168.1.5:8000", "lab7"), ())])
def test_names_of_the_service(monkeypatch, listen, names, own, others):
  monkeypatch.setattr(module.socket, "gethostname", lambda: "lab7.clinic.example")
  hosts = Hosts(listen, names)
  assert {host: status(hosts, host=host) for host in own} == dict.fromkeys(own, 200)
  others = (*others, "evil.example", "evil.example:8000", "localhost.evil.example", "", ":8000",
            "localhost@evil.example", "127.0.0.1:8000:8000", "[::1", "[]")
  assert {host: status(hosts, host=host) for host in others} == dict.fromkeys(others, 421)


def test_a_request_of_http_1_0_has_no_host():
  assert status(Hosts("127.0.0.1")) == 200


@pytest.mark.parametrize("headers, expected", [
    ({}, 200),  # a program
    ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, 200),
    ({"origin": "http://LOCALHOST:8000"}, 200),
    ({"sec_fetch_site": "none"}, 200),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "http://evil.example", "sec_fetch_site": "cross-site"}, 403),
    ({"sec_fetch_site": "cross-site"}, 403),
    ({"origin": "http://localhost:3000", "sec_fetch_site": "same-site"}, 403),
    ({"origin": "http://localhost:3000"}, 403),  # another program of this machine
    ({"origin": "null"}, 403),
    ({"origin": ""}, 403),
    ({"origin": "https://seg.example"}, 200)])  # a proxy that changes the Host
def test_pages_of_other_sites(headers, expected):
  hosts = Hosts("127.0.0.1", ["seg.example"])
  assert status(hosts, "POST", host="localhost:8000", **headers) == expected
  assert status(hosts, "GET", host="localhost:8000", **headers) == 200


@pytest.mark.parametrize("name", ["https://seg.example", "seg.example:8000", "a b", "", "*"])
def test_invalid_names(name):
  with pytest.raises(InputError, match="allowed_hosts: .* is not a host name") as caught:
    Hosts("127.0.0.1", [name])
  assert caught.value.usage


def test_the_name_of_this_machine():
  assert status(Hosts("0.0.0.0"), host=socket.gethostname()) == 200
