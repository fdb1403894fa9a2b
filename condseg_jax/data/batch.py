"""The input of a training step."""

from typing import Any
from typing import NamedTuple

# NumPy arrays when read, JAX arrays inside the step.
Array = Any


class Batch(NamedTuple):
  """A batch, or without the axis B one sample. N classes are decoded for each image.

  Attributes:
    image: float32 [B, *shape, C], normalised.
    class_id: int32 [B, N], the classes to decode.
    mask: uint8 [B, *shape, N], the three-valued mask of each of these classes.
    beta: float32 [B, N], the weight of the mask: 1 if the sample's dataset annotates the class;
      `data.pseudo_weight`, which is below 1, if a part of it is a pseudo-mask; else 0.
    index: int32 [B], index of the sample within the step; random numbers are keyed by it.
    dataset: int32 [B], number of the dataset that the sample is of.
  """

  image: Array
  class_id: Array
  mask: Array
  beta: Array
  index: Array
  dataset: Array
