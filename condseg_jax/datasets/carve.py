"""Single-class datasets out of a fully labelled one, over disjoint cases.

Each training case goes to one class, whose dataset it joins and which alone it annotates, whatever
else it shows. Cases of other splits stay annotated in full, for scoring. And the way back, for
comparison: `annotate_in_full`.
"""

import dataclasses

import numpy as np

from condseg_jax.datasets.raw import annotate_only
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.errors import InputError

BLOCK = 6  # frames; neighbouring ones are near duplicates


def carve_frames(folder: RawFolder, block: int = BLOCK) -> RawFolder:
  """Deals training frames to the classes in blocks of consecutive frames, round-robin.

  Smaller pieces would let two datasets share a view. Within each group (city, sequence) the classes
  take turns, beginning with the one whose turn it was at the end of the group before.

  Raises:
    InputError: a block of no frames, or cases that do not annotate every class.
  """
  if block < 1:
    raise InputError("--block", f"{block} frames", "give 1 or more", usage=True)
  sequences: dict[str, list[RawCase]] = {}
  for case in folder.cases:
    if case.split == "train":
      sequences.setdefault(case.group, []).append(case)
  blocks = [cases[i:i + block] for cases in sequences.values() for i in range(0, len(cases), block)]
  return _dealt(folder, blocks, {"carve": {"by": "frames", "block": block}})


def carve_cases(folder: RawFolder, seed: int = 0) -> RawFolder:
  """Deals training cases to the classes at random, in equal parts; patients are not parted.

  Raises:
    InputError: cases that do not annotate every class, or fewer patients than classes.
  """
  patients: dict[str, list[RawCase]] = {}
  for case in folder.cases:
    if case.split == "train":
      patients.setdefault(case.group or f"case {case.id}", []).append(case)
  if len(patients) < len(folder.classes):
    raise InputError(folder.root, f"{len(patients)} patients for {len(folder.classes)} classes",
                     "keep fewer classes with --keep", usage=True)
  names = sorted(patients)
  order = np.random.default_rng(seed).permutation(len(names))
  return _dealt(folder, [patients[names[i]] for i in order],
                {"carve": {"by": "cases", "seed": seed}})


def annotate_in_full(folder: RawFolder) -> RawFolder:
  """Training cases annotate all classes, as the cases of the other splits do; datasets stay.

  The upper bound of learning from single-class datasets: the same cases, sampled alike.

  Raises:
    InputError: the cases of other splits do not say how all classes are annotated.
  """
  classes = set(folder.classes)
  whole = [case.labels[0].annotation for case in folder.cases
           if case.split != "train" and len(case.labels) == 1 and set(case.classes) == classes]
  if not whole or any(annotation != whole[0] for annotation in whole):
    raise InputError(folder.root, "has no fully labelled case outside of train, or several kinds",
                     "annotate training cases in full yourself")

  def full(case: RawCase) -> RawCase:
    paths = list(dict.fromkeys(label.path for label in case.labels))
    if len(paths) != 1:
      raise InputError(case.image, "has several label maps", "join them into one")
    return dataclasses.replace(case, labels=(RawLabel(paths[0], whole[0]),))

  cases = tuple(full(case) if case.split == "train" else case for case in folder.cases)
  return dataclasses.replace(folder, cases=cases,
                             recipe={**folder.recipe, "annotated": "in full"})


def _dealt(folder: RawFolder, blocks, recipe) -> RawFolder:
  classes = folder.classes
  turn = {}
  for number, cases in enumerate(blocks):
    for case in cases:
      if set(case.classes) != set(classes):
        raise InputError(case.image, "does not annotate every class of its dataset",
                         "carve fully labelled cases only")
      turn[case.id] = classes[number % len(classes)]
  cases = tuple(
      dataclasses.replace(annotate_only(case, (turn[case.id],)), dataset=turn[case.id])
      if case.id in turn else case for case in folder.cases)
  return dataclasses.replace(folder, cases=cases, recipe={**folder.recipe, **recipe})
