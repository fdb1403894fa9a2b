"""Networks between the one before growth and the one after it.

Losses rise slowly along the straight line from a network to one that was trained on from it
(Wortsman et al., CVPR 2022, "Robust fine-tuning of zero-shot models"), so that a network near the
old end has lost less of what was known. What belongs to a new class alone is that of the new end.
"""

import jax

from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.own_rows import own_rows
from condseg_jax.model_io.own_rows import with_own_rows
from condseg_jax.train.start import take


def blended(before: Bundle, after: Bundle, share: float) -> Bundle:
  """Returns a grown network of which every parameter is a mean of both networks.

      θ = θ_before + share · (θ_after − θ_before)

  Parameters that belong to a new class, and others that the network before does not have, are those
  after growth.

  Args:
    before: the network before growth.
    after: the same network grown, of the same or more classes.
    share: 1 gives the network after growth, 0 the one before it beside the new class.
  """
  if share == 1:
    return after
  if after.record.config.conditioning == own_rows(before.record.config.conditioning):
    before = with_own_rows(before)
  ends = jax.device_get(after.variables)
  starts = take(before, after.record, ends, "grow").variables
  found = jax.tree.map(
      lambda start, end: (start + share * (end - start)).astype(end.dtype), starts, ends)
  return after._replace(params=found["params"], statistics=found.get("statistics", {}))
