"""Names and colours of a label map, in the extension of a NIfTI header that viewers know.

The extension has the code 30 and holds XML, as Caret and the Connectome Workbench write it:

    <CaretExtension><VolumeInformation Index="0">
      <LabelTable><Label Key="1" Red="0.9" Green="0.2" Blue="0.2" Alpha="1">liver</Label> ...
      <VolumeType>Label</VolumeType>
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
from xml.etree import ElementTree

import nibabel

from condseg_jax.classes import hue

CARET, COMMENT, UNKNOWN = 30, 6, 0  # extension codes of the NIfTI standard
BACKGROUND = "???"  # how the Workbench names what has no label

Colors = dict[str, tuple[int, int, int]]


def extension(names: Mapping[str, int],
              colors: Mapping[str, Sequence[int]]) -> nibabel.nifti1.Nifti1Extension:
  """The label table of some classes.

  Args:
    names: class -> value.
    colors: class -> red, green, blue, 0-255; evenly spread hues for classes without.
  """
  root = ElementTree.Element("CaretExtension")
  volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
  table = ElementTree.SubElement(volume, "LabelTable")
  _add(table, BACKGROUND, 0, (255, 255, 255), alpha=0)
  for name, value in names.items():
    _add(table, str(name), int(value), colors.get(name, hue(int(value) - 1)), alpha=1)
  ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
  ElementTree.SubElement(volume, "VolumeType").text = "Label"
  text = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
  return nibabel.nifti1.Nifti1Extension(CARET, text)


def read_table(extensions: Iterable) -> tuple[dict[str, int], Colors]:
  """Names with values, and names with colours, of the first label table among some extensions.

  Other programs write the same XML with the code 0; this one once wrote names alone, as JSON in a
  comment.
  """
  comments = []
  for one in extensions:
    if one.get_code() not in (CARET, COMMENT, UNKNOWN):
      continue
    content = one.content.rstrip(b"\0 \n")
    if one.get_code() == COMMENT:
      comments.append(content)
      continue
    with contextlib.suppress(ElementTree.ParseError, TypeError, ValueError):
      labels = ElementTree.fromstring(content).iter("Label")
      found = {(label.text or "").strip(): label for label in labels if int(label.get("Key")) != 0}
      if found:
        return ({name: int(label.get("Key")) for name, label in found.items()},
                {name: _color(label) for name, label in found.items()})
  for content in comments:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
      return {str(name): int(value) for name, value in json.loads(content)["labels"].items()}, {}
  return {}, {}


def _add(table, name: str, value: int, color: Sequence[int], alpha: int) -> None:
  red, green, blue = (f"{part / 255:.6g}" for part in color)
  label = ElementTree.SubElement(table, "Label", Key=str(value), Red=red, Green=green, Blue=blue,
                                 Alpha=str(alpha))
  label.text = name


def _color(label) -> tuple[int, int, int]:
  return tuple(round(255 * float(label.get(part))) for part in ("Red", "Green", "Blue"))
