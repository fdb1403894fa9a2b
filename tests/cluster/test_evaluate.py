"""condseg-evaluate --cluster: the files and the failures of one process."""

import contextlib
import io
import shutil

from condseg_jax.cli import evaluate


def scored(run, data, out, *more):
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    code = evaluate.main(["condseg-evaluate", f"--workdir={run}", f"--data={data}", f"--out={out}",
                          "--report", *more])
  failed = [line for line in said.getvalue().splitlines() if line.startswith("failed")]
  return code, failed, {path.name: path.read_bytes() for path in out.iterdir()}


def test_files_and_failures_are_those_of_one_process(run, root, address, tmp_path):
  """Three cases, of which the second is damaged."""
  data = shutil.copytree(root / "train" / "ball", tmp_path / "ball")
  (data / "labelsTr" / "case_01.nii.gz").write_bytes(b"nothing")
  one = scored(run, data, tmp_path / "one")
  two = scored(run, data, tmp_path / "two", f"--cluster={address}")
  assert one == two
  code, failed, files = one
  assert code == 1 and len(failed) == 1 and failed[0].startswith("failed: case_01: ")
  assert set(files) == {"cases.csv", "median.png", "report.html", "summary.json", "worst.png"}
  assert files["cases.csv"].count(b"\n") == 4
