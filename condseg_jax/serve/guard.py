"""In front of all routes: refuses requests that may not be made, counts and notes the others."""

import time
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp
from starlette.types import Message
from starlette.types import Receive
from starlette.types import Scope
from starlette.types import Send

from condseg_jax.serve.audit import Audit
from condseg_jax.serve.exchange import send_error
from condseg_jax.serve.hosts import Hosts
from condseg_jax.serve.metrics import Metrics
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.tokens import Tokens
from condseg_jax.serve.upload import Incoming

# Without a token: probes of orchestrators, and where clients of MONAI Label send theirs first.
OPEN = ("/health", "/live", "/auth/", "/auth/token")
UNNOTED = ("/health", "/live", "/metrics", "/queue/{ticket}")  # asked all the time
GONE = 499  # the client has disconnected before an answer; as other servers count it


class Access(NamedTuple):
  """Who may ask, and where it is noted.

  Attributes:
    hosts: names of the service; requests for other hosts or from other sites are refused.
    tokens: one of which every request must have; None: anybody may ask.
    audit: None for no audit log.
  """

  hosts: Hosts
  tokens: Tokens | None = None
  audit: Audit | None = None


class Guard:
  """Middleware, see the module. The name of the token is the `owner` in the request's state."""

  def __init__(self, app: ASGIApp, access: Access, limits: Limits, metrics: Metrics):
    self._app, self._access, self._limits, self._metrics = app, access, limits, metrics

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers, start, status = Headers(scope=scope), time.monotonic(), GONE
    state = scope.setdefault("state", {})
    state["owner"] = ""

    async def noting(message: Message) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    admitted = False
    try:
      self._access.hosts.check(scope["method"], headers)
      if self._access.tokens and scope["path"] not in OPEN:
        state["owner"] = self._access.tokens.check(headers.get("authorization", ""))
      admitted = True
      await self._app(scope, receive, noting)
    except HttpError as error:
      await send_error(scope, error, Incoming(receive, headers, self._limits), noting)
    except Exception:  # answered outside of this
      status = 500
      raise
    finally:
      self._note(scope, admitted, status, time.monotonic() - start)

  def _note(self, scope: Scope, admitted: bool, status: int, seconds: float) -> None:
    route = scope.get("route")
    name = route.path if isinstance(route, Route) else "other"
    self._metrics.answered(name, status)
    audit, state = self._access.audit, scope["state"]
    if audit is None or name in UNNOTED:
      return
    if admitted and (state["owner"] or not self._access.tokens):
      audit.write(state["owner"], name, status, seconds, state.get("classes", ""))
    else:
      audit.write_stranger(name, status)
