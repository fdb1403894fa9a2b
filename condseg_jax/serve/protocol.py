"""HTTP as uvicorn speaks it, but for two things: what is no HTTP is told in the one line of every
refusal, and a connection that never gets to a request is closed.
"""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from condseg_jax.serve.refusal import Refusal

HEADER_SECONDS = 30.0


class Protocol(H11Protocol):
  """One connection."""

  def connection_made(self, transport: asyncio.Transport) -> None:
    super().connection_made(transport)
    self._idle = self.loop.call_later(HEADER_SECONDS, self._close_idle)

  def connection_lost(self, exc: Exception | None) -> None:
    self._idle.cancel()  # or it would hold all that hangs on the connection
    super().connection_lost(exc)

  def send_400_response(self, msg: str) -> None:
    refusal = Refusal(400, "request", "is no valid HTTP", "look at how its body is framed")
    body = json.dumps(refusal.to_json()).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))),
               ("Connection", "close")]
    if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
      for event in (h11.Response(status_code=400, headers=headers, reason="Bad Request"),
                    h11.Data(data=body), h11.EndOfMessage()):
        self.transport.write(self.conn.send(event))
    self.transport.close()

  def on_response_complete(self) -> None:
    super().on_response_complete()
    self._idle.cancel()
    self._idle = self.loop.call_later(HEADER_SECONDS, self._close_idle)

  def _close_idle(self) -> None:
    if self.cycle is None or self.cycle.response_complete:
      self.transport.close()
