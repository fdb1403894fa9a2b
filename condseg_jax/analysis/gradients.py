"""Gradients of the classes' losses, layer by layer: how large, and whether they conflict.

Two classes conflict in a layer where the cosine between the gradients of their losses is negative:
a step that helps one then hurts the other (Yu et al., "Gradient Surgery for Multi-Task Learning",
NeurIPS 2020). Gradients are of one image each, as the noise of training sees them.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax import losses
from condseg_jax.analysis.activations import layer_name
from condseg_jax.models.network import Network

Vectors = dict[str, np.ndarray]  # layer → the gradient of all its parameters


class Sums(NamedTuple):
  """Per layer, the values of all rounds.

  Attributes:
    norm: class → layer → norms of its gradients.
    cosine: (class, class) → layer → cosines between the gradients of the two.
    agreement: class → layer → cosines between its gradients of two images, a scale for the above.
  """

  norm: dict
  cosine: dict
  agreement: dict


def class_gradient(model: Network, objective: losses.Objective) -> Callable[..., Mapping]:
  """(variables, image_BDHWC, mask_BDHW, class_id_B) → gradient of one class's loss, compiled.

  The loss is that of training, over the supervised levels. The network is as it predicts: one with
  batch normalisation takes its stored moments.
  """
  def loss(params, variables, image, mask, ids):
    variables = {**variables, "params": params}
    features = model.apply(variables, image, ids if model.encoder_sees_class else None,
                           method=model.encode)
    logits = model.apply(variables, features, ids, method=model.decode_levels)
    return losses.deep_loss([level[..., None] for level in logits], mask[..., None],
                            objective).mean()

  gradient = jax.jit(jax.grad(loss))
  return lambda variables, image, mask, ids: gradient(variables["params"], variables, image, mask,
                                                      ids)


def by_layer(tree: Mapping) -> Vectors:
  """A tree of parameters or gradients as one float64 vector for each layer that has some."""
  found: dict[str, list] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = layer_name([key.key for key in path])
    if name:
      found.setdefault(name, []).append(np.asarray(leaf, np.float64).ravel())
  return {name: np.concatenate(parts) for name, parts in found.items()}


def unmeasured(tree: Mapping) -> list[str]:
  """The parts of a tree of parameters that are of no layer; the class vectors are none."""
  paths = [[key.key for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return list(dict.fromkeys(path[0] for path in paths
                            if path[0] != "class_vector" and not layer_name(path)))


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
  """Between two vectors; None where one of them is zero."""
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / norms) if norms > 0 else None


def compare(rounds: Iterable[Mapping[str, Vectors]], one_image: bool = True) -> Sums:
  """Norms and cosines of a series of rounds, each the gradients of all classes.

  No more than two rounds are held at a time.

  Args:
    rounds: class → layer → gradient.
    one_image: whether those of a round are of the same image; there is no `cosine` otherwise.
  """
  sums, before = Sums({}, {}, {}), {}

  def note(table, key, layer, value):
    values = table.setdefault(key, {}).setdefault(layer, [])
    if value is not None:
      values.append(value)

  for gradients in rounds:
    for name, layers in gradients.items():
      for layer, vector in layers.items():
        note(sums.norm, name, layer, float(np.linalg.norm(vector)))
        if before:
          note(sums.agreement, name, layer, cosine(before[name][layer], vector))
    for a, b in itertools.combinations(gradients, 2) if one_image else ():
      for layer in gradients[a]:
        note(sums.cosine, (a, b), layer, cosine(gradients[a][layer], gradients[b][layer]))
    before = gradients
  return sums


def rounds(gradient: Callable[..., Mapping], variables: Mapping, images: Mapping[str, Sequence],
           ids: Mapping[str, int], count: int) -> Iterable[dict[str, Vectors]]:
  """The rounds for `compare`: the r-th labelled image of every class.

  Args:
    gradient: of `class_gradient`.
    variables: of the network.
    images: class → (image [*shape, C], three-valued mask [*shape]) where the mask is known.
    ids: class → its id.
    count: of the rounds, at most.
  """
  for r in range(min([count, *map(len, images.values())])):
    found = {}
    for name, labelled in images.items():
      image, mask = labelled[r]
      tree = gradient(variables, image[None], mask[None], jnp.full(1, ids[name], jnp.int32))
      found[name] = by_layer(jax.device_get(tree))
    yield found
