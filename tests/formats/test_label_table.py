"""Names and colours of a label map, as viewers find them in a NIfTI header."""

from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.classes import hue
from condseg_jax.formats.files import write_label
from condseg_jax.formats.nifti import read_colors
from condseg_jax.formats.nifti import read_names

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
LABEL = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4
NAMES = {"left kidney": 1, "Längsmuskel": 2, "a < b & ]]>": 3}
COLORS = {"left kidney": (255, 0, 7), "Längsmuskel": (1, 2, 3), "a < b & ]]>": (128, 254, 33)}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_names_and_colours_come_back(tmp_path, ending):
  path = tmp_path / f"l{ending}"
  write_label(path, LABEL, AFFINE, NAMES, COLORS)
  assert read_names(path) == NAMES
  assert read_colors(path) == COLORS


def test_nibabel_and_an_xml_parser_find_the_table_of_the_workbench(tmp_path):
  path = tmp_path / "l.nii.gz"
  write_label(path, LABEL, AFFINE, NAMES, COLORS)
  image = nibabel.load(path)
  assert int(image.header["intent_code"]) == 1002
  np.testing.assert_array_equal(np.asanyarray(image.dataobj), LABEL)
  extension, = image.header.extensions
  assert extension.get_code() == 30 and extension.get_sizeondisk() % 16 == 0
  root = ElementTree.fromstring(extension.content.rstrip(b"\0"))
  assert root.tag == "CaretExtension"
  assert root.find("VolumeInformation").get("Index") == "0"
  assert root.find("VolumeInformation/VolumeType").text == "Label"
  labels = root.findall("VolumeInformation/LabelTable/Label")
  assert [label.get("Key") for label in labels] == ["0", "1", "2", "3"]
  assert [label.get("Alpha") for label in labels] == ["0", "1", "1", "1"]
  assert labels[1].text == "left kidney"
  assert [float(labels[1].get(c)) for c in ("Red", "Green", "Blue")] == pytest.approx(
      [1, 0, 7 / 255], abs=1e-5)


def test_colours_are_those_of_a_class_table_where_none_are_given(tmp_path):
  table = ClassTable.create(["liver", "spleen"])
  write_label(tmp_path / "l.nii", LABEL % 3, AFFINE, {"liver": 1, "spleen": 2})
  assert read_colors(tmp_path / "l.nii") == dict(zip(table.names, table.colors, strict=True))
  assert table.colors[1] == hue(1)


def saved(path, code, content):
  image = nibabel.Nifti1Image(LABEL, AFFINE)
  image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, content))
  nibabel.save(image, path)
  return path


def test_what_other_programs_and_older_versions_wrote(tmp_path):
  xml = (b'<?xml version="1.0" encoding="UTF-8"?> <CaretExtension><VolumeInformation Index="0">'
         b'<LabelTable><Label Key="7" Red="0.2" Green="1" Blue="0" Alpha="1">'
         b'<![CDATA[spleen]]></Label></LabelTable></VolumeInformation></CaretExtension>')
  for code in (0, 30):
    path = saved(tmp_path / f"{code}.nii", code, xml)
    assert read_names(path) == {"spleen": 7} and read_colors(path) == {"spleen": (51, 255, 0)}
  path = saved(tmp_path / "old.nii.gz", 6, b'{"labels": {"liver": 2}}')
  assert read_names(path) == {"liver": 2} and read_colors(path) == {}


@pytest.mark.parametrize("content", [b"<CaretExtension>", b"no xml", b"<Label Key='a'/>",
                                     b"<Label Key='1' Red='x' Green='0' Blue='0'/>", b"<Label/>"])
def test_a_damaged_table_is_none(tmp_path, content):
  path = saved(tmp_path / "a.nii", 30, content)
  assert read_names(path) == {} and read_colors(path) == {}
