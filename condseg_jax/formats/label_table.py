"""Names and colours of a label map, in a NIfTI header extension that viewers support.

The extension has the code 30 and contains XML, as written by Caret and the Connectome Workbench:

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
BACKGROUND = "???"  # the Workbench's name of voxels without a label

Colors = dict[str, tuple[int, int, int]]


def extension(names: Mapping[str, int],
              colors: Mapping[str, Sequence[int]]) -> nibabel.nifti1.Nifti1Extension:
  """Creates the label table of some classes.

  Args:
    names: class -> value.
    colors: class -> red, green, blue, 0-255; evenly spread hues by default.
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
  """Reads the first label table among some extensions.

  Other programs write the same XML with the code 0; earlier versions of this package wrote names as
  JSON in a comment.

  Returns:
    Name → value, and name → colour; empty if there is no table.
  """
  comments = []
  for entry in extensions:
    if entry.get_code() not in (CARET, COMMENT, UNKNOWN):
      continue
    content = entry.content.rstrip(b"\0 \n")
    if entry.get_code() == COMMENT:
      comments.append(content)
      continue
    # An unknown encoding is a LookupError.
    with contextlib.suppress(ElementTree.ParseError, TypeError, ValueError, LookupError):
      labels = {(label.text or "").strip(): label
                for label in ElementTree.fromstring(content).iter("Label")
                if int(label.get("Key")) != 0}
      if labels:
        return ({name: int(label.get("Key")) for name, label in labels.items()},
                {name: _color(label) for name, label in labels.items()})
  for content in comments:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError,
                             RecursionError):
      return {str(name): int(value) for name, value in json.loads(content)["labels"].items()}, {}
  return {}, {}


def _add(table: ElementTree.Element, name: str, value: int, color: Sequence[int],
         alpha: int) -> None:
  red, green, blue = (f"{level / 255:.6g}" for level in color)
  label = ElementTree.SubElement(table, "Label", Key=str(value), Red=red, Green=green, Blue=blue,
                                 Alpha=str(alpha))
  label.text = name


def _color(label: ElementTree.Element) -> tuple[int, int, int]:
  return tuple(round(255 * float(label.get(channel))) for channel in ("Red", "Green", "Blue"))
