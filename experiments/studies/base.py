"""Shared by the studies: steps, and the variants of the comparison. Not a study.

A variant is one training, or several whose networks are used as one:

    found["wide"] = one("hippocampus", model__channels=16)   # `__` stands for the dot

The steps are those of a network that learns all classes. Learning rate, warm-up, batch and
augmentation are the config's. Nothing is held out and the last step is scored: no variant is
selected by score.
"""

from typing import NamedTuple

from condseg_jax.study.declare import Member
from condseg_jax.study.declare import Variant

STEPS = {"hippocampus": 500, "hippocampus_long": 3000, "camvid": 500, "phantom": 500}


# What the committed records were trained with, where the configs have moved on since.
RECORDED: dict[str, dict[str, object]] = {
    "hippocampus": {"model.norm": "group", "model.channels": 8, "model.growth": 8,
                    "model.dtype": "float32"},
    "camvid": {"model.norm": "group", "model.dtype": "float32"},
    "phantom": {"model.norm": "group", "model.channels": 8, "model.growth": 8,
                "model.dtype": "float32"},
}


class Task(NamedTuple):
  """A dataset with its classes and its training config."""

  config: str
  classes: tuple[str, ...]
  classes_full: int  # classes decoded per image under full supervision; 0 for all
  seconds: float  # estimated seconds per step on 2 CPU cores


TASKS = {
    "hippocampus": Task("hippocampus", ("anterior", "posterior"), 0, 0.5),
    "camvid": Task("camvid", ("sky", "building", "pole", "road", "pavement", "tree", "sign",
                              "fence", "car", "pedestrian", "bicyclist"), 1, 0.7),
    "phantom": Task("phantom", ("liver", "spleen", "pancreas"), 0, 0.3),
}


def one(task: str, *, dataset: str = "", steps: int = 0, fusion: str = "argmax",
        name: str = "", **changes) -> Variant:
  """Returns a variant of one network."""
  member = Member(TASKS[task].config, {**RECORDED[task], "data.hold_out": 0.0,
                                       "train.steps": steps or STEPS[task]}).replace(**changes)
  return Variant(name, (member,), dataset or task, fusion=fusion)


def specialists(task: str, *, dataset: str = "", steps: int = 0, **changes) -> Variant:
  """Returns one network per class, each of the conditional network's size, with `steps` each."""
  of_all = one(task, dataset=dataset, steps=steps, **changes)

  def of_one(name):
    return of_all.members[0].replace(
        data__include_classes=(name,), data__classes=(name,), data__presets={},
        data__lateral_axes=sides(task, name))

  return Variant("", tuple(map(of_one, TASKS[task].classes)), of_all.dataset)


def sides(task: str, name: str) -> dict:
  """Returns a config's `data.lateral_axes` restricted to the class `name`."""
  return {name: ("H",)} if task == "hippocampus" else {}


def conditional(task: str, **changes) -> dict[str, Variant]:
  """Returns the three conditioning positions of the paper."""
  return {"cond_2nd": one(task, conditioning__position="input", **changes),
          "cond_enc": one(task, conditioning__position="encoder", **changes),
          "cond_dec": one(task, conditioning__position="decoder", **changes)}


def comparison(task: str, steps: int = 0) -> dict[str, Variant]:
  """Returns all variants of the comparison, trained with the same number of samples."""
  steps, count = steps or STEPS[task], len(TASKS[task].classes)
  output = dict(conditioning__position="output_head", conditioning__mechanism="output")
  found = conditional(task, steps=steps)
  found["full"] = one(task, dataset=f"{task}_full", steps=steps, conditioning__position="decoder",
                      data__classes_per_image=TASKS[task].classes_full)
  found["indivs"] = specialists(task, steps=max(1, steps // count))
  found["indivs_long"] = specialists(task, steps=steps)
  found["no_cond"] = one(task, steps=steps, data__unannotated="background",
                         data__classes_per_image=0, **output)
  found["single_map"] = one(task, steps=steps, fusion="independent", conditioning__position="none")
  found["multi_channel"] = one(task, steps=steps, **output)
  found["heads"] = one(task, steps=steps, conditioning__position="per_class_decoders")
  return found


def alone(found: dict[str, Variant]) -> dict[str, Variant]:
  """Returns the same trainings scored one class at a time, without competition for voxels."""
  return {name: v.replace(fusion="independent") for name, v in found.items()}


def mechanisms(task: str) -> list[Variant]:
  """Returns mechanisms that condition the decoder, and two that condition the head."""
  decoder = [("channel", vector) for vector in ("embedding", "one_hot", "hash")]
  decoder += [(name, "embedding") for name in ("film", "norm", "batch_norm", "channel_gate",
                                               "spatial_gate", "spade")]
  found = [one(task, conditioning__position="decoder", conditioning__mechanism=mechanism,
               conditioning__vector=vector
               ).replace(name="cond_dec", mechanism=f"{mechanism} {vector}")
           for mechanism, vector in decoder]
  # Instance normalisation applies to the whole network, so that it is also present unconditioned.
  found += [v.replace(mechanism=v.mechanism.replace(" ", " (instance) "), model__norm="instance")
            for v in found if v.mechanism in ("channel embedding", "norm embedding")]
  dynamic = one(task, conditioning__position="output_head", conditioning__mechanism="dynamic",
                conditioning__vector="embedding")
  output = one(task, conditioning__position="output_head", conditioning__mechanism="output")
  return [*found, dynamic.replace(name="head", mechanism="dynamic embedding"),
          output.replace(name="head", mechanism="output")]


def positions(task: str, levels: int) -> list[Variant]:
  """Returns variants with the condition in the n finest decoder levels, for every n."""
  decoder = one(task, name="cond_dec", conditioning__position="decoder")
  return [decoder.replace(level=n, conditioning__from_level=None if n == levels else n - 1)
          for n in range(1, levels + 1)]


def named(found: dict[str, Variant]) -> tuple[Variant, ...]:
  """Returns the variants named by their keys."""
  return tuple(variant.replace(name=name) for name, variant in found.items())
