"""All measures of one network, as a tree of plain numbers.

    layers      name, part, level, channels, parameters of each, in network order
    measures    measure → class (or `class|class`, or "") → a value for each layer, None if none
    spread      the same for the measures that are means over images: standard deviations
    no_gradient layers that no gradient reaches, trained or at initialisation
    unmeasured  parts of the network that are of no layer, such as the decoders of `heads`
    parameters, class_plane, maps
"""

from collections.abc import Callable
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
from condseg_jax.losses import make_objective
from condseg_jax.predictor import Predictor

BOTH = "|"  # between the names of a pair of classes


def analyse(predictor: Predictor, samples: Sequence[Sample], *, loss: Loss, seed: int,
            gradient_images: int, pictures: bool = True,
            seen: Callable[[], None] = lambda: None) -> dict:
  """Measures a network; see the module's docstring for what is returned.

  Args:
    predictor: the network.
    samples: what it is measured on.
    loss: settings that it was trained with.
    seed: of its initial parameters.
    gradient_images: images that gradients are taken of, at most.
    pictures: whether to keep `maps`, which show a slice of an image.
    seen: called after each image and class, and each round of gradients.
  """
  model, variables, names = predictor.model, predictor.variables, predictor.table.names
  places = activations.places(model, samples[0].image.shape[-1])
  per_layer = [feature_measures(f, names)
               for f in features.collect(model, variables, samples, len(names), seen)]
  measures: dict = {}
  for i, found in enumerate(per_layer):
    for (measure, of), value in found.items():
      column = measures.setdefault(measure, {}).setdefault(of, [None] * len(places))
      column[i] = value

  spread: dict = {}
  order = [place.name for place in places]
  gradient = gradients.class_gradient(model, make_objective(loss))
  images, shared = labelled_images(samples, names)
  ids = {name: i for i, name in enumerate(names)}
  starting = jax.jit(model.init)(jax.random.key(seed), samples[0].image[None],
                                 jnp.zeros(1, jnp.int32))
  # Where the trained ones are; elsewhere the gradient would be compiled again.
  starting = jax.device_put(starting, jax.local_devices()[0])
  for suffix, values in (("", variables), ("_init", starting)):
    rounds = gradients.rounds(gradient, values, images, ids, gradient_images)
    sums = gradients.compare(_watched(rounds, seen), shared)
    means, deviations = gradient_measures(sums, order)
    measures |= {name + suffix: table for name, table in means.items()}
    spread |= {name + suffix: table for name, table in deviations.items()}

  vectors = parameters.class_vectors(variables["params"])
  counts = {name: len(vector) for name, vector in gradients.by_layer(variables["params"]).items()}
  return {
      "position": model.position, "step": predictor.step, "classes": list(names),
      "colors": [list(color) for color in predictor.table.colors],
      "layers": [{**p._asdict(), "parameters": counts.get(p.name, 0)} for p in places],
      "measures": measures, "spread": spread,
      "no_gradient": {state: silent_layers(measures.get(f"gradient_norm{suffix}", {}), order)
                      for state, suffix in (("trained", ""), ("init", "_init"))},
      "unmeasured": gradients.unmeasured(variables["params"]),
      "parameters": [p._asdict() for p in parameters.parameter_table(variables["params"])],
      "class_plane": None if vectors is None else class_plane(vectors),
      "maps": maps(predictor, _most_annotated(samples), places) if pictures else None,
  }


def feature_measures(f: features.Features, names: Sequence[str]) -> dict[tuple[str, str], object]:
  """(measure, class or pair) → value, of one layer.

  `mask_dice`, `mask_auc`: of the linear probe for a class in the features under that class;
  `…_other`: in those under the next class of the table. `class_probe`, `class_share` and `cka`: see
  `probes` and `similarity`.
  """
  k, channels = len(names), f.voxels.shape[-1]
  flat = f.voxels.reshape(k, -1, channels)
  found = {("class_probe", ""): probes.class_probe(f.pooled),
           ("class_share", ""): features.class_share(flat)}
  for a, b in itertools.combinations(range(k), 2):
    found["cka", BOTH.join((names[a], names[b]))] = features.linear_cka(flat[a], flat[b])
  for c, name in enumerate(names):
    for asked, suffix in ((c, ""), ((c + 1) % k, "_other")):
      if suffix and k == 1:
        continue
      score = probes.mask_probe(f.voxels[asked], f.mask[..., c])
      for measure in probes.MaskScore._fields:
        value = None if score is None else getattr(score, measure)
        found[f"mask_{measure}{suffix}", name] = value
  return found


def gradient_measures(sums: gradients.Sums, order: Sequence[str]) -> tuple[dict, dict]:
  """Means over the rounds, and standard deviations, of what `gradients.compare` found.

  `gradient_norm` of a class, `gradient_cosine` of a pair of classes, `gradient_agreement` of a
  class in two images.
  """
  means, deviations = {}, {}
  for measure, table in (("norm", sums.norm), ("cosine", sums.cosine),
                         ("agreement", sums.agreement)):
    for key, layers in table.items():
      name = key if isinstance(key, str) else BOTH.join(key)
      columns = [layers.get(layer, []) for layer in order]
      means.setdefault(f"gradient_{measure}", {})[name] = [
          float(np.mean(values)) if values else None for values in columns]
      deviations.setdefault(f"gradient_{measure}", {})[name] = [
          float(np.std(values)) if values else None for values in columns]
  return means, deviations


def silent_layers(norms: Mapping[str, Sequence], order: Sequence[str]) -> list[str]:
  """The layers whose gradient is zero for every class."""
  columns = zip(*norms.values(), strict=True) if norms else ()
  return [layer for layer, column in zip(order, columns, strict=False)
          if all(value == 0 for value in column)]


def labelled_images(samples: Sequence[Sample],
                    names: Sequence[str]) -> tuple[dict[str, list], bool]:
  """Class → (image, mask) of samples that label some voxel of it; classes without are left out.

  Returns:
    The same samples for all classes where some label them all, and whether that is so. Otherwise
    each class has its own.
  """
  own = {name: [s for s in samples
                if i in s.annotated and (s.masks[..., i] != UNLABELLED).any()]
         for i, name in enumerate(names)}
  own = {name: labelled for name, labelled in own.items() if labelled}
  whole = [s for s in samples if all(any(s is t for t in labelled) for labelled in own.values())]
  return {name: [(s.image, s.masks[..., names.index(name)]) for s in whole or labelled]
          for name, labelled in own.items()}, bool(whole)


def class_plane(vectors: np.ndarray) -> dict:
  """Learned class vectors in two dimensions, see `parameters.principal_plane`."""
  plane, parts = parameters.principal_plane(vectors)
  return {"coordinates": plane.tolist(), "variance": parts.tolist()}


def maps(predictor: Predictor, sample: Sample, places: Sequence[activations.Place]) -> dict:
  """Slices through the features of one image, packed."""
  found, image, label = feature_maps.layer_maps(
      predictor.model, predictor.variables, sample, predictor.table.names,
      feature_maps.shown_layers(places))
  return {"case": sample.id, "image": feature_maps.pack(image), "label": label.tolist(),
          "spacing": list(predictor.plan.spacing),
          "layers": [{"name": m.name, "share": m.share, "change": feature_maps.pack(m.change),
                      "maps": {c: feature_maps.pack(v) for c, v in m.maps.items()}}
                     for m in found]}


def _most_annotated(samples: Sequence[Sample]) -> Sample:
  return max(samples, key=lambda s: len(s.annotated))  # the first of these


def _watched(rounds, seen):
  for found in rounds:
    seen()
    yield found
