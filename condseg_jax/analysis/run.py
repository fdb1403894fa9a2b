"""All measures of one network, as a tree of plain numbers.

    layers       name, part, level, channels and number of parameters, in network order
    measures     measure → class (or `class|class`, or "") → a value or None for each layer
    spread       the same for measures that are means over images: their standard deviations
    no_gradient  layers without gradient, trained and at initialisation
    unmeasured   submodules that belong to no layer, such as separate decoders per class
    parameters   name, shape and count of every array
    class_plane  learned class vectors in two dimensions, or None
    maps         slices through the features of one image, or None
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.analysis import activations
from condseg_jax.analysis import feature_maps
from condseg_jax.analysis import features
from condseg_jax.analysis import gradients
from condseg_jax.analysis import parameters
from condseg_jax.analysis import probes
from condseg_jax.analysis.samples import Sample
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Loss
from condseg_jax.errors import InputError
from condseg_jax.losses import make_objective
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.res_unet import ResUNet
from condseg_jax.predictor import Predictor

PAIR = "|"  # separates the names of a pair of classes


def analyse(predictor: Predictor, samples: Sequence[Sample], *, loss: Loss, seed: int,
            gradient_images: int, pictures: bool = True,
            on_progress: Callable[[], None] = lambda: None) -> dict:
  """Measures a network.

  Args:
    predictor: the network.
    samples: labelled inputs.
    loss: settings of the loss that the network was trained with.
    seed: seed of the initial parameters.
    gradient_images: maximum number of images for gradients.
    pictures: whether to include `maps`, which show a slice of an image.
    on_progress: called after each image and class, and after each round of gradients.

  Returns:
    A tree for JSON, see the docstring of the module.

  Raises:
    InputError: the submodules of the network do not have the names that layers are told by.
  """
  model, variables, names = predictor.model, predictor.variables, predictor.table.names
  if not isinstance(model, (DenseUNet, ResUNet)):
    raise InputError("network", f"the analysis does not know {type(model).__name__}",
                     "analyse a dense_unet or a res_unet")
  layers = activations.list_layers(model, samples[0].image.shape[-1])
  measures: dict = {}
  for i, f in enumerate(features.collect(model, variables, samples, len(names), on_progress)):
    for (measure, of), value in feature_measures(f, names).items():
      column = measures.setdefault(measure, {}).setdefault(of, [None] * len(layers))
      column[i] = value

  spread: dict = {}
  order = [layer.name for layer in layers]
  gradient = gradients.class_gradient(model, make_objective(loss))
  images, shared = labelled_images(samples, names)
  ids = {name: i for i, name in enumerate(names)}
  initial = jax.jit(model.init)(jax.random.key(seed), samples[0].image[None],
                                jnp.zeros(1, jnp.int32))
  # On the device of the trained variables; otherwise the gradient would be compiled again.
  initial = jax.device_put(initial, jax.local_devices()[0])
  for suffix, values in (("", variables), ("_init", initial)):
    rounds = gradients.rounds(gradient, values, images, ids, gradient_images)
    sums = gradients.compare(_with_progress(rounds, on_progress), shared)
    means, deviations = gradient_measures(sums, order)
    measures |= {name + suffix: table for name, table in means.items()}
    spread |= {name + suffix: table for name, table in deviations.items()}

  vectors = parameters.class_vectors(variables["params"])
  counts = {name: len(vector) for name, vector in gradients.by_layer(variables["params"]).items()}
  return {
      "position": model.position, "step": predictor.step, "classes": list(names),
      "colors": [list(color) for color in predictor.table.colors],
      "layers": [{**layer._asdict(), "parameters": counts.get(layer.name, 0)} for layer in layers],
      "measures": measures, "spread": spread,
      "no_gradient": {state: silent_layers(measures.get(f"gradient_norm{suffix}", {}), order)
                      for state, suffix in (("trained", ""), ("init", "_init"))},
      "unmeasured": gradients.unmeasured(variables["params"]),
      "parameters": [p._asdict() for p in parameters.parameter_table(variables["params"])],
      "class_plane": None if vectors is None else class_plane(vectors),
      "maps": maps(predictor, _most_annotated(samples), layers) if pictures else None,
  }


def feature_measures(f: features.Features, names: Sequence[str]) -> dict[tuple[str, str], object]:
  """Computes the measures of one layer.

  `mask_dice` and `mask_auc` score the linear probe for a class on the features under that class,
  `…_other` on those under the next class of the table. For `class_probe` see `probes`, for
  `class_share` and `cka` see `features`.

  Args:
    f: features of the layer.
    names: classes in the order of their ids.

  Returns:
    (measure, class or pair) → value, None if undefined.
  """
  k, channels = len(names), f.voxels.shape[-1]
  flat = f.voxels.reshape(k, -1, channels)
  measures = {("class_probe", ""): probes.class_probe(f.pooled),
              ("class_share", ""): features.class_share(flat)}
  for a, b in itertools.combinations(range(k), 2):
    measures["cka", PAIR.join((names[a], names[b]))] = features.linear_cka(flat[a], flat[b])
  for c, name in enumerate(names):
    for requested, suffix in ((c, ""), ((c + 1) % k, "_other")):
      if suffix and k == 1:
        continue
      score = probes.mask_probe(f.voxels[requested], f.mask[..., c])
      for measure in probes.MaskScore._fields:
        value = None if score is None else getattr(score, measure)
        measures[f"mask_{measure}{suffix}", name] = value
  return measures


def gradient_measures(sums: gradients.Sums, order: Sequence[str]) -> tuple[dict, dict]:
  """Computes means and standard deviations over the rounds.

  `gradient_norm` of a class, `gradient_cosine` of a pair of classes, `gradient_agreement` of a
  class in two images.

  Args:
    sums: of `gradients.compare`.
    order: names of the layers.

  Returns:
    Means and standard deviations: measure → class or pair → a value or None for each layer.
  """
  means, deviations = {}, {}
  for measure, table in (("norm", sums.norm), ("cosine", sums.cosine),
                         ("agreement", sums.agreement)):
    for key, layers in table.items():
      name = key if isinstance(key, str) else PAIR.join(key)
      columns = [layers.get(layer, []) for layer in order]
      means.setdefault(f"gradient_{measure}", {})[name] = [
          float(np.mean(values)) if values else None for values in columns]
      deviations.setdefault(f"gradient_{measure}", {})[name] = [
          float(np.std(values)) if values else None for values in columns]
  return means, deviations


def silent_layers(norms: Mapping[str, Sequence], order: Sequence[str]) -> list[str]:
  """Returns the layers whose gradient is zero for every class.

  Args:
    norms: class → gradient norm of each layer.
    order: names of the layers.
  """
  columns = zip(*norms.values(), strict=True) if norms else ()
  return [layer for layer, column in zip(order, columns, strict=False)
          if all(value == 0 for value in column)]


def labelled_images(samples: Sequence[Sample],
                    names: Sequence[str]) -> tuple[dict[str, list], bool]:
  """Selects images with labelled voxels of each class.

  Args:
    samples: labelled inputs.
    names: classes in the order of their ids.

  Returns:
    Class → list of (image, mask), without classes that no sample labels; and whether the images
    are the same for all classes, which is the case if some samples label them all.
  """
  own = {name: [s for s in samples
                if i in s.annotated and (s.masks[..., i] != UNLABELLED).any()]
         for i, name in enumerate(names)}
  own = {name: labelled for name, labelled in own.items() if labelled}
  common = [s for s in samples if all(any(s is t for t in labelled) for labelled in own.values())]
  return {name: [(s.image, s.masks[..., names.index(name)]) for s in common or labelled]
          for name, labelled in own.items()}, bool(common)


def class_plane(vectors_KE: np.ndarray) -> dict:
  """Returns learned class vectors in two dimensions for JSON, see `parameters.principal_plane`."""
  plane, shares = parameters.principal_plane(vectors_KE)
  return {"coordinates": plane.tolist(), "variance": shares.tolist()}


def maps(predictor: Predictor, sample: Sample, layers: Sequence[activations.LayerInfo]) -> dict:
  """Returns slices through the features of one image for JSON, see `feature_maps.layer_maps`."""
  layer_maps, image, label = feature_maps.layer_maps(
      predictor.model, predictor.variables, sample, predictor.table.names,
      feature_maps.shown_layers(layers))
  return {"case": sample.id, "image": feature_maps.pack(image), "label": label.tolist(),
          "spacing": list(predictor.plan.spacing),
          "layers": [{"name": m.name, "share": m.share, "change": feature_maps.pack(m.change),
                      "maps": {c: feature_maps.pack(v) for c, v in m.maps.items()}}
                     for m in layer_maps]}


def _most_annotated(samples: Sequence[Sample]) -> Sample:
  return max(samples, key=lambda s: len(s.annotated))  # the first of several


def _with_progress(rounds: Iterable, on_progress: Callable[[], None]) -> Iterator:
  for gradients_of_round in rounds:
    on_progress()
    yield gradients_of_round
