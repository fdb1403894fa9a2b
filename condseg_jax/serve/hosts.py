"""Refuses requests that pages of other sites make through the browser of a user.

Any page can let its visitor's browser send requests to an address that only the visitor reaches.
Two cases are refused:

- The attacker's own name points to the address of this service (DNS rebinding), so that the browser
  lets the page read the answers. The header `Host` then holds that name: it must be one of this
  service.
- The page sends a request (POST) and cannot read the answer. `Origin` and `Sec-Fetch-Site` then
  name another site.

Only browsers send the last two, so that programs need neither.
"""

from collections.abc import Collection
from collections.abc import Mapping
import ipaddress
import re
import socket

from condseg_jax.errors import InputError
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import MAX_VALUE

READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
_NAME = re.compile(r"[\w.-]+")
_HOST = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+)(:\d*)?")


class Hosts:
  """The names and addresses of the service.

  Args:
    host: address or name to listen on. Loopback addresses and `localhost` are always allowed. If
      it is the address of all interfaces, so are the name of this machine and all IP addresses: an
      address is no name that an attacker can redirect, and behind a container's or router's address
      translation it is none of this machine.
    names: further names, e.g. that of a proxy.

  Raises:
    InputError: an invalid name.
  """

  def __init__(self, host: str, names: Collection[str] = ()):
    for name in names:
      if not _NAME.fullmatch(name) and _address(name) is None:
        raise InputError("allowed_hosts", f"{name!r} is not a host name",
                         "give names without scheme and port", usage=True)
    self._given = {_normal(name) for name in names}
    self._names = {"localhost", _normal(host), *self._given}
    address = _address(host)
    self._every_address = address is not None and address.is_unspecified
    if self._every_address:
      name = _normal(socket.gethostname())
      self._names |= {name, name.partition(".")[0]}

  def check(self, method: str, headers: Mapping[str, str]) -> None:
    """Checks a request.

    Args:
      method: HTTP method.
      headers: of the request.

    Raises:
      HttpError: the request is for another host (421), or comes from another site (403).
    """
    host = headers.get("host")  # HTTP/1.0 has none
    if host is not None and not self._is_own(host):
      raise HttpError(421, "Host", f"{host[:MAX_VALUE]!r} is not a name of this service",
                      "use the address at which it listens, or start it with --allowed_hosts")
    if method not in READING and self._is_foreign(headers):
      raise HttpError(403, "Origin", "the request comes from a page of another site",
                      "use the page of this service or a program, or start it with "
                      "--allowed_hosts")

  def _is_own(self, host: str) -> bool:
    name = _without_port(host)
    address = _address(name)
    return _normal(name) in self._names or (
        address is not None and (address.is_loopback or self._every_address))

  def _is_foreign(self, headers: Mapping[str, str]) -> bool:
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):  # else same-origin, none
      return True
    origin = headers.get("origin")
    if origin is None:
      return False
    netloc = origin.partition("://")[2].lower()
    # Behind a proxy, `Host` may be the proxy's address of this service, but `Origin` is its own.
    return netloc != headers.get("host", "").lower() and (
        _normal(_without_port(netloc)) not in self._given)


def _without_port(host: str) -> str:
  match = _HOST.fullmatch(host.strip())
  return match[1].strip("[]") if match else ""


def _normal(name: str) -> str:
  address = _address(name)
  return name.lower().rstrip(".") if address is None else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
  try:
    return ipaddress.ip_address(name.strip("[]"))
  except ValueError:
    return None
