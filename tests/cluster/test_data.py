"""condseg-prepare and condseg-verify with --cluster: the bytes and the findings of one process."""

import json

import pytest

from condseg_jax.cli import prepare
from condseg_jax.cli import verify
from support.tiny import write_msd


@pytest.fixture
def raw(tmp_path):
  return write_msd(tmp_path / "raw", range(4), ["ball", "box"])


def prepared(source, out, *more):
  code = prepare.main(["condseg-prepare", "--format=msd", f"--source={source}", f"--out={out}",
                       "--spacing=2,1.5,1.5", "--damage=boundary", "--scribbles=0.9", *more])
  return code, {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*")
                if path.is_file() and path.name != ".lock"}


def findings(data, out, *more):
  code = verify.main(["condseg-verify", str(data), f"--json={out}", *more])
  return code, json.loads(out.read_text())


def test_a_store_is_that_of_one_process(raw, address, tmp_path):
  one = prepared(raw, tmp_path / "one")
  assert one[0] == 0 and "cases/case_03/case.json" in one[1]
  assert prepared(raw, tmp_path / "two", f"--cluster={address}") == one
  manifest = tmp_path / "two" / "cases" / "case_00" / "case.json"
  before = manifest.stat().st_mtime_ns
  assert prepared(raw, tmp_path / "two", f"--cluster={address}") == one
  assert manifest.stat().st_mtime_ns == before, "finished cases are kept"


def test_the_first_bad_case_is_told_and_the_others_are_kept(raw, address, tmp_path, capsys):
  (raw / "labelsTr" / "case_02.nii.gz").write_bytes(b"nothing")
  (raw / "imagesTr" / "case_03.nii.gz").write_bytes(b"nothing")
  errors = []
  for out, more in (("one", ()), ("two", (f"--cluster={address}",))):
    code, files = prepared(raw, tmp_path / out, *more)
    errors.append([line for line in capsys.readouterr().err.splitlines()
                   if line.startswith("condseg-prepare: ")])
    assert code == 1 and "manifest.json" not in files
    assert {name for name in files if name.endswith("case.json")} == {
        f"cases/case_0{number}/case.json" for number in (0, 1)}
  assert errors[0] == errors[1] and len(errors[0]) == 1 and "case_02" in errors[0][0]


def test_findings_are_those_of_one_process(raw, address, tmp_path):
  """Of a raw dataset and of a store, each with a damaged case, side by side."""
  data = tmp_path / "data"
  data.mkdir()
  assert prepared(raw, data / "store")[0] == 0
  (raw / "labelsTr" / "case_02.nii.gz").write_bytes(b"nothing")
  raw.rename(data / "raw")
  chunk = next(path for path in sorted((data / "store/cases/case_01/image").rglob("*"))
               if path.is_file() and path.name != "zarr.json")
  chunk.write_bytes(chunk.read_bytes()[::-1])
  one = findings(data, tmp_path / "one.json")
  assert findings(data, tmp_path / "two.json", f"--cluster={address}") == one
  assert one[0] == 1 and one[1]["cases"] == 8
  assert sorted(finding["name"] for finding in one[1]["findings"]
                if finding["severity"] == "error") == ["damaged", "unreadable"]
