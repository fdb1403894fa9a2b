"""Trials in which datasets that lie apart train one network, in turn in this process.

What sites and server compute is what they compute in a federation of real processes.
"""

from pathlib import Path
import time
from typing import Any

from condseg_jax.config import Config
from condseg_jax.data.store import open_prepared
from condseg_jax.federated.description import describe
from condseg_jax.federated.federation import Federation
from condseg_jax.federated.site import Rounds
from condseg_jax.federated.site import Site
from condseg_jax.study.declare import Federated


def federate(how: Federated, config: Config, out: Path) -> tuple[float, dict[str, Any]]:
  """Trains a network from the stores of `config.data.root`, each a site.

  Args:
    how: rounds.
    config: settings of the training.
    out: folder of the run.

  Returns:
    The seconds it took, and `{"federated": {…}}`: number of sites, and megabytes that a site sends
    and receives.
  """
  started = time.monotonic()
  rounds = Rounds(how.rounds, how.steps, how.proximal, how.teaching)
  stores = {Path(s.root).name: [s] for s in open_prepared(config.data.root, config.data.spacing)}
  federation = Federation(config, rounds, out)
  if federation.record is None:
    federation.begin({name: describe(found) for name, found in stores.items()})
  assert federation.record is not None
  sites = {name: Site(federation.record, found, rounds) for name, found in stores.items()}
  while federation.done < rounds.rounds:
    number, arrays, taught = federation.done, federation.arrays, federation.taught
    federation.finish_round({name: site.train(number, arrays, taught)
                             for name, site in sites.items()})
  size = sum(array.nbytes for array in federation.arrays.values())
  return time.monotonic() - started, {"federated": {
      "sites": len(sites), "megabytes": round(2 * size * rounds.rounds / 1e6, 1)}}
