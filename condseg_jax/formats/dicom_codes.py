"""Class names as codes, from the context groups of the DICOM standard that pydicom holds.

A name is looked up by its words, whatever their order, case and number: `kidney_left` and
`left kidney` are the kidney with the modifier left, `vertebrae L1` is the L1 vertebra, `liver
tumour` is a neoplasm in the liver. A name that no group knows is coded as tissue (SNOMED CT
85756007), the generic code that other programs use, too; its label still says what it is.

Standard: DICOM PS3.16, CID 7150, 7192, 7159, 244.
"""

from collections.abc import Mapping
import functools
import re
from typing import NamedTuple

# What people write and the standard does not; as they are after `_words`.
SYNONYMS = {"tumour": "neoplasm", "tumor": "neoplasm", "cancer": "neoplasm", "oedema": "edema",
            "haemorrhage": "hemorrhage", "oesophagu": "esophagu", "bowel": "intestin"}
SILENT = frozenset({"of", "the", "gland", "urinary"})
NO_LESION = ("Background", "Normal")  # in their group all the same


class Meaning(NamedTuple):
  """What a class is, as pydicom codes.

  Attributes:
    category: e.g. anatomical structure.
    type: e.g. kidney.
    modifier: left or right, None where there is none.
    region: where a lesion lies, None where it does not say.
    known: False for the generic code.
  """

  category: object
  type: object
  modifier: object = None
  region: object = None
  known: bool = True


def meaning(name: str) -> Meaning:
  """The codes of a class name."""
  from pydicom.sr.codedict import codes
  anatomy, lesions = _index("cid7192"), _index("cid7159")
  words = _words(name)
  lesion = next((word for word in sorted(words) if frozenset({word}) in lesions), None)
  if lesion is not None:
    region, modifier = _place(words - {lesion}, anatomy)
    return Meaning(codes.cid7150.MorphologicallyAbnormalStructure, lesions[frozenset({lesion})],
                   modifier, region)
  found, modifier = _place(words, anatomy)
  if found is not None:
    return Meaning(codes.cid7150.AnatomicalStructure, found, modifier)
  return Meaning(codes.cid7150.Tissue, codes.cid7150.Tissue, known=False)


def _place(words: frozenset[str], anatomy: Mapping) -> tuple:
  """Code and side of an anatomical structure; (None, None) where it is none."""
  from pydicom.sr.codedict import codes
  if words in anatomy:
    return anatomy[words], None
  for side, code in (("left", codes.SCT.Left), ("right", codes.SCT.Right)):
    if side in words and words - {side} in anatomy:
      return anatomy[words - {side}], code
  return None, None


@functools.cache
def _index(group: str) -> dict[frozenset[str], object]:
  """The words of a meaning → its code; without words that several codes share."""
  from pydicom.sr.codedict import codes
  index: dict = {}
  for code in getattr(codes, group).concepts.values():
    if code.meaning not in NO_LESION:
      index.setdefault(_words(code.meaning), []).append(code)
  return {words: found[0] for words, found in index.items()
          if len({(c.scheme_designator, c.value) for c in found}) == 1}


def _words(text: str) -> frozenset[str]:
  """The words of a name without their endings, so that plural and singular are one."""
  words = (word.rstrip("es") or word for word in re.findall(r"[a-z0-9]+", text.lower()))
  return frozenset(SYNONYMS.get(word, word) for word in words) - SILENT
