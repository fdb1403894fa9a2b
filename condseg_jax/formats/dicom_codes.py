"""Codes of class names, from the context groups of the DICOM standard in pydicom.

A name is looked up by its words; order, case and plural are ignored: `kidney_left` and `left
kidney` are the kidney with the modifier left, `vertebrae L1` is the L1 vertebra, `liver tumour` is
a neoplasm in the liver. A name without a code gets that of tissue (SNOMED CT 85756007), the generic
code that other programs use, too; the segment label still contains the name.

Standard: DICOM PS3.16, CID 7150, 7192, 7159, 244.
"""

from collections.abc import Mapping
import functools
import re
from typing import NamedTuple

# Common words that the standard does not use; both sides in the form that `_words` returns.
SYNONYMS = {"tumour": "neoplasm", "tumor": "neoplasm", "cancer": "neoplasm", "oedema": "edema",
            "haemorrhage": "hemorrhage", "oesophagu": "esophagu", "bowel": "intestin"}
SILENT = frozenset({"of", "the", "gland", "urinary"})
NO_LESION = ("Background", "Normal")  # members of the group of lesions that are not lesions


class Meaning(NamedTuple):
  """The pydicom codes of a class.

  Attributes:
    category: e.g. anatomical structure.
    type: e.g. kidney.
    modifier: left, right or None.
    region: location of a lesion, None if the name does not contain it.
    known: False for the generic code.
  """

  category: object
  type: object
  modifier: object = None
  region: object = None
  known: bool = True


def meaning(name: str) -> Meaning:
  """Returns the codes of a class name."""
  from pydicom.sr.codedict import codes
  anatomy, lesions = _index("cid7192"), _index("cid7159")
  words = _words(name)
  lesion = next((word for word in sorted(words) if frozenset({word}) in lesions), None)
  if lesion is not None:
    region, modifier = _structure(words - {lesion}, anatomy)
    return Meaning(codes.cid7150.MorphologicallyAbnormalStructure, lesions[frozenset({lesion})],
                   modifier, region)
  structure, modifier = _structure(words, anatomy)
  if structure is not None:
    return Meaning(codes.cid7150.AnatomicalStructure, structure, modifier)
  return Meaning(codes.cid7150.Tissue, codes.cid7150.Tissue, known=False)


def _structure(words: frozenset[str], anatomy: Mapping) -> tuple:
  """Returns code and side of an anatomical structure; (None, None) for an unknown one."""
  from pydicom.sr.codedict import codes
  if words in anatomy:
    return anatomy[words], None
  for side, code in (("left", codes.SCT.Left), ("right", codes.SCT.Right)):
    if side in words and words - {side} in anatomy:
      return anatomy[words - {side}], code
  return None, None


@functools.cache
def _index(group: str) -> dict[frozenset[str], object]:
  """Returns words of a meaning → code, without words that several codes share."""
  from pydicom.sr.codedict import codes
  index: dict = {}
  for code in getattr(codes, group).concepts.values():
    if code.meaning not in NO_LESION:
      index.setdefault(_words(code.meaning), []).append(code)
  return {words: candidates[0] for words, candidates in index.items()
          if len({(c.scheme_designator, c.value) for c in candidates}) == 1}


def _words(text: str) -> frozenset[str]:
  """Returns the words of a name without their endings, so that plural and singular are equal."""
  words = (word.rstrip("es") or word for word in re.findall(r"[a-z0-9]+", text.lower()))
  return frozenset(SYNONYMS.get(word, word) for word in words) - SILENT
