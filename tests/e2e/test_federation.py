"""A federation in real processes: server and three sites; one of these is killed, then the server.

Identities, TLS and messages are FLARE's, on the loopback.
"""

import json
from pathlib import Path
import signal
import socket
import ssl
import subprocess
import sys

import psutil
import pytest

from condseg_jax.cli.federate import main
from condseg_jax.loading import load
from support.tiny import overrides
from support.tiny import write_datasets
from support.tiny import write_msd
from support.waiting import free_port
from support.waiting import until

pytest.importorskip("nvflare", reason="the extra `federated` is not installed")

SITES = ("east", "north", "south")
ROUNDS = 10
SLOW = 400  # seconds; six processes import JAX on two cores


class Command:
  """A command in a process of its own, its output in a file."""

  def __init__(self, folder: Path, name: str, *arguments):
    self.output = folder / f"{name}.txt"
    with self.output.open("a") as stream:
      self.process = subprocess.Popen(
          [sys.executable, "-m", "condseg_jax.cli.federate", *map(str, arguments)], stdout=stream,
          stderr=stream, stdin=subprocess.DEVNULL, cwd=folder)

  def kill(self) -> None:
    """Ends it and all processes that it started, without a warning."""
    for one in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
      one.kill()
    self.process.wait(30)

  def text(self) -> str:
    return self.output.read_text()


PORT = free_port()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Data, and the kits of two federations at the same place."""
  folder = write_datasets(tmp_path_factory.mktemp("federation"))
  write_msd(folder / "train" / "more", range(12, 15), ["ball"], seed=4)
  for kits in ("kits", "foreign"):
    assert main(["condseg-federate", "provision", "--host=localhost", f"--port={PORT}",
                 f"--sites={','.join(SITES)}", f"--out={folder / kits}"]) == 0
  return folder


def is_let_in(kit: Path) -> bool:
  """Whether the server talks to the holder of a kit."""
  startup = kit / "startup"
  context = ssl.create_default_context(cafile=startup / "rootCA.pem")
  context.load_cert_chain(startup / "client.crt", startup / "client.key")
  try:
    with socket.create_connection(("localhost", PORT), timeout=10) as bare, context.wrap_socket(
        bare, server_hostname="localhost") as connection:
      connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
      return bool(connection.recv(1))
  except (ssl.SSLError, ConnectionError):
    return False


@pytest.fixture
def started(folder):
  """Starts server and sites; ends them, however the test ends."""
  running = []

  def start(name, *arguments):
    running.append(Command(folder, name, *arguments))
    return running[-1]
  yield start
  for command in running:
    if command.process.poll() is None:
      command.kill()


def rounds(folder) -> list[dict]:
  try:
    return json.loads((folder / "run" / "federation.json").read_text())["history"]
  except (OSError, ValueError):
    return []


@pytest.mark.slow
def test_a_site_and_the_server_are_killed_and_come_back(folder, started):
  config = [flag for flag in overrides(folder) if not flag.startswith("--config.data.root")]
  server = ["server", "--kit=kits/server", "--admin=kits/admin", "--config=base", *config,
            "--config.model.channels=4", "--config.model.growth=4", "--workdir=run",
            f"--rounds={ROUNDS}", "--steps=1"]
  data = dict(zip(SITES, ("ball", "box", "more"), strict=True))

  def site(name):
    return started(name, "site", f"--kit=kits/{name}", f"--data=train/{data[name]}",
                   "--spacing=2,1,1", f"--out=sites/{name}")

  first = started("server", *server)
  until(lambda: "waiting for sites" in first.text())
  assert is_let_in(folder / "kits" / "north") and not is_let_in(folder / "foreign" / "north")
  sites = {name: site(name) for name in SITES}
  until(lambda: len(rounds(folder)) >= 2, SLOW)
  sites["south"].kill()
  sites["south"] = site("south")
  until(lambda: any("south" in entry["left_out"] for entry in rounds(folder)), SLOW)
  away = len(rounds(folder))
  until(lambda: any(len(entry["sites"]) == 3 for entry in rounds(folder)[away:]), SLOW)
  first.kill()
  before = rounds(folder)
  second = started("server", *server)
  assert second.process.wait(SLOW) == 0, second.text()
  history = rounds(folder)
  assert history[:len(before) - 1] == before[:-1]  # the last may have had no checkpoint yet
  assert [entry["round"] for entry in history] == list(range(1, ROUNDS + 1))
  assert len(history[-1]["sites"]) == 3
  assert "the network: run" in second.text() and "Traceback" not in second.text()
  for command in sites.values():  # the server ends them
    assert command.process.wait(60) == 0, command.text()
    assert "Traceback" not in command.text()
  predictor = load(folder / "run")
  assert predictor.table.names == ("ball", "box") and predictor.step == ROUNDS
  # Nothing but what the lists say has left, and they hold no path and no name of a case.
  sent = folder / "sites" / "north" / "sent"
  description = json.loads((sent / "description.json").read_text())
  assert description["cases"] == {"box": 5}
  for path in sent.glob("*.json"):
    assert "case_" not in path.read_text() and str(folder) not in path.read_text()
  last = json.loads((sent / f"round_{ROUNDS:04d}.json").read_text())
  assert last["samples"]["box"] == 2 and "ball" not in last["samples"]


FAULTS = [
    (("server", "--kit=kits/north", "--admin=kits/admin", "--config=base", "--workdir=other"),
     "kits/north: is the kit of a site"),
    (("server", "--kit=kits/server", "--admin=kits/admin", "--config=base", "--workdir=other",
      "--least_sites=4"), "there are kits for 3 sites"),
    (("server", "--kit=kits/server", "--admin=kits/admin", "--config=base", "--workdir=other",
      "--teaching=1.5"), "--teaching: is 1.5"),
    (("site", "--kit=kits/server", "--data=train/ball", "--out=x"), "is the kit of a server"),
    (("site", "--kit=train", "--data=train/ball", "--out=x"), "is not a startup kit"),
    (("site", "--kit=kits/north", "--data=nowhere", "--out=x"), "nowhere does not exist"),
    (("provision", "--host=localhost", "--sites=a,b", "--out=kits"), "exists already"),
    (("provision", "--host=localhost", "--sites=a,a", "--out=more"), "'a' is no name of a site"),
    (("provision", "--host=local host", "--sites=a", "--out=more"), "is no host name"),
    (("provision", "--host=localhost", "--sites=a/../b", "--out=more"), "is no name of a site"),
    (("client",), "is no part of a federation"),
]


@pytest.mark.parametrize(("arguments", "line"), FAULTS)
def test_wrong_usage_is_one_line(folder, arguments, line, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  assert main(["condseg-federate", *arguments]) == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("condseg-federate: ") and line in error and "\n" not in error
  assert not Path("more").exists() and not Path("other").exists() and not Path("x").exists()


def test_a_kit_runs_the_components_of_this_package_and_no_code_of_a_job(folder):
  for name in ("server", *SITES):
    local = folder / "kits" / name / "local"
    resources = json.loads((local / "resources.json").read_text())
    assert all(path.startswith("condseg_jax.federated.") for path in resources["class_allow_list"])
    assert resources["class_list_enforcement_mode"] == "enforce"
    rights = json.loads((local / "authorization.json").read_text())["permissions"]
    assert list(rights) == ["project_admin"]
    assert rights["project_admin"]["byoc"] == rights["project_admin"]["shell_commands"] == "none"
    if name != "server":
      assert resources["allow_log_streaming"] is False
    for key in (folder / "kits" / name / "startup").glob("*.key"):
      assert key.stat().st_mode & 0o077 == 0


def test_a_process_that_outlived_its_command_is_ended(folder, tmp_path):
  from condseg_jax.federated.flare.engine import _end_leftover
  kit = tmp_path / "kit"
  left, other = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(word)],
                                  start_new_session=True) for word in (kit, "another"))
  try:
    for process in (left, other):
      (tmp_path / "pid").write_text(str(process.pid))
      _end_leftover(tmp_path / "pid", kit)
    assert left.wait(10) == -signal.SIGKILL and other.poll() is None
  finally:
    for process in (left, other):
      process.kill()
      process.wait(10)
  (tmp_path / "pid").write_text("nonsense")
  _end_leftover(tmp_path / "pid", kit)
