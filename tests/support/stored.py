"""Prepared cases from arrays; shared by the tests of stores and of what reads them."""

from concurrent.futures import ThreadPoolExecutor
import contextlib

import numpy as np

from condseg_jax.data.store import Case
from condseg_jax.data.writer import CaseFacts
from condseg_jax.data.writer import write_case
from condseg_jax.geometry import Geometry


def write_arrays(root, case_id, image, masks, *, dataset, split, annotated, affine,
                 source, pseudo=()) -> Case:
  """Writes an image [*shape, C] and its masks [K, *shape], annotated and pseudo, as a case."""
  grid = Geometry(image.shape[:-1], affine)
  facts = CaseFacts(case_id, dataset, split, tuple(annotated), grid, source,
                    pseudo=tuple(pseudo))
  rows = contextlib.nullcontext(lambda rows: image[rows])
  each = ((name, lambda rows, mask=mask: mask[rows])
          for name, mask in zip((*annotated, *pseudo), masks, strict=True))
  with ThreadPoolExecutor(2) as pool:
    return write_case(root, facts, grid, rows, each, channels=image.shape[-1],
                      dtype=np.dtype(image.dtype), pool=pool)
