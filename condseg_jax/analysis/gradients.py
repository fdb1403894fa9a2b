"""Gradients of the losses of the classes, layer by layer: their norms and conflicts.

Two classes conflict in a layer where the cosine between the gradients of their losses is negative:
a step that decreases one loss then increases the other (Yu et al., "Gradient Surgery for Multi-Task
Learning", NeurIPS 2020). Every gradient is that of a single image, which includes the noise of
stochastic training.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
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
  """The values of all rounds for each layer.

  Attributes:
    norm: class → layer → gradient norms.
    cosine: (class, class) → layer → cosines between the gradients of the two classes.
    agreement: class → layer → cosines between the gradients of two images, a scale for `cosine`.
  """

  norm: dict
  cosine: dict
  agreement: dict


def class_gradient(model: Network, objective: losses.Objective) -> Callable[..., Mapping]:
  """Compiles (variables, image_BDHWC, mask_BDHW, class_id_B) → gradient of the loss of one class.

  The loss is that of training, over the supervised levels. The network is in inference mode: batch
  normalisation uses its running moments.

  Args:
    model: the network.
    objective: of the training, see `losses.make_objective`.
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
  """Flattens a tree of parameters or gradients to one float64 vector per layer."""
  leaves: dict[str, list] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = layer_name([key.key for key in path])
    if name:
      leaves.setdefault(name, []).append(np.asarray(leaf, np.float64).ravel())
  return {name: np.concatenate(arrays) for name, arrays in leaves.items()}


def unmeasured(tree: Mapping) -> list[str]:
  """Returns the submodules with parameters that belong to no layer, except the class vector."""
  paths = [[key.key for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return list(dict.fromkeys(path[0] for path in paths
                            if path[0] != "class_vector" and not layer_name(path)))


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
  """Returns the cosine between two vectors, or None if one of them is zero."""
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / norms) if norms > 0 else None


def compare(rounds: Iterable[Mapping[str, Vectors]], one_image: bool = True) -> Sums:
  """Computes norms and cosines of a series of rounds, keeping two rounds in memory.

  Args:
    rounds: of each round class → layer → gradient.
    one_image: whether the gradients of a round belong to the same image; otherwise `cosine` is
      empty.
  """
  sums, previous = Sums({}, {}, {}), {}

  def append(table, key, layer, value):
    values = table.setdefault(key, {}).setdefault(layer, [])
    if value is not None:
      values.append(value)

  for gradients in rounds:
    for name, layers in gradients.items():
      for layer, vector in layers.items():
        append(sums.norm, name, layer, float(np.linalg.norm(vector)))
        if previous:
          append(sums.agreement, name, layer, cosine(previous[name][layer], vector))
    for a, b in itertools.combinations(gradients, 2) if one_image else ():
      for layer in gradients[a]:
        append(sums.cosine, (a, b), layer, cosine(gradients[a][layer], gradients[b][layer]))
    previous = gradients
  return sums


def rounds(gradient: Callable[..., Mapping], variables: Mapping, images: Mapping[str, Sequence],
           ids: Mapping[str, int], count: int) -> Iterator[dict[str, Vectors]]:
  """Computes the rounds for `compare`: gradients of the r-th labelled image of every class.

  Args:
    gradient: see `class_gradient`.
    variables: variables of the network.
    images: class → (image [*shape, C], three-valued mask [*shape]) of cases that label it.
    ids: class → id.
    count: maximum number of rounds.

  Yields:
    Class → layer → gradient.
  """
  for r in range(min([count, *map(len, images.values())])):
    gradients = {}
    for name, labelled in images.items():
      image, mask = labelled[r]
      tree = gradient(variables, image[None], mask[None], jnp.full(1, ids[name], jnp.int32))
      gradients[name] = by_layer(jax.device_get(tree))
    yield gradients
