"""The levels of growth, each the settings of an ordinary training.

    0  the vector of the new class alone is learned
    1  what belongs to the new class alone is learned: rows of its own in every layer that sees the
       class, or its decoder or head
    2  everything is learned: where old images are at hand, they are half of the samples, and the
       rate is that of the training before; else the network before teaches its classes on the new
       images, at a tenth of the rate
"""

from typing import Any

from condseg_jax.config import Config
from condseg_jax.grow.growth import Growth
from condseg_jax.model_io.own_rows import own_rows

# Of the steps of the network's training, at least `LEAST_STEPS`.
SHARE = {0: 0.1, 1: 0.25, 2: 0.4}
LEAST_STEPS = 20
RATE = {0: 4.0, 1: 4.0, 2: 0.1}  # of its learning rate
RATE_WITH_OLD_DATA = 1.0  # the same of level 2


def settings(growth: Growth, level: int, source: str, steps: int = 0) -> Config:
  """Returns the settings of a level.

  Args:
    growth: network and data.
    level: 0, 1 or 2.
    source: workdir or bundle that it starts from.
    steps: length; by default a share of the network's training.
  """
  record, config = growth.record, growth.record.config
  steps = steps or max(LEAST_STEPS, round(SHARE[level] * config.train.steps))
  conditioning = own_rows(config.conditioning) if level else config.conditioning
  changes: dict[str, Any] = {
      "conditioning.vector": conditioning.vector,
      "conditioning.text_vectors": conditioning.text_vectors,
      "conditioning.texts": conditioning.texts,
      "data.root": str(growth.stores[0].root), "data.spacing": record.plan.spacing,
      "data.plan": "config", "data.subvolume": record.plan.subvolume, "data.max_cases": 0,
      "data.classes": (), "data.include_classes": (), "data.presets": {}, "data.lateral_axes": {},
      "data.overlapping": (), "data.weights": (), "data.bare": 0.0, "data.batch_class": "mixed",
      "data.unannotated": "ignore", "augment.cutmix": 0.0,
      "optimizer.learning_rate": _rate(growth, level) * config.optimizer.learning_rate,
      "optimizer.warmup": min(config.optimizer.warmup, steps // 10),
      "train.steps": steps, "train.minutes": 0.0, "train.eval_every": steps, "train.partition": 1,
      "init.source": str(source), "init.what": "grow"}
  if level < 2:
    changes |= {"train.only_classes": growth.new, "data.include_classes": growth.new,
                "loss.exclusion_classes": 0}
  else:
    annotated = dict.fromkeys(name for d in growth.training for name in d.annotated)
    changes |= {"train.only_classes": (), "data.include_classes": tuple(annotated),
                "data.weights": _weights(growth)}
  return config.override(changes)


def _rate(growth: Growth, level: int) -> float:
  return RATE_WITH_OLD_DATA if level == 2 and growth.old_stores else RATE[level]


def _weights(growth: Growth) -> tuple[float, ...]:
  """Returns sampling weights by which half of the images are new ones."""
  count = sum(map(growth.is_new, growth.training))
  old = len(growth.training) - count
  return (*[1.0] * count, *[count / old] * old) if old else ()
