"""Gives every class of a network rows of its own in place of a vector that layers multiply."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from condseg_jax.config import Conditioning
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.class_axes import class_axes
from condseg_jax.models.class_vector import ClassVector

_VECTOR = "params/class_vector/"


def own_rows(conditioning: Conditioning) -> Conditioning:
  """Returns the settings of a network in which each class has rows of its own."""
  if conditioning.position in ("none", "per_class_decoders") or conditioning.mechanism == "output":
    return conditioning
  return dataclasses.replace(conditioning, vector="one_hot", text_vectors="", texts=())


def with_own_rows(bundle: Bundle) -> Bundle:
  """Returns a network with one-hot class vectors that computes the same.

      W v_c = W' e_c,   W' = W V,   V = (v_1 … v_K)

  Every layer that reads the class multiplies its vector by a matrix W; W' has one row per class.
  The logits are the same bit by bit with the vector `hash`, which has a single element, and up to
  rounding with others. A network without class vectors, or with one-hot ones, is returned as it is.

  Args:
    bundle: the network; of an ensemble the first member.
  """
  record = bundle.record
  before, after = record.config.conditioning, own_rows(record.config.conditioning)
  if before == after:
    return bundle
  variables = _converted(record, after, jax.device_get(bundle.variables))
  config = dataclasses.replace(record.config, conditioning=after)
  return Bundle(record._replace(config=config), variables["params"], bundle.facts,
                statistics=variables.get("statistics", {}))


def _converted(record: ModelRecord, after: Conditioning,
               variables: Mapping[str, Any]) -> dict[str, Any]:
  vectors_KE = _vectors(record, variables["params"])
  classes, size = vectors_KE.shape
  axes = class_axes(record.config.model, after, classes, record.plan.channels).axes
  out = {}
  for name, array in traverse_util.flatten_dict(variables, sep="/").items():
    if name.startswith(_VECTOR):
      continue
    axis = axes.get(name)
    if axis is not None:
      rows = np.moveaxis(np.asarray(array), axis, 0)
      shared, own = rows[:len(rows) - size], rows[len(rows) - size:]
      own = np.tensordot(vectors_KE, own.astype(np.float64), 1)
      if name.startswith("params/head/"):  # `heads.DynamicHead` divides by the root of the length
        own *= np.sqrt(classes / size)
      array = np.ascontiguousarray(np.moveaxis(
          np.concatenate([shared, own.astype(np.float32)]), 0, axis))
    out[name] = array
  return traverse_util.unflatten_dict(out, sep="/")


def _vectors(record: ModelRecord, params: Mapping[str, Any]) -> np.ndarray:
  """Returns the class vectors, float64 [K, E]."""
  conditioning = record.config.conditioning
  module = ClassVector(conditioning.vector, tuple(float(c) for c in record.table.codes),
                       conditioning.embedding_size, conditioning.texts)
  own = {"params": params.get("class_vector", {})}
  return np.asarray(module.apply(own, np.arange(len(record.table), dtype=np.int32)), np.float64)
