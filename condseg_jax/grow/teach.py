"""The network before growth teaches its classes on the new images: stores with its pseudo-masks."""

from collections.abc import Iterable
import hashlib

import jax
import numpy as np

from condseg_jax.data.selection import Dataset
from condseg_jax.data.store import Store
from condseg_jax.geometry import voxel_ml
from condseg_jax.grow.growth import Growth
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.card import run_facts
from condseg_jax.model_io.load import is_bundle
from condseg_jax.predictor import Predictor
from condseg_jax.pseudo.rules import Competence
from condseg_jax.pseudo.rules import Rules
from condseg_jax.pseudo.sources import OneNetwork
from condseg_jax.pseudo.write import Teacher
from condseg_jax.pseudo.write import write_store
from condseg_jax.train.checkpoint import array_digests

LARGEST_ML = 1e9  # where nothing is known of the volumes of a class


def digest(network: Bundle) -> str:
  """Returns the SHA-256 of a network's arrays."""
  arrays = array_digests(jax.device_get(network.variables))
  return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(arrays.items())).encode()
                        ).hexdigest()


def taught(growth: Growth, predictor: Predictor, folder) -> list[Store]:
  """Writes the new stores again with pseudo-masks of the network's classes; finished ones are kept.

  A class takes part unless the network's record says that its Dice on held-out cases is below
  that of `pseudo.rules.Rules`. Where old data are at hand, volumes must be those of true masks.

  Args:
    growth: network and new data.
    predictor: the network.
    folder: for the stores.
  """
  rules = Rules()
  source = growth.source
  facts = growth.network.facts if is_bundle(source) else run_facts(source,
                                                                   growth.network.facts["step"])
  dice = (facts.get("held_out") or {}).get("dice", {})
  found = {name: _competence(name, dice.get(name), growth.training, rules)
           for name in growth.record.table.names}
  teacher = Teacher(OneNetwork(predictor, digest(growth.network)), growth.table, found, rules)
  return [write_store(teacher, store, folder / str(number))
          for number, store in enumerate(growth.stores)]


def _competence(name: str, dice: float | None, training: Iterable[Dataset],
                rules: Rules) -> Competence:
  volumes = [case.positives[name] * voxel_ml(np.asarray(case.affine))
             for d in training for case in d.cases if name in case.annotated]
  present = [volume for volume in volumes if volume]
  return Competence(dice, (min(present), max(present)) if present else (0.0, LARGEST_ML),
                    len(present) < len(volumes) or not volumes,
                    dice is None or dice >= rules.competence)
