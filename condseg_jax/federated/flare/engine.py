"""Runs FLARE's processes: the server with its jobs, and a site.

The server process of FLARE stays; what trains is a job, a stretch of rounds with the sites that are
there. When a site comes back, the job is ended after its round, and the next one includes the site.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import io
import json
import logging
import math
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.fuel.flare_api.flare_api import Session
from nvflare.fuel.hci.proto import MetaKey
from nvflare.fuel.hci.proto import MetaStatusValue
import psutil

from condseg_jax.errors import InputError
from condseg_jax.federated.federation import RECORD
from condseg_jax.federated.flare import kits
from condseg_jax.federated.flare.controller import FEDERATION
from condseg_jax.federated.flare.controller import REQUEST
from condseg_jax.federated.flare.controller import STATUS
from condseg_jax.federated.flare.controller import STOP
from condseg_jax.federated.flare.executor import SITE

HEARTBEAT_S = 5
_START_S = 120  # for a process of FLARE to answer
_SHUTDOWN_S = 30
_TRIES = 3  # for a site that answers its server, but not its rounds
_LOG, _PID = "flare.log", "flare.pid"


def serve(kit: Path, admin: Path, workdir: Path, request: Mapping[str, Any], done: int,
          on_wait: Callable[[Sequence[str]], None], on_round: Callable[[dict], None]) -> None:
  """Runs a federated training to its end.

  Args:
    kit: that of the server.
    admin: that of the admin.
    workdir: folder of the run.
    request: `config`, `rounds`, `sites` (that must be there for the first round), `least_sites`
      (for later ones) and `patience` (seconds that a round waits for the others).
    done: rounds that are done.
    on_wait: called with the sites that are there, while there are too few.
    on_round: called with the entry of every round that is done.

  Raises:
    InputError: FLARE does not start, or the training cannot go on.
  """
  (workdir / REQUEST).write_text(json.dumps(request), encoding="utf-8")
  kits.place_storage(kit, workdir / "flare")
  logging.getLogger("nvflare").setLevel(logging.CRITICAL)  # of the session: what fails is raised
  server = [sys.executable, "-u", "-m", "nvflare.private.fed.app.server.server_train", "-m",
            str(kit), "-s", "fed_server.json", "--set", "secure_train=true",
            f"org={kits.PROJECT}", "config_folder=config"]
  with _process(server, kit, workdir, {FEDERATION: str(workdir)}) as process:
    session = _connect(admin, process, workdir)
    failures = dict[str, int]()
    with _closing(session), _explained(workdir):
      while done < request["rounds"]["rounds"]:
        _wait_for_sites(session, process, workdir, request, first=not _begun(workdir),
                        on_wait=on_wait)
        done = _job(session, process, workdir, request, done, failures, on_round)
      # Only now: a site whose server has ended before waits until it is back.
      with _quiet():
        session.shutdown("all", timeout=_SHUTDOWN_S)


def join(kit: Path, folder: Path, data: str, spacing: Sequence[float], cache: str,
         on_sent: Callable[[str, dict], None]) -> None:
  """Runs a site until its server ends the training.

  Args:
    kit: that of the site.
    folder: what the site keeps: logs, and lists of what was sent.
    data: prepared or raw datasets.
    spacing: in mm, for raw data.
    cache: folder for prepared data.
    on_sent: called with name and content of every list.

  Raises:
    InputError: FLARE does not start, or ends by itself.
  """
  _, name = kits.identity(kit)
  client = [sys.executable, "-u", "-m", "nvflare.private.fed.app.client.client_train", "-m",
            str(kit), "-s", "fed_client.json", "--set", "secure_train=true", f"uid={name}",
            f"org={kits.PROJECT}", "config_folder=config", f"heart_beat_interval={HEARTBEAT_S}"]
  place = {"data": data, "spacing": list(spacing), "cache": cache, "folder": str(folder)}
  seen = {path.name: path.stat().st_mtime_ns for path in _lists(folder)}
  problem = folder / "problem.txt"
  problem.unlink(missing_ok=True)
  with _process(client, kit, folder, {SITE: json.dumps(place)}) as process:
    while True:
      ended = process.poll() is not None
      for path in _lists(folder):
        if seen.get(path.name) != path.stat().st_mtime_ns:
          seen[path.name] = path.stat().st_mtime_ns
          on_sent(path.stem, json.loads(path.read_text(encoding="utf-8")))
      if problem.exists():
        raise InputError(data, problem.read_text(encoding="utf-8").strip(),
                         "correct it and start the site again")
      if ended:
        break
      time.sleep(0.5)
    if process.returncode:
      raise InputError(kit, f"FLARE has ended with {process.returncode}", f"see {folder / _LOG}")


@contextlib.contextmanager
def _process(command: Sequence[str], kit: Path, folder: Path,
             more: Mapping[str, str]) -> Iterator[subprocess.Popen]:
  """Runs a process of FLARE and its children, and ends them all on the way out."""
  _end_leftover(folder / _PID, kit)
  (kit / "transfer").mkdir(exist_ok=True)
  environment = {"MALLOC_ARENA_MAX": "4", **os.environ, **more}
  with (folder / _LOG).open("a", encoding="utf-8") as log:
    process = subprocess.Popen(command, cwd=kit, env=environment, stdout=log, stderr=log,
                               stdin=subprocess.DEVNULL, start_new_session=True)
    try:
      (folder / _PID).write_text(str(process.pid))
      yield process
    finally:
      for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(patience)
      (folder / _PID).unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps to itself what FLARE raises and prints when its server goes, also in its threads."""
  with contextlib.suppress(Exception), contextlib.redirect_stdout(
      io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    yield


@contextlib.contextmanager
def _closing(session: Session) -> Iterator[None]:
  try:
    yield
  finally:
    with _quiet():
      session.close()


@contextlib.contextmanager
def _explained(workdir: Path) -> Iterator[None]:
  """Turns errors of FLARE's session, such as a server that does not answer, into one line."""
  try:
    yield
  except Exception as error:
    if not type(error).__module__.startswith("nvflare"):
      raise
    raise InputError(workdir, f"FLARE's server does not answer ({type(error).__name__}: {error})",
                     f"see {workdir / _LOG}; the same command goes on") from error


def _end_leftover(path: Path, kit: Path) -> None:
  """Ends a process of FLARE that outlived a command that was killed."""
  with contextlib.suppress(OSError, ValueError, psutil.Error):
    number = int(path.read_text())
    if str(kit) in psutil.Process(number).cmdline():
      os.killpg(number, signal.SIGKILL)


def _connect(admin: Path, process: subprocess.Popen, workdir: Path) -> Session:
  end = time.monotonic() + _START_S
  while True:
    _check(process, workdir)
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        return new_secure_session(kits.ADMIN, str(admin), timeout=5.0, auto_login_max_tries=1)
    except Exception as error:  # FLARE raises its own and others' while a server starts
      if time.monotonic() > end:
        raise InputError(admin, f"reaches no server ({type(error).__name__})",
                         f"see {workdir / _LOG}; the name of the server must lead here") from error
      time.sleep(0.5)


def _check(process: subprocess.Popen, workdir: Path) -> None:
  if process.poll() is not None:
    raise InputError(workdir, f"FLARE's server has ended with {process.returncode}",
                     f"see {workdir / _LOG}; its port may be in use")


def _alive(session: Session) -> list[str]:
  """Returns the names of the sites that have given a sign of life of late."""
  return sorted(c.name for c in session.get_connected_client_list()
                if c.last_connect_time > time.time() - 4 * HEARTBEAT_S)


def _idle(session: Session, job: str) -> set[str]:
  """Returns the names of the sites that answer, but do not run a job: they have come back."""
  found = session.get_client_job_status() or []
  running = {one[MetaKey.CLIENT_NAME] for one in found if one.get(MetaKey.JOB_ID) == job}
  silent = (MetaStatusValue.ERROR, MetaStatusValue.NO_REPLY)
  return {one[MetaKey.CLIENT_NAME] for one in found
          if one.get(MetaKey.STATUS) not in silent} - running


def _wait_for_sites(session: Session, process: subprocess.Popen, workdir: Path,
                    request: Mapping[str, Any], *, first: bool,
                    on_wait: Callable[[Sequence[str]], None]) -> None:
  """Waits for all sites; later than for the first round, not for long if some are there."""
  told: list[str] | None = None
  enough = math.inf  # when there were
  while True:
    _check(process, workdir)
    here, now = _alive(session), time.monotonic()
    if not first and len(here) >= (request["least_sites"] or 1):
      enough = min(enough, now)
    if len(here) >= request["sites"] or now - enough > request["patience"]:
      return
    if here != told:
      on_wait(here)
      told = here
    time.sleep(1.0)


def _job(session: Session, process: subprocess.Popen, workdir: Path, request: Mapping[str, Any],
         done: int, failures: dict[str, int], on_round: Callable[[dict], None]) -> int:
  """Runs a job to its end; returns the number of rounds that are done then."""
  (workdir / STOP).unlink(missing_ok=True)
  (workdir / STATUS).unlink(missing_ok=True)
  job = session.submit_job(str(_job_folder(workdir)))
  looked, idle, ended = time.monotonic(), set[str](), False
  while True:
    _check(process, workdir)
    for entry in _history(workdir)[done:]:
      on_round(entry)
      done += 1
    status = _read(workdir / STATUS)
    if status.get("error"):
      raise InputError(workdir, status["error"], "correct it; the same command goes on")
    meta = session.get_job_meta(job)
    if str(meta.get("status", "")).startswith("FINISHED"):
      break
    if status and not ended and time.monotonic() - looked > HEARTBEAT_S:
      before, looked, idle = idle, time.monotonic(), _idle(session, job)
      back = {name for name in before & idle if failures.get(name, 0) < _TRIES}
      if back:
        failures |= {name: failures.get(name, 0) + 1 for name in back}
        (workdir / STOP).touch()
        ended = True
      if back & {*status["present"]} and not request["least_sites"]:
        session.abort_job(job)  # FLARE waits for who was there before, under its former token
    time.sleep(1.0)
  for entry in _history(workdir)[done:]:
    on_round(entry)
    done += 1
  if not status and "OK" not in str(meta.get("status")):
    raise InputError(workdir, f"FLARE has not started the training ({meta.get('status')})",
                     f"see {workdir / _LOG}")
  return done


def _job_folder(workdir: Path) -> Path:
  """Writes the job that FLARE deploys: names of two components of this package."""
  folder = workdir / "job"
  config = folder / "app" / "config"
  config.mkdir(parents=True, exist_ok=True)
  (folder / "meta.json").write_text(json.dumps({
      "name": kits.PROJECT, "resource_spec": {}, "min_clients": 1,
      "deploy_map": {"app": ["@ALL"]}}))
  (config / "config_fed_server.json").write_text(json.dumps({
      "format_version": 2, "workflows": [
          {"id": "rounds", "path": kits.CONTROLLER, "args": {}}], "components": []}))
  (config / "config_fed_client.json").write_text(json.dumps({
      "format_version": 2, "executors": [
          {"tasks": ["*"], "executor": {"path": kits.EXECUTOR, "args": {}}}], "components": []}))
  return folder


def _lists(folder: Path) -> list[Path]:
  """Returns what has been listed; not the hidden files that are being written."""
  return sorted(path for path in (folder / "sent").glob("[!.]*.json"))


def _begun(workdir: Path) -> bool:
  return any((workdir / "checkpoints").glob("[0-9]*"))


def _history(workdir: Path) -> list[dict]:
  return _read(workdir / RECORD).get("history", [])


def _read(path: Path) -> dict:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):  # not there yet
    return {}
