"""Partial labels from a fully labelled dataset: one annotated class per training case.

Each training case is assigned to one class: it joins the dataset of this class and annotates
nothing else, even if other classes are visible. Cases of other splits remain fully annotated, for
scoring. `annotate_in_full` is the inverse, for comparison.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax.datasets.raw import annotate_only
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.errors import InputError

BLOCK = 6  # frames; neighbouring frames are near duplicates


def partial_labels_by_frames(folder: RawFolder, block: int = BLOCK) -> RawFolder:
  """Assigns training frames to the classes in blocks of consecutive frames, round-robin.

  In smaller blocks two datasets would share a view. The classes alternate within each group (city,
  sequence); the next group continues with the next class.

  Args:
    folder: the dataset.
    block: number of frames in a block.

  Raises:
    InputError: `block` < 1, or a training case that does not annotate every class.
  """
  if block < 1:
    raise InputError("block", f"must be at least 1, not {block}", "give a number of frames",
                     usage=True)
  sequences: dict[str, list[RawCase]] = {}
  for case in folder.cases:
    if case.split == "train":
      sequences.setdefault(case.group, []).append(case)
  blocks = [cases[i:i + block] for cases in sequences.values() for i in range(0, len(cases), block)]
  return _assigned(folder, blocks, {"by": "frames", "block": block})


def partial_labels_by_cases(folder: RawFolder, seed: int = 0) -> RawFolder:
  """Assigns training cases to the classes at random, in equal numbers, patient by patient.

  Raises:
    InputError: a training case that does not annotate every class, or fewer patients than classes.
  """
  patients: dict[str, list[RawCase]] = {}
  for case in folder.cases:
    if case.split == "train":
      patients.setdefault(case.group or f"case {case.id}", []).append(case)
  if len(patients) < len(folder.classes):
    raise InputError(folder.root, f"{len(patients)} patients for {len(folder.classes)} classes",
                     "keep fewer classes", usage=True)
  names = sorted(patients)
  order = np.random.default_rng(seed).permutation(len(names))
  return _assigned(folder, [patients[names[i]] for i in order], {"by": "cases", "seed": seed})


def annotate_in_full(folder: RawFolder) -> RawFolder:
  """Annotates all classes in the training cases, as in the other splits; datasets are unchanged.

  This is the upper bound for learning from partial labels: the same cases, sampled alike.

  Raises:
    InputError: no fully labelled case outside of the training split, or several annotations there.
  """
  classes = set(folder.classes)
  annotations = [case.labels[0].annotation for case in folder.cases
                 if case.split != "train" and len(case.labels) == 1 and
                 set(case.classes) == classes]
  if not annotations or any(annotation != annotations[0] for annotation in annotations):
    raise InputError(folder.root, "has no fully labelled case outside of the training split, or "
                     "several annotations there", "annotate the training cases in full yourself")

  def in_full(case: RawCase) -> RawCase:
    paths = list(dict.fromkeys(label.path for label in case.labels))
    if len(paths) != 1:
      raise InputError(case.image, "has several label maps", "merge them into one")
    return dataclasses.replace(case, labels=(RawLabel(paths[0], annotations[0]),))

  cases = tuple(in_full(case) if case.split == "train" else case for case in folder.cases)
  return dataclasses.replace(folder, cases=cases,
                             provenance={**folder.provenance, "annotated": "in full"})


def _assigned(folder: RawFolder, blocks: Sequence[Sequence[RawCase]], settings: dict) -> RawFolder:
  """Assigns blocks of training cases to the classes, round-robin."""
  classes = folder.classes
  class_of = {}
  for number, cases in enumerate(blocks):
    for case in cases:
      if set(case.classes) != set(classes):
        raise InputError(case.image, "does not annotate every class of its dataset",
                         "use fully labelled cases only")
      class_of[case.id] = classes[number % len(classes)]
  cases = tuple(
      dataclasses.replace(annotate_only(case, (class_of[case.id],)), dataset=class_of[case.id])
      if case.id in class_of else case for case in folder.cases)
  return dataclasses.replace(folder, cases=cases,
                             provenance={**folder.provenance, "carve": settings})
