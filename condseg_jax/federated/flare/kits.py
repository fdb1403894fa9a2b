"""Startup kits: one folder for each participant, with its identity, made once by one person.

    OUT/server/    for the machine that all sites can reach
    OUT/admin/     for whoever starts the training there
    OUT/SITE/      for each site

Kits hold private keys; each goes to its participant alone, on a safe way. What a kit permits is
narrower than FLARE's defaults: the components of this package run, and no code that a job brings.
"""

from collections.abc import Sequence
import contextlib
import io
import json
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from condseg_jax.errors import InputError

ADMIN = "admin@condseg.federation"
PROJECT = "condseg"
CONTROLLER = "condseg_jax.federated.flare.controller.RoundsController"
EXECUTOR = "condseg_jax.federated.flare.executor.SiteExecutor"
SILENCE_S = 60  # without a sign of life, after which a site counts as gone
SITES = "sites.json"  # in the kit of the server
_DAYS = 360  # that the identities are valid
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")


def write_kits(out, host: str, port: int, sites: Sequence[str]) -> list[Path]:
  """Makes identities for a server, its admin and the sites; returns the folders of the kits.

  Args:
    out: a new folder.
    host: name of the server, as the sites reach it.
    port: its port, for all connections; they are opened by the sites.
    sites: names of the sites.

  Raises:
    InputError: the folder exists, or a name is none.
  """
  out = Path(out)
  if out.exists():
    raise InputError(out, "exists already", "choose a new folder: kits are made once", usage=True)
  if not _HOST.fullmatch(host):
    raise InputError("host", f"{host!r} is no host name", "give the name that sites reach it by",
                     usage=True)
  for name in sites:
    if not _NAME.fullmatch(name) or name in ("server", "admin") or list(sites).count(name) > 1:
      raise InputError("sites", f"{name!r} is no name of a site", "give different ones of a-z, 0-9 "
                       "and - that are not server or admin", usage=True)
  people: list[dict[str, Any]] = [
      {"name": host, "type": "server", "fed_learn_port": port, "admin_port": port},
      {"name": ADMIN, "type": "admin", "role": "project_admin"},
      *({"name": name, "type": "client"} for name in sites)]
  project = prepare_project({"api_version": 3, "name": PROJECT, "description": "",
                             "participants": [{**one, "org": PROJECT} for one in people]})
  builders = [WorkspaceBuilder(template_file=["master_template.yml"]),
              StaticFileBuilder(config_folder="config"), CertBuilder(root_valid_days=_DAYS),
              SignatureBuilder()]
  with tempfile.TemporaryDirectory(dir=_parent(out)) as folder, contextlib.redirect_stdout(
      io.StringIO()) as said:
    made = Path(folder) / PROJECT / "prod_00"
    Provisioner(folder, builders).provision(project)
    if not (made / host / "startup").exists():
      raise InputError(out, "cannot be made: " + " ".join(said.getvalue().split())[-200:],
                       "check names and free space")
    kits = Path(folder) / "kits"
    kits.mkdir(mode=0o700)
    for name, kit in (("server", host), ("admin", ADMIN), *((name, name) for name in sites)):
      (made / kit).rename(kits / name)
      if name != "admin":
        _restrict(kits / name, server=name == "server")
    (kits / "server" / SITES).write_text(json.dumps(list(sites)))
    shutil.move(kits, out)
  return [out / name for name in ("server", "admin", *sites)]


def identity(kit) -> tuple[str, str]:
  """Returns what a kit is of, `server`, `admin` or `site`, and the name of a site or "".

  Raises:
    InputError: the folder is not a kit.
  """
  startup = Path(kit) / "startup"
  try:
    for kind in ("server", "admin"):
      if (startup / f"fed_{kind}.json").exists():
        return kind, ""
    if (startup / "fed_client.json").exists():
      found = re.search(r"uid=([a-z0-9-]+)", (startup / "sub_start.sh").read_text())
      if found is None:
        raise ValueError("sub_start.sh names no site")
      return "site", found[1]
  except (OSError, ValueError) as error:
    raise InputError(kit, f"is a damaged kit ({error})", "get it again", usage=True) from error
  raise InputError(kit, "is not a startup kit", "give a folder that `condseg-federate provision` "
                   "has made", usage=True)


def sites_of(kit) -> list[str]:
  """Returns the names of the sites that a server was made for."""
  try:
    return [str(name) for name in json.loads((Path(kit) / SITES).read_text())]
  except (OSError, ValueError, TypeError) as error:
    raise InputError(kit, f"is a damaged kit ({error})", "get it again", usage=True) from error


def place_storage(kit, folder) -> None:
  """Lets a server keep its jobs in a folder; by default all servers of a machine share one."""
  path = Path(kit) / "local" / "resources.json"
  resources = json.loads(path.read_text())
  storage = resources["snapshot_persistor"]["args"]["storage"]
  storage["args"]["root_dir"] = str(Path(folder) / "snapshots")
  for component in resources["components"]:
    if component["id"] == "job_manager":
      component["args"]["uri_root"] = str(Path(folder) / "jobs")
  path.write_text(json.dumps(resources, indent=2))


def _restrict(kit: Path, *, server: bool) -> None:
  """Writes what may run in a kit, and where it stores its jobs."""
  local = kit / "local"
  resources = json.loads((local / "resources.json.default").read_text())
  resources["class_allow_list"] = [CONTROLLER, EXECUTOR]
  if server:
    resources["servers"][0]["heart_beat_timeout"] = SILENCE_S
  else:
    # By default FLARE sends the log of a site to its server.
    resources["allow_log_streaming"] = False
    resources["components"] = [c for c in resources["components"] if c["id"] != "site_log_streamer"]
    # One job at a time has the machine; FLARE need not count its devices.
    for component in resources["components"]:
      if component["id"] == "resource_manager":
        component["args"] |= {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0}
  (local / "resources.json").write_text(json.dumps(resources, indent=2))
  rights = json.loads((local / "authorization.json.default").read_text())
  rights["permissions"] = {"project_admin": {
      "submit_job": "any", "manage_job": "any", "view": "any", "operate": "any",
      "download_job": "none", "clone_job": "none", "shell_commands": "none", "byoc": "none"}}
  (local / "authorization.json").write_text(json.dumps(rights, indent=2))
  for path in (kit / "startup").glob("*.key"):
    path.chmod(0o600)


def _parent(out: Path) -> Path:
  out.absolute().parent.mkdir(parents=True, exist_ok=True)
  return out.absolute().parent
