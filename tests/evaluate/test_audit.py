"""Masks against what was found: kinds and order by hand."""

import numpy as np
import pytest

from condseg_jax.classes import UNLABELLED
from condseg_jax.evaluate.audit import agreement
from condseg_jax.evaluate.audit import compare
from condseg_jax.evaluate.audit import rank
from condseg_jax.evaluate.audit import to_json

SHAPE = (16, 24, 20)
ONE = (1.0, 1.0, 1.0)


def box(low, high):
  mask = np.zeros(SHAPE, bool)
  mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
  return mask


LIVER, SPLEEN = box((2, 3, 2), (10, 9, 8)), box((3, 14, 12), (9, 19, 17))
VALUES = {"liver": 1, "spleen": 2}


def found(liver, spleen):
  return (liver + 2 * spleen).astype(np.uint8)


FOUND = found(LIVER, SPLEEN)
NONE = np.zeros(SHAPE, bool)


@pytest.mark.parametrize("mask, kind, dice", [
    (LIVER, "border", 1.0),
    (SPLEEN, "exchanged with spleen", 0.0),
    (LIVER | SPLEEN, "false region", 2 * 288 / (288 + 438)),
    (LIVER & box((0, 0, 0), (6, 24, 20)), "missing part", 2 / 3),
    (np.roll(LIVER, 4, axis=1), "shifted", 1 / 3),
    (np.flip(LIVER, 1), "mirrored along H", 0.0),
    (np.flip(LIVER, 2), "mirrored along W", 0.0),
    (box((12, 20, 2), (15, 23, 5)), "missing part", 0.0),
    (NONE, "missing structure", 0.0)])
def test_kinds(mask, kind, dice):
  assert compare(mask.astype(np.uint8), FOUND, VALUES, "liver", ONE)[1:] == (
      pytest.approx(dice), kind)


def test_nothing_was_found():
  label = found(NONE, SPLEEN)
  against = lambda mask: compare(mask.astype(np.uint8), label, VALUES, "liver", ONE)
  assert against(LIVER) == (0.0, 0.0, "not found")
  assert against(SPLEEN) == (0.0, 0.0, "exchanged with spleen")
  assert against(NONE) == (1.0, 1.0, "border")


def test_unlabelled_voxels_do_not_count():
  mask = (LIVER & box((0, 0, 0), (6, 24, 20))).astype(np.uint8)
  mask[6:] = UNLABELLED
  assert compare(mask, FOUND, VALUES, "liver", ONE) == (1.0, 1.0, "border")


def test_two_dimensions():
  mask = np.zeros((8, 10), bool)
  mask[1:5, 1:3] = True
  assert compare(np.flip(mask, 1).astype(np.uint8), mask.astype(np.uint8), {"car": 1}, "car",
                 (1, 1)) == (0.0, 0.0, "mirrored along W")


@pytest.mark.parametrize("mask, agrees", [
    (LIVER, 1.0), (box((1, 2, 1), (11, 10, 9)), 1.0),  # a voxel too many all around
    (LIVER & ~box((8, 0, 0), (16, 24, 20)), 1.0),  # two planes are missing, then three
    (LIVER & ~box((7, 0, 0), (16, 24, 20)), 1 - 108 / (288 + 180)),
    (LIVER | box((12, 12, 2), (15, 15, 5)), 1 - 27 / (288 + 315)),
    (LIVER | box((12, 12, 2), (15, 15, 4)), 1.0), (SPLEEN, 0.0), (NONE, 0.0)])
def test_rims_agree(mask, agrees):
  assert agreement(mask, LIVER, ONE) == agreement(LIVER, mask, ONE) == pytest.approx(agrees)
  assert agreement(mask[:, ::-1], LIVER[:, ::-1], ONE) == pytest.approx(agrees)


def test_planes_of_thick_slices_are_no_rim():
  low = LIVER & ~box((8, 0, 0), (16, 24, 20))
  assert agreement(low, LIVER, (5, 1, 1)) == pytest.approx(1 - 72 / (288 + 216))


def test_thin_structures_are_compared_as_they_are():
  sheet, next_to_it = box((2, 2, 2), (4, 20, 18)), box((3, 2, 2), (5, 20, 18))
  assert agreement(sheet, next_to_it, ONE) == pytest.approx(0.5)


def test_structures_at_the_border_of_the_image():
  mask = box((0, 0, 0), (6, 6, 6))
  assert agreement(mask, mask & box((0, 0, 3), SHAPE), ONE) == pytest.approx(1 - 108 / 324)


def test_a_mask_is_compared_with_the_others_of_its_class():
  """A Dice that is usual for a hard class is no reason for suspicion."""
  easy = [*((f"e{n}", "easy", 0.9, 0.9, "border") for n in range(4)),
          ("bad", "easy", 0.6, 0.5, "shifted")]
  hard = [*((f"h{n}", "hard", 0.5, 0.5, "border") for n in range(4)),
          ("good", "hard", 0.8, 0.8, "border")]
  rows = rank([*easy, *hard])
  assert (rows[0].case, rows[0].kind, rows[0].score) == ("bad", "shifted", pytest.approx(0.3))
  assert rows[0].dice == 0.5
  assert all(row.score == 0 for row in rows[1:]) and len(rows) == 10
  assert rank(reversed([*easy, *hard])) == rows
  first = to_json(rows)["rows"][0]
  assert list(first)[:4] == ["case", "class", "score", "kind"] and first["case"] == "bad"


def test_a_class_that_no_network_finds_is_not_suspicious():
  assert [row.score for row in rank([("a", "x", 0.0, 0.0, "not found")] * 2)] == [0.0, 0.0]
