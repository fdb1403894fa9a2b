"""condseg-federate provision|server|site

Hospitals with one class each train one network, and no image leaves any of them. NVIDIA FLARE
brings identities, encryption and messages (extra `federated`).

  condseg-federate provision --host=fl.example.org --sites=north,south --out=KITS
  condseg-federate server --kit=KITS/server --admin=KITS/admin --config=base --workdir=RUN
  condseg-federate site --kit=north --data=DATA --out=SENT     at every site, with its own kit

What a site sends is listed in SENT/sent/ before it leaves. RUN is a run as any other; the same
commands go on after an interruption.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import config_file
from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

ROLES = ("provision", "server", "site")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv, positional="|".join(ROLES), has_config=True)


def _define(values: flags.FlagValues) -> None:
  config_file.define(values)
  define = lambda kind, name, default, text, **more: getattr(flags, f"DEFINE_{kind}")(
      name, default, text, flag_values=values, **more)
  define("string", "out", "", "provision: new folder for the kits. site: folder for logs and lists "
         "of what was sent.")
  define("string", "host", "", "provision: name by which the sites reach the server.")
  define("integer", "port", 8002, "provision: its port.", lower_bound=1, upper_bound=65535)
  define("list", "sites", [], "provision: names of the sites.")
  define("string", "kit", "", "server, site: the startup kit.")
  define("string", "admin", "", "server: the kit of the admin.")
  define("string", "workdir", "", "server: folder of the run.")
  define("integer", "rounds", 20, "server: number of rounds.", lower_bound=1)
  define("integer", "steps", 50, "server: steps of every site in a round.", lower_bound=1)
  define("float", "proximal", 0.0, "server: µ of FedProx, which holds sites near the global "
         "network.", lower_bound=0)
  define("float", "teaching", 0.0, "server: weight below 1 of masks that the global network makes "
         "of classes that a site does not annotate.", lower_bound=0)
  define("integer", "least_sites", 0, "server: sites after whose answers a round waits --patience "
         "for the others; by default for as long as these live.", lower_bound=0)
  define("integer", "patience", 60, "server: seconds that a round waits for the other sites.",
         lower_bound=1)
  define("string", "data", "", "site: prepared or raw datasets.")
  define("list", "spacing", [], "site: spacing in mm, for raw data.")
  define("string", "cache", "", "site: folder for data that are prepared.")


def _work(values: flags.FlagValues, role: str) -> int:
  if role not in ROLES:
    raise InputError(role, "is no part of a federation", f"give one of {', '.join(ROLES)}",
                     usage=True)
  if importlib.util.find_spec("nvflare") is None:
    raise InputError("nvflare", "is not installed", "pip install 'condseg-jax[federated]'")
  return {"provision": _provision, "server": _server, "site": _site}[role](values)


def _provision(values: flags.FlagValues) -> int:
  shell.require(values, "host", "sites", "out")
  from condseg_jax.cli.argument_flags import as_flags
  from condseg_jax.federated.flare.kits import write_kits
  with as_flags(sites="--sites", host="--host"):
    made = write_kits(values.out, values.host, values.port, values.sites)
  print("\n".join(map(str, made)))
  print("Kits hold private keys: give each to its participant alone.")
  return 0


def _server(values: flags.FlagValues) -> int:
  shell.require(values, "kit", "admin", "config", "workdir")
  config = config_file.load(values.config)
  from condseg_jax.cli.argument_flags import as_flags
  from condseg_jax.federated.federation import Federation
  from condseg_jax.federated.flare import engine
  from condseg_jax.federated.flare.kits import sites_of
  from condseg_jax.federated.site import Rounds
  from condseg_jax.federated.site import settings
  from condseg_jax.system.lock import held
  from condseg_jax.train.setup import check_config

  kit, admin = _kit(values.kit, "server"), _kit(values.admin, "admin")
  workdir, sites = Path(values.workdir).absolute(), len(sites_of(kit))
  if values.least_sites > sites:
    raise InputError("--least_sites", f"is {values.least_sites}, there are kits for {sites} sites",
                     "choose fewer", usage=True)
  with as_flags(rounds="--rounds", steps="--steps", proximal="--proximal", teaching="--teaching"):
    rounds = Rounds(values.rounds, values.steps, values.proximal, values.teaching)
  check_config(settings(config, rounds))
  workdir.mkdir(parents=True, exist_ok=True)
  request = {"config": config.to_dict(), "rounds": vars(rounds), "sites": sites,
             "least_sites": values.least_sites, "patience": values.patience}
  with held(workdir):
    done = Federation(config, rounds, workdir).done
    if done == rounds.rounds:
      print(f"finished before, after {done} rounds: {values.workdir}")
      return 0
    engine.serve(kit, admin, workdir, request, done,
                 lambda here: print(f"waiting for sites; there are {', '.join(here) or 'none'} of "
                                    f"{sites}", flush=True),
                 lambda entry: print(_round_line(entry, rounds.rounds), flush=True))
  print(f"the network: {values.workdir}")
  return 0


def _round_line(entry: dict, rounds: int) -> str:
  dice = "  ".join(f"{name} {value:.3f}" for name, value in entry["dice"].items())
  out = "".join(f"; {name} {reason}" for name, reason in entry["left_out"].items())
  return f"round {entry['round']}/{rounds}  soft Dice {dice}  {len(entry['sites'])} sites{out}"


def _site(values: flags.FlagValues) -> int:
  shell.require(values, "kit", "data", "out")
  from condseg_jax.federated.flare import engine
  try:
    spacing = [float(x) for x in values.spacing]
  except ValueError:
    raise InputError("--spacing", f"{','.join(values.spacing)} is not numbers", "e.g. 3,1.5,1.5",
                     usage=True) from None
  kit, folder = _kit(values.kit, "site"), Path(values.out).absolute()
  data = Path(values.data).absolute()
  if not data.exists():
    raise InputError("--data", f"{values.data} does not exist", "check the path", usage=True)
  folder.mkdir(parents=True, exist_ok=True)
  cache = str(Path(values.cache).absolute()) if values.cache else ""
  engine.join(kit, folder, str(data), spacing, cache, lambda name, sent: print(
      _sent_line(name, sent), flush=True))
  return 0


def _sent_line(name: str, sent: dict) -> str:
  if name == "description":
    counts = ", ".join(f"{n} (about {count} cases)" for n, count in sent["cases"].items())
    return f"sent: description of {counts}"
  dice = "  ".join(f"{key} {value:.3f}" for key, value in sent["dice"].items())
  return f"sent: {name.replace('_', ' ')}, {sent['bytes'] / 1e6:.1f} MB, soft Dice {dice}"


def _kit(path: str, kind: str) -> Path:
  from condseg_jax.federated.flare.kits import identity
  found, _ = identity(path)
  if found != kind:
    raise InputError(path, f"is the kit of a {found}", f"give that of the {kind}", usage=True)
  return Path(path).absolute()


if __name__ == "__main__":
  sys.exit(main())
