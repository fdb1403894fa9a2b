"""condseg-deidentify: a folder of an export, with what is found in them besides images."""

import json

import numpy as np
import pydicom
import pytest

pytest.importorskip("dicomanonymizer", reason="the extra deidentify is not installed")

from condseg_jax.cli.deidentify import main  # noqa: E402
from condseg_jax.formats.files import read_volume  # noqa: E402
from support.orthanc import write_study  # noqa: E402
from support.service import voxels  # noqa: E402


def run(source, out):
  return main(["condseg-deidentify", str(source), f"--out={out}"])


@pytest.fixture
def export(tmp_path):
  """Two studies of Jane Doe, and what is no image."""
  folder = tmp_path / "Doe^Jane"
  for study in ("1.2.826.1", "1.2.826.2"):
    write_study(folder / study, study, f"{study}.1")
  (folder / "report of Doe.txt").write_text("Jane Doe")
  (folder / "empty.dcm").write_bytes(b"")
  return folder


def names(out):
  return [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]


def test_a_folder(export, tmp_path, capsys):
  out = tmp_path / "clean"
  assert run(export, out) == 0, capsys.readouterr().err
  assert "12 files de-identified; 0 to be looked at" in capsys.readouterr().out
  series = {path.parent for path in out.rglob("*.dcm")}
  assert len(series) == 2
  for folder in series:
    np.testing.assert_array_equal(read_volume(folder).array, voxels())
  text = "".join(names(out)) + "".join(path.read_bytes().decode("latin-1")
                                       for path in out.rglob("*") if path.is_file())
  assert "Doe" not in text and "Jane" not in text and "1.2.826.1" not in text
  report = json.loads((out / "deidentified.json").read_text())
  assert (report["written"], report["left_out"], report["review"]) == (12, 2, {})


def test_flagged_and_damaged_files(export, tmp_path, capsys):
  paths = sorted(export.rglob("slice_*.dcm"))
  flagged = pydicom.dcmread(paths[0])
  flagged.BurnedInAnnotation = "YES"
  flagged.save_as(paths[0])
  content = paths[1].read_bytes()
  paths[1].write_bytes(content[:len(content) // 2])
  (export / "again.dcm").write_bytes(paths[2].read_bytes())
  out = tmp_path / "clean"
  assert run(export, out) == 1
  told = capsys.readouterr()
  assert "to be looked at" in told.out and "Traceback" not in told.err
  failed = [line for line in told.err.splitlines() if line.startswith("failed: ")]
  assert any("SOPInstanceUID of another file" in line for line in failed)
  report = json.loads((out / "deidentified.json").read_text())
  (path,) = report["review"]
  assert path.startswith("review/") and (out / path).exists()
  assert "BurnedInAnnotation" in report["review"][path][0] and report["failed"] == len(failed)


def test_folders_that_cannot_be(export, tmp_path, capsys):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").write_text("x")
  (tmp_path / "none").mkdir()
  for source, out, code, message in (
      (tmp_path / "nothing", tmp_path / "a", 2, "is not a folder"),
      (export, tmp_path / "full", 2, "is not empty"), (export, export / "clean", 2, "originals"),
      (tmp_path / "none", tmp_path / "b", 1, "contains no DICOM files")):
    assert run(source, out) == code
    assert message in capsys.readouterr().err
  assert main(["condseg-deidentify", str(export)]) == 2
