"""Several networks, each for classes of its own, as the one network that they are compared with."""

from collections.abc import Sequence

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.infer import predict as windows
from condseg_jax.predictor import Predictor


def specialists(predictors: Sequence[Predictor]) -> Predictor:
  """One predictor that asks for every class the network that knows it.

  Its probabilities are those of the members, and they compete for voxels as those of one network
  do. An image is encoded once for every class.

  Args:
    predictors: members, with one plan and no class in common; their classes come in this order.

  Raises:
    InputError: the plans differ, or two members know a class.
  """
  first = predictors[0]
  names = [name for p in predictors for name in p.table.names]
  for p in predictors:
    if p.plan != first.plan:
      raise InputError("specialists", f"see images differently: {p.plan} and {first.plan}",
                       "train them with the same data.root, data.spacing and data.subvolume")
  if len(set(names)) < len(names):
    raise InputError("specialists", f"two of them know a class: {', '.join(names)}",
                     "give every class to one, with data.keep")
  no_mirror = {c.name: c.no_mirror for p in predictors for c in p.table.classes}
  table = ClassTable.create(names, no_mirror=no_mirror, capacity=max(64, len(names)))
  places = [(p.functions or windows.window_functions(p.model), number, local)
            for number, p in enumerate(predictors) for local in range(len(p.table))]

  def encode(variables, image_BDHWC, class_id_K):
    functions, number, local = places[int(class_id_K[0])]
    return functions.encode(variables["members"][number], image_BDHWC, np.array([local], np.int32))

  def decode(variables, features, class_id_K):
    functions, number, local = places[int(class_id_K[0])]
    return functions.decode(variables["members"][number], features, np.array([local], np.int32))

  # One class in a call, for which the encoder of its network has to run: as if it saw the class.
  functions = windows.WindowFunctions(encode, decode, True, (1,))
  return Predictor(
      first.model, {"members": tuple(p.variables for p in predictors)}, table, first.plan,
      first.step, first.training,
      tuple(a for a in first.mirror if all(a in p.mirror for p in predictors)),
      {name: prior for p in predictors for name, prior in p.priors.items()},
      {name: done for p in predictors for name, done in p.cleaning.items()}, functions)
