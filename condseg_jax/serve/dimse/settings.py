"""The file that configures a DICOM node: who may send to it, and where results go."""

from collections.abc import Mapping
import ipaddress
import json
import math
import os
from pathlib import Path
import re
import socket
from typing import NamedTuple

from condseg_jax.errors import InputError
from condseg_jax.serve.request import DICOM_OUTPUTS
from condseg_jax.serve.request import PredictRequest

# Objects to send → the output of the service that contains them.
OUTPUTS = {tuple(sorted(kinds)): output for output, kinds in DICOM_OUTPUTS.items()}
KEYS = ("spool", "peers", "send_to", "objects", "classes", "preset", "listen", "quiet_seconds",
        "tls")
_AET = re.compile(r"[A-Za-z0-9_.-]{1,16}")


class Peer(NamedTuple):
  """Another node.

  Attributes:
    aet: its application entity title.
    host: its address or name.
    port: at which it listens; 0 for one that only sends.
  """

  aet: str
  host: str
  port: int = 0

  def addresses(self) -> set[str]:
    """Returns its IP addresses.

    Raises:
      InputError: its name is unknown.
    """
    try:
      found = socket.getaddrinfo(self.host, None)
    except (OSError, UnicodeError) as error:
      raise InputError(f"peer {self.aet}", f"the host {self.host!r} is unknown",
                       "correct `host`") from error
    return {normal(str(entry[4][0])) for entry in found}


class Tls(NamedTuple):
  """Files (PEM) with which a node and its peers identify each other.

  Attributes:
    certificate: of the node, followed by those that lead to its authority.
    key: of the certificate, without a password.
    authority: certificates that those of all peers must lead to.
  """

  certificate: str
  key: str
  authority: str


class Node(NamedTuple):
  """A DICOM node.

  Attributes:
    aet: its application entity title.
    port: at which it listens.
    listen: address at which it listens.
    peers: those that may send; all others are rejected.
    send_to: where results go.
    spool: folder of what was received and is not answered yet.
    quiet_seconds: without a new slice, after which a series is complete although its association is
      open.
    request: what is predicted.
    tls: None for associations without encryption.
  """

  aet: str
  port: int
  listen: str
  peers: tuple[Peer, ...]
  send_to: Peer
  spool: Path
  quiet_seconds: float
  request: PredictRequest
  tls: Tls | None = None


def read_node(address: str, path: str | os.PathLike) -> Node:
  """Reads the configuration of a node.

  Args:
    address: AET:PORT.
    path: a JSON object with the keys `KEYS`; see docs/dicom-node.md.

  Raises:
    InputError: an invalid address, a file that cannot be read, or an invalid value in it.
  """
  aet, _, port = address.rpartition(":")
  if not _AET.fullmatch(aet) or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
    raise InputError(address, "is not of the form AET:PORT", "give, for example, CONDSEG:11112",
                     usage=True)
  try:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
  except OSError as error:
    raise InputError(path, f"cannot be read: {error.strerror}", "check the path",
                     usage=True) from error
  except (ValueError, RecursionError) as error:
    raise InputError(path, f"is not JSON ({error})", "correct it", usage=True) from error
  reader = _Reader(path, content)
  return Node(aet, int(port), reader.text("listen", "127.0.0.1"), reader.peers(), reader.send_to(),
              Path(reader.text("spool")), reader.quiet_seconds(), reader.request(), reader.tls())


def normal(address: str) -> str:
  """Returns an IP address in the form in which equal ones are equal texts."""
  try:
    parsed = ipaddress.ip_address(address.partition("%")[0])
  except ValueError:
    return address
  mapped = getattr(parsed, "ipv4_mapped", None)
  return str(mapped or parsed)


class _Reader:
  """Takes checked values from the content of the file."""

  def __init__(self, path: str | os.PathLike, content: object):
    self._path = path
    self._content = self._object("the file", content, KEYS)

  def text(self, key: str, default: str | None = None) -> str:
    value = self._content.get(key, default)
    if not isinstance(value, str) or not value:
      raise self._error(f"`{key}` is {'missing' if value is None else 'no text'}")
    return value

  def peers(self) -> tuple[Peer, ...]:
    entries = self._content.get("peers")
    if not isinstance(entries, list) or not entries:
      raise self._error("`peers` lists nobody who may send")
    return tuple(self._peer("peers", entry, ("aet", "host")) for entry in entries)

  def send_to(self) -> Peer:
    return self._peer("send_to", self._content.get("send_to"), ("aet", "host", "port"))

  def quiet_seconds(self) -> float:
    value = self._content.get("quiet_seconds", 30)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (
        0 < value < math.inf):
      raise self._error("`quiet_seconds` is not a positive number")
    return float(value)

  def tls(self) -> Tls | None:
    if "tls" not in self._content:
      return None
    entry = self._object("`tls`", self._content["tls"], Tls._fields)
    values = [entry.get(name) for name in Tls._fields]
    if not all(isinstance(value, str) and value for value in values):
      raise self._error(f"`tls` needs the files {', '.join(Tls._fields)}")
    return Tls(*map(str, values))

  def request(self) -> PredictRequest:
    kinds = tuple(sorted(set(self._texts("objects", ["seg"]))))
    if kinds not in OUTPUTS:
      raise self._error('`objects` must be ["seg"], ["rtstruct"] or both')
    preset = self._content.get("preset", "")
    if not isinstance(preset, str):
      raise self._error("`preset` is no text")
    return PredictRequest(classes=tuple(self._texts("classes", [])), preset=preset,
                          output=OUTPUTS[kinds])

  def _texts(self, key: str, default: list[str]) -> list[str]:
    value = self._content.get(key, default)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
      raise self._error(f"`{key}` is no list of texts")
    return value

  def _peer(self, key: str, content: object, fields: tuple[str, ...]) -> Peer:
    entry = self._object(f"`{key}`", content, fields)
    aet, host, port = entry.get("aet"), entry.get("host"), entry.get("port", 0)
    if not isinstance(aet, str) or not _AET.fullmatch(aet):
      raise self._error(f"`{key}` has no `aet` of at most 16 letters and digits")
    if not isinstance(host, str) or not host:
      raise self._error(f"`{key}` has no `host`")
    if "port" in fields and (type(port) is not int or not 0 < port < 65536):
      raise self._error(f"`{key}` has no valid `port`")
    return Peer(aet, host, port)

  def _object(self, name: str, content: object, keys: tuple[str, ...]) -> Mapping:
    if not isinstance(content, dict):
      raise self._error(f"{name} is no JSON object")
    for key in content:
      if key not in keys:
        raise self._error(f"{name} has the unknown key {key!r}; known are {', '.join(keys)}")
    return content

  def _error(self, reason: str) -> InputError:
    return InputError(self._path, reason, "see docs/dicom-node.md", usage=True)
