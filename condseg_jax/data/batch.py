"""What a training step is fed."""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
  """A batch; an example is the same without the axis B. N classes are decoded for each image.

  Attributes:
    image: float32 [B, *shape, C], normalised.
    class_id: int32 [B, N], the classes asked for.
    mask: uint8 [B, *shape, N], three-valued mask of each of these classes.
    beta: float32 [B, N], 1 where the sample's dataset annotates the class.
    index: int32 [B], the sample's place in the step; randomness is keyed by it.
  """

  image: np.ndarray
  class_id: np.ndarray
  mask: np.ndarray
  beta: np.ndarray
  index: np.ndarray
