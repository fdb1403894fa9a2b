"""A headless Chromium, spoken to over its debugging pipe; shared by the tests of pages.

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import tempfile
import time

FLAGS = ("--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-gpu",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--remote-debugging-pipe")


def find() -> str | None:
  """The browser of this machine."""
  return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
              None)


class Browser:
  """One page of a browser."""

  def __init__(self, to, answers):
    self._to, self._answers, self._rest = to, answers, b""
    self._count, self._session = 0, {}
    self.events: list[dict] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = {"sessionId": attached["sessionId"]}
    for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **parameters) -> dict:
    """Calls a method; what happens meanwhile is kept in `events`."""
    self._count += 1
    message = {"id": self._count, "method": method, "params": parameters, **self._session}
    self._to.write(json.dumps(message).encode() + b"\0")
    self._to.flush()
    while True:
      told = self._read()
      if told.get("id") == self._count:
        assert "error" not in told, f"{method}: {told['error']}"
        return told["result"]
      self.events.append(told)

  def open(self, address: str) -> None:
    self.call("Page.navigate", url=address)

  def run(self, script: str):
    """The value of an expression in the page."""
    told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in told, told["exceptionDetails"]
    return told["result"].get("value")

  def until(self, script: str) -> None:
    """Waits until an expression is true; a page with errors may wait for ever."""
    while not self.run(f"Boolean({script})"):
      assert not self.complaints(), self.complaints()
      time.sleep(0.05)

  def choose(self, selector: str, *paths: Path) -> None:
    """Chooses files in an input element."""
    node = self.call("DOM.querySelector", selector=selector,
                     nodeId=self.call("DOM.getDocument")["root"]["nodeId"])["nodeId"]
    self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

  def download(self, selector: str, folder: Path) -> Path:
    """Clicks a link and waits for its file."""
    self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder),
              eventsEnabled=True)
    self.run(f"document.querySelector({selector!r}).click()")
    while not any(e.get("method") == "Browser.downloadProgress"
                  and e["params"]["state"] == "completed" for e in self.events):
      self.run("0")
      time.sleep(0.05)
    (name,) = [e["params"]["suggestedFilename"] for e in self.events
               if e.get("method") == "Browser.downloadWillBegin"]
    return folder / name

  def look(self, width: int = 1400, height: int = 900, scheme: str = "light") -> None:
    """Sets the window, and whether the person likes it dark."""
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=False)
    self.call("Emulation.setEmulatedMedia",
              features=[{"name": "prefers-color-scheme", "value": scheme}])

  def picture(self) -> bytes:
    """The whole page as PNG."""
    told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    return base64.b64decode(told["data"])

  def complaints(self) -> list[str]:
    """Uncaught exceptions and blocked loads in the page so far."""
    found = []
    for event in self.events:
      told = event.get("params", {})
      if event.get("method") == "Runtime.exceptionThrown":
        found.append(told["exceptionDetails"]["exception"]["description"][:500])
      elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
        found.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
    return found

  def addresses(self) -> list[str]:
    """What the page has asked for."""
    return [e["params"]["request"]["url"] for e in self.events
            if e.get("method") == "Network.requestWillBeSent"]

  def _read(self) -> dict:
    while b"\0" not in self._rest:
      part = self._answers.read(1 << 16)
      assert part, "the browser has ended"
      self._rest += part
    message, _, self._rest = self._rest.partition(b"\0")
    return json.loads(message)


@contextlib.contextmanager
def browser(program: str):
  """Starts a browser with a profile of its own, and ends it."""
  with contextlib.ExitStack() as stack:
    profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    (for_it, to), (answers, from_it) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{for_it} 4>&{from_it}', "bash", program, *FLAGS,
         f"--user-data-dir={profile}"],  # it reads from 3 and writes to 4
        pass_fds=(for_it, from_it), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    os.close(for_it)
    os.close(from_it)
    to = stack.enter_context(os.fdopen(to, "wb"))
    answers = stack.enter_context(os.fdopen(answers, "rb", buffering=0))
    yield Browser(to, answers)
