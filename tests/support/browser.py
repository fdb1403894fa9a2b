"""A headless Chromium, driven over two pipes by its DevTools protocol, without any network.

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
from collections.abc import Iterator
import contextlib
import fcntl
import io
import json
import os
from pathlib import Path
import select
import shutil
import subprocess
import time

import numpy as np
from PIL import Image

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
# WebGL in software, and nothing that a browser does of its own accord; every host is unknown.
FLAGS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
         "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions",
         "--disable-default-apps", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe")
PATIENCE = 120  # seconds; a machine under load is no fault


class Page:
  """One page of the browser.

  Attributes:
    requests: every URL that was asked for, by the browser's number of the request.
    blocked: numbers of those that the page's own policy stopped.
    complaints: exceptions and messages of the page.
  """

  def __init__(self, commands: int, answers: int, local: bool):
    self._commands, self._answers = commands, answers
    self._buffer, self._count, self._session = b"", 0, None
    self.requests: dict[str, str] = {}
    self.blocked: set[str] = set()
    self.complaints: list[str] = []
    self._downloads: dict[str, str] = {}
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
      self.call(f"{domain}.enable")
    if not local:
      self.call("Network.emulateNetworkConditions", offline=True, latency=0,
                downloadThroughput=0, uploadThroughput=0)

  def call(self, method: str, **parameters) -> dict:
    """One command of the protocol and its answer."""
    self._count += 1
    message = {"id": self._count, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._commands, data):]
    while True:
      answer = self._next()
      if answer.get("id") == self._count:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

  def open(self, address: Path | str, fragment: str = "", **look) -> None:
    """Opens a file, or an address of this machine, and waits until it has loaded; see `look`."""
    self.look(**look)
    url = address if isinstance(address, str) else address.as_uri()
    self.call("Page.navigate", url="about:blank")  # a fragment alone would load nothing
    self.call("Page.navigate", url=url + fragment)
    self.wait("location.protocol !== 'about:' && document.readyState === 'complete'")

  def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Sets the window, and whether the person likes it dark."""
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=False)
    self.call("Emulation.setEmulatedMedia",
              features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

  def choose(self, selector: str, *paths: Path) -> None:
    """Chooses files in an input element."""
    node = self.call("DOM.querySelector", selector=selector,
                     nodeId=self.call("DOM.getDocument")["root"]["nodeId"])["nodeId"]
    self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

  def download(self, selector: str, folder: Path) -> Path:
    """Clicks a link and waits for its file."""
    self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder),
              eventsEnabled=True)
    self._downloads = {}
    self.run(f"document.querySelector({json.dumps(selector)}).click()")
    end = time.monotonic() + PATIENCE
    while self._downloads.get("state") != "completed":
      assert time.monotonic() < end, "the download does not end"
      self.run("0")
      time.sleep(0.05)
    return folder / self._downloads["name"]

  def run(self, script: str):
    """The value of an expression, awaited where it is a promise."""
    answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                       returnByValue=True)
    if "exceptionDetails" in answer:
      raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
    return answer["result"].get("value")

  def wait(self, condition: str) -> None:
    """Returns as soon as an expression is true."""
    end = time.monotonic() + PATIENCE
    while not self.run(condition):
      assert time.monotonic() < end, f"never true: {condition}; {self.complaints}"
      time.sleep(0.05)

  def picture(self, selector: str = "") -> np.ndarray:
    """What is to be seen of an element, or of the window: uint8 (H, W, 3)."""
    parameters = {}
    if selector:
      box = self.run(f"""(() => {{
          const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
          return {{x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height,
                   scale: 1}};}})()""")
      parameters = {"clip": box, "captureBeyondViewport": True}
    answer = self.call("Page.captureScreenshot", format="png", **parameters)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB"))

  def _next(self) -> dict:
    end = time.monotonic() + PATIENCE
    while b"\0" not in self._buffer:
      ready, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
      part = os.read(self._answers, 1 << 20) if ready else b""
      assert part, "the browser has gone" if ready else "the browser is silent"
      self._buffer += part
    line, _, self._buffer = self._buffer.partition(b"\0")
    message = json.loads(line)
    self._note(message.get("method"), message.get("params", {}))
    return message

  def _note(self, method, parameters) -> None:
    if method == "Network.requestWillBeSent":
      self.requests[parameters["requestId"]] = parameters["request"]["url"]
    elif method == "Network.loadingFailed" and parameters.get("blockedReason") == "csp":
      self.blocked.add(parameters["requestId"])
    elif method == "Browser.downloadWillBegin":
      self._downloads["name"] = parameters["suggestedFilename"]
    elif method == "Browser.downloadProgress":
      self._downloads["state"] = parameters["state"]
    elif method == "Runtime.exceptionThrown":
      details = parameters["exceptionDetails"]
      self.complaints.append(details.get("exception", {}).get("description", details["text"]))
    elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error"):
      self.complaints.append(parameters["entry"]["text"])
    elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("warning", "error"):
      self.complaints.append(" ".join(str(a.get("value", a)) for a in parameters["args"]))


@contextlib.contextmanager
def browser(profile: Path, *, local: bool = False) -> Iterator[Page]:
  """A page of a new browser with an empty profile folder; `local` lets it reach 127.0.0.1."""
  ours, theirs = os.pipe(), os.pipe()  # commands to the browser, answers from it
  # The browser reads from descriptor 3 and writes to 4, so its ends must not lie there yet.
  read, write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1]))
  os.close(ours[0])
  os.close(theirs[1])
  shell = f'exec "$@" 3<&{read} 4>&{write}'
  process = subprocess.Popen(
      ["bash", "-c", shell, "browser", PROGRAM, *FLAGS, f"--user-data-dir={profile}"],
      pass_fds=(read, write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL)
  os.close(read)
  os.close(write)
  try:
    yield Page(ours[1], theirs[0], local)
  finally:
    process.terminate()
    try:
      process.wait(20)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
    os.close(ours[1])
    os.close(theirs[0])
