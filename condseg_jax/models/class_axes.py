"""Which arrays of a network have entries per class, found by building it for one class more."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

from flax import traverse_util
import numpy as np

from condseg_jax.config import Conditioning
from condseg_jax.config import Model
from condseg_jax.models.build import build_model
from condseg_jax.models.network import variable_shapes


class ClassAxes(NamedTuple):
  """The axes of a network's arrays that run over the classes.

  Attributes:
    classes: number of classes K.
    axes: path of an array in the variables, `params/head/kernel` → its axis over classes, the last
      K entries of which belong to the classes in the order of their ids. Other arrays, which all
      classes share, are not listed.
  """

  classes: int
  axes: Mapping[str, int]


def class_axes(model: Model, conditioning: Conditioning, classes: int, channels: int) -> ClassAxes:
  """Finds the arrays with entries per class, in any network that `build_model` knows.

  Args:
    model: the `model` section of the config.
    conditioning: the `conditioning` section.
    classes: number of classes K.
    channels: image channels.

  Raises:
    InputError: the settings do not define a valid network.
  """
  # From two classes on, whatever a network may do for a single one.
  few = _shapes(model, conditioning, max(classes, 2), channels)
  more = _shapes(model, conditioning, max(classes, 2) + 1, channels)
  return ClassAxes(classes, {
      name: next(axis for axis, size in enumerate(shape) if size != more[name][axis])
      for name, shape in few.items() if shape != more[name]})


def _shapes(model: Model, conditioning: Conditioning, classes: int,
            channels: int) -> dict[str, tuple[int, ...]]:
  if conditioning.vector == "text":
    row = conditioning.texts[0] if conditioning.texts else (1.0,)
    conditioning = dataclasses.replace(conditioning, texts=(row,) * classes)
  network = build_model(model, conditioning, np.linspace(-1, 1, classes))
  variables = traverse_util.flatten_dict(variable_shapes(network, channels), sep="/")
  return {name: leaf.shape for name, leaf in variables.items()}
