"""condseg-predict on many images: parts, memory budgets, and interrupted runs."""

import errno
import hashlib
import html
import json
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import condseg_jax
from condseg_jax.cli import inputs
from condseg_jax.cli import predict
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats import nifti
from condseg_jax.geometry import Volume
from condseg_jax.report import results as written
from condseg_jax.system.lock import held
from support.dicom_files import write_series


@pytest.fixture(scope="module")
def images(root):
  """Five volumes of different shapes."""
  folder = root / "images"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for number in range(5):
    shape = (8 + number, 20, 18 + 3 * number)
    array = rng.normal(50, 40, shape).astype(np.int16)
    nifti.write_nifti(folder / f"scan_{number}.nii.gz",
                      Volume(array, np.diag([-1.0, -1.0, 2.0, 1.0])))
  return folder


def segment(run, images, output, *more):
  return predict.main(["condseg-predict", f"--workdir={run}", f"--input={images}",
                       f"--output={output}", "--nopicture", "--threshold=0.3", *more])


def results(folder):
  # Hidden files are being written.
  return {path.name: path.read_bytes() for path in folder.glob("[!.]*.nii.gz")}


@pytest.fixture(scope="module")
def expected(run, images, root):
  assert segment(run, images, root / "expected") == 0
  found = results(root / "expected")
  assert sorted(found) == [f"scan_{n}.nii.gz" for n in range(5)]
  labels = [nifti.read_nifti(root / "expected" / name).array for name in found]
  assert all(0 < np.count_nonzero(label) < label.size for label in labels)
  return found


def test_parts_are_dealt_to_machines_and_together_are_the_whole(run, images, tmp_path, expected):
  for part, mine in enumerate(([0, 3], [1, 4], [2])):
    assert segment(run, images, tmp_path / str(part), "--num_parts=3", f"--part={part}") == 0
    found = results(tmp_path / str(part))
    assert found == {f"scan_{n}.nii.gz": expected[f"scan_{n}.nii.gz"] for n in mine}


def test_parts_in_one_folder_keep_records_of_their_own(run, images, tmp_path):
  for part in (0, 1):
    assert segment(run, images, tmp_path, "--num_parts=2", f"--part={part}") == 0
  noted = {path.name: set(json.loads(path.read_text())["cases"])
           for path in tmp_path.glob("run*.json")}
  assert noted == {"run_0.json": {"scan_0", "scan_2", "scan_4"}, "run_1.json": {"scan_1", "scan_3"}}


def test_probabilities_of_a_run_that_was_cut_off_are_made_again(run, images, tmp_path):
  only = images / "scan_0.nii.gz"
  assert segment(run, only, tmp_path, "--probabilities") == 0
  before = tree(tmp_path / "scan_0_probabilities.zarr")
  (tmp_path / "scan_0.nii.gz").unlink()
  (tmp_path / "scan_0_probabilities.zarr" / "left").write_text("over")
  assert segment(run, only, tmp_path, "--probabilities", "--continue") == 0
  assert tree(tmp_path / "scan_0_probabilities.zarr") == before


def tree(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_without_a_name_gives_results_with_one(run, images, tmp_path, monkeypatch):
  folder = tmp_path / "images"
  folder.mkdir()
  shutil.copy(images / "scan_0.nii.gz", folder / "scan_0.nii.gz")
  monkeypatch.chdir(folder)
  assert segment(run, ".", tmp_path / "out") == 0
  assert list(results(tmp_path / "out")) == ["scan_0.nii.gz"]


def test_two_results_of_one_name_are_refused_before_anything_is_done(run, tmp_path):
  network = condseg_jax.load(run)
  with pytest.raises(InputError, match="file name of both box of scan_ball and ball_box of scan"):
    written.check_names(tmp_path, ["scan_ball", "scan"], network, ["box", "ball_box"], True)
  written.check_names(tmp_path, ["scan_ball", "scan"], network, ["box", "ball_box"], False)
  path, = written.mask_files(tmp_path, "scan", network, ["edema/necrosis"], True).values()
  assert path == tmp_path / "scan_edema_necrosis.nii.gz"


@pytest.mark.parametrize("flag", ["--threshold=nan", "--memory=inf", "--memory=nan"])
def test_numbers_that_are_not_finite_are_wrong_usage(flag, run, images, tmp_path, capsys):
  assert segment(run, images, tmp_path, flag) == 2
  assert "is not a finite number" in capsys.readouterr().err


def test_a_batch_goes_on_past_an_image_that_memory_does_not_hold(run, images, tmp_path, capsys,
                                                                 monkeypatch):
  read = files.read_volume

  def short(path, *arguments):
    if "scan_1" in str(path):
      raise MemoryError
    return read(path, *arguments)

  monkeypatch.setattr(files, "read_volume", short)
  assert segment(run, images, tmp_path) == 1
  assert len(results(tmp_path)) == 4
  assert "scan_1.nii.gz: does not fit into memory" in capsys.readouterr().err


def test_a_part_that_does_not_exist_is_wrong_usage(run, images, tmp_path, capsys):
  assert segment(run, images, tmp_path, "--num_parts=3", "--part=3") == 2
  assert "0 to 2" in capsys.readouterr().err


def test_a_budget_of_nothing_changes_no_voxel_and_says_what_it_costs(run, images, tmp_path, capsys,
                                                                     expected):
  assert segment(run, images, tmp_path, "--memory=0") == 0
  assert results(tmp_path) == expected
  said = capsys.readouterr().err
  assert "in 2 passes of 1 classes; a single pass: " in said and "the smallest possible" in said


def test_continue_makes_what_is_missing_and_nothing_else(run, images, tmp_path, capsys, expected):
  for name in ("scan_1.nii.gz", "scan_3.nii.gz"):  # as if run.json was lost
    (tmp_path / name).write_bytes(b"as it was")
  assert segment(run, images, tmp_path, "--continue") == 0
  found = results(tmp_path)
  assert found.pop("scan_1.nii.gz") == found.pop("scan_3.nii.gz") == b"as it was"
  assert found == {name: expected[name] for name in found} and len(found) == 3
  assert capsys.readouterr().out.count("already done") == 2


def test_continue_refuses_to_mix_what_was_asked_for(run, images, tmp_path, capsys):
  only = images / "scan_0.nii.gz"
  assert segment(run, only, tmp_path, "--classes=ball") == 0
  assert segment(run, only, tmp_path, "--continue") == 2
  reason = "the earlier run used classes ['ball'], this one ['ball', 'box']"
  assert reason in capsys.readouterr().err
  assert segment(run, only, tmp_path, "--continue", "--classes=ball", "--fast") == 2
  assert segment(run, only, tmp_path, "--continue", "--classes=ball", "--report") == 0
  assert "earlier run" in (tmp_path / "report.html").read_text()


def test_independent_masks_are_one_file_a_class(run, images, tmp_path):
  only = next(iter(sorted(images.iterdir())))
  assert segment(run, only, tmp_path, "--fusion=independent") == 0
  assert sorted(results(tmp_path)) == ["scan_0_ball.nii.gz", "scan_0_box.nii.gz"]
  image = files.read_volume(only)
  masks = [nifti.read_nifti(tmp_path / name).array for name in sorted(results(tmp_path))]
  assert all(mask.shape == image.array.shape for mask in masks)
  (tmp_path / "scan_0_box.nii.gz").unlink()
  before = (tmp_path / "scan_0_ball.nii.gz").stat().st_mtime_ns
  assert segment(run, only, tmp_path, "--fusion=independent", "--continue") == 0
  assert len(results(tmp_path)) == 2  # one was missing, so both are made
  assert (tmp_path / "scan_0_ball.nii.gz").stat().st_mtime_ns > before


def test_separate_masks_are_those_of_the_label_map(run, images, tmp_path, expected):
  assert segment(run, images / "scan_2.nii.gz", tmp_path, "--separate") == 0
  assert sorted(results(tmp_path)) == ["scan_2_ball.nii.gz", "scan_2_box.nii.gz"]
  label = nifti.read_nifti(images.parent / "expected" / "scan_2.nii.gz").array
  for value, name in ((1, "ball"), (2, "box")):
    np.testing.assert_array_equal(nifti.read_nifti(tmp_path / f"scan_2_{name}.nii.gz").array,
                                  label == value)


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_goes_on(run, images, tmp_path, expected):
  """Killed after the first label map was written."""
  arguments = [f"--workdir={run}", f"--input={images}", f"--output={tmp_path}", "--nopicture",
               "--threshold=0.3"]
  command = [sys.executable, "-m", "condseg_jax.cli.predict", *arguments]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while process.poll() is None and not results(tmp_path):
    time.sleep(0.01)
  process.kill()
  process.wait()
  before = results(tmp_path)
  assert before and before == {name: expected[name] for name in before}
  assert subprocess.run([*command, "--continue"], stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL, check=False).returncode == 0
  assert results(tmp_path) == expected


def test_a_batch_goes_on_past_bad_images_and_names_them(run, images, tmp_path, capsys, expected):
  folder, out = tmp_path / "in", tmp_path / "out"
  shutil.copytree(images, folder)
  (folder / "scan_1.nii.gz").write_bytes(b"no image")
  nifti.write_nifti(folder / "scan_2.nii.gz", Volume(np.full((8, 20, 18), -1000, np.int16),
                                                     np.eye(4)))
  assert segment(run, folder, out) == 1
  assert results(out) == {f"scan_{n}.nii.gz": expected[f"scan_{n}.nii.gz"] for n in (0, 3, 4)}
  failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
  assert len(failed) == 2 and "scan_1" in failed[0] and "scan_2" in failed[1]
  cases = json.loads((out / "run.json").read_text())["cases"]
  assert {name: case["status"] for name, case in cases.items()} == {
      "scan_0": "done", "scan_1": "failed", "scan_2": "failed", "scan_3": "done", "scan_4": "done"}
  assert "scan_2.nii.gz" in cases["scan_2"]["reason"]
  assert cases["scan_3"]["files"] == ["scan_3.nii.gz", "scan_3_statistics.json"]


def test_an_output_folder_that_cannot_be_written_fails_in_one_line(run, images, tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  assert segment(run, images, tmp_path / "file" / "out") == 1
  assert "file" in capsys.readouterr().err.splitlines()[-1]


# --- names --------------------------------------------------------------------------------------
NAMES = {b"caf\xe9": "caf\\xe9", b"$\\frac{x$": "$\\frac{x$", b"two\nlines": "two\\nlines",
         b"x" * 248: "x" * 248, "größe 👍".encode(): "größe 👍", b"\x1b[31mred": "\\x1b[31mred",
         b"--help": "--help", b"'\"<b>&": "'\"<b>&", b"%d {0}": "%d {0}"}


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no such character
def test_every_name_that_the_system_allows(run, images, tmp_path, capsys, expected):
  """Into mask, picture, record, page and progress, without the end of the batch."""
  folder, out = tmp_path / "in", tmp_path / "out"
  folder.mkdir()
  names = list(NAMES)[:5]
  for name in names:
    shutil.copy(images / "scan_0.nii.gz", folder / os.fsdecode(name + b".nii.gz"))
  assert predict.main(["condseg-predict", f"--workdir={run}", f"--input={folder}",
                       f"--output={out}", "--threshold=0.3", "--report", "--report_names"]) == 0
  masks = results(out)
  assert len(masks) == len(names) and set(masks.values()) == {expected["scan_0.nii.gz"]}
  for kind in ("overlay.png", "statistics.json"):
    assert len(list(out.glob(f"*_{kind}"))) == len(names)
  assert all(path.name.isprintable() and len(os.fsencode(path.name)) < 200 for path in
             out.iterdir())
  assert {"größe 👍.nii.gz", "$\\frac{x$.nii.gz"} <= set(masks)
  cases = json.loads((out / "run.json").read_text(encoding="utf-8"))["cases"].values()
  found = {os.fsencode(case["input"]["file"]): case["files"][0] for case in cases}
  assert found.keys() == {os.fsencode(folder) + b"/" + name + b".nii.gz" for name in names}
  assert set(found.values()) == set(masks)
  page = (out / "report.html").read_text(encoding="utf-8")
  assert all(html.escape(masked.removesuffix(".nii.gz")) in page for masked in masks)
  printed = capsys.readouterr()
  assert len(printed.out.splitlines()) == len(names) + 1 and "\x1b" not in printed.out


def test_a_bad_image_of_any_name_is_one_line(run, images, tmp_path, capsys):
  folder = tmp_path / "in"
  folder.mkdir()
  shutil.copy(images / "scan_0.nii.gz", folder / "good.nii.gz")
  for name in NAMES:
    (folder / os.fsdecode(name + b".nii.gz")).write_bytes(b"no image")
  assert segment(run, folder, tmp_path / "out", "--report", "--report_names") == 1
  failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
  assert len(failures) == len(NAMES)
  for shown in NAMES.values():
    assert sum(line.startswith(f"failed: {folder}/{shown}.nii.gz: ") for line in failures) == 1
  assert results(tmp_path / "out").keys() == {"good.nii.gz"}


def test_a_picture_or_page_that_fails_ends_no_batch(run, images, tmp_path, capsys, caplog,
                                                   monkeypatch, expected):
  def fails(*_, **__):
    raise RuntimeError("no font")

  monkeypatch.setattr("condseg_jax.system.lock.log.propagate", True)
  monkeypatch.setattr("condseg_jax.report.figures.draw_prediction", fails)
  monkeypatch.setattr("condseg_jax.report.page.collect.predicted_case", fails)
  only = images / "scan_0.nii.gz"
  assert segment(run, only, tmp_path, "--picture", "--report") == 0
  assert results(tmp_path) == {"scan_0.nii.gz": expected["scan_0.nii.gz"]}
  assert "scan_0_overlay.png: no overlay is drawn: RuntimeError: no font" in caplog.text
  assert "scan_0.nii.gz: is not shown on the page: RuntimeError" in capsys.readouterr().err
  assert "segmented, but cannot be shown here" in (tmp_path / "report.html").read_text()
  monkeypatch.setattr("condseg_jax.report.page.collect.write_report", fails)
  assert segment(run, only, tmp_path, "--report") == 1
  assert "failed: " in (error := capsys.readouterr().err) and "report.html: cannot be made" in error


# --- the input of an earlier run ----------------------------------------------------------------
def test_continue_predicts_an_image_again_that_was_replaced(run, images, tmp_path, capsys,
                                                            expected):
  image, out = tmp_path / "scan.nii.gz", tmp_path / "out"
  shutil.copy(images / "scan_0.nii.gz", image)
  assert segment(run, image, out) == 0
  recorded = json.loads((out / "run.json").read_text())["cases"]["scan"]["input"]
  assert recorded == {"file": str(image), "size": image.stat().st_size,
                      "mtime_ns": image.stat().st_mtime_ns,
                      "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
  (out / "scan.nii.gz").write_bytes(b"as it was")
  os.utime(image, ns=(1, 1))  # the same content of another time, as of a copy
  assert segment(run, image, out, "--continue") == 0
  assert "1/1 scan: already done" in capsys.readouterr().out
  shutil.copy(images / "scan_1.nii.gz", image)
  assert segment(run, image, out, "--continue") == 0
  assert "1/1 scan: was changed since its masks were written, predicted again" in (
      capsys.readouterr().out)
  assert results(out) == {"scan.nii.gz": expected["scan_1.nii.gz"]}
  assert segment(run, image, out, "--continue") == 0
  assert "already done" in capsys.readouterr().out
  image.write_bytes(b"no image")
  assert segment(run, image, out, "--continue") == 1
  shutil.copy(images / "scan_0.nii.gz", image)
  capsys.readouterr()
  assert segment(run, image, out, "--continue") == 0
  assert "failed since its masks were written" in capsys.readouterr().out
  assert results(out) == {"scan.nii.gz": expected["scan_0.nii.gz"]}


def test_continue_without_a_record_trusts_masks_that_are_newer(run, images, tmp_path, capsys,
                                                               expected):
  image, out = tmp_path / "scan.nii.gz", tmp_path / "out"
  shutil.copy(images / "scan_0.nii.gz", image)
  out.mkdir()
  (out / "scan.nii.gz").write_bytes(b"as it was")
  assert segment(run, image, out, "--continue") == 0
  assert results(out) == {"scan.nii.gz": b"as it was"}
  later = (out / "scan.nii.gz").stat().st_mtime_ns + 1_000_000_000
  os.utime(image, ns=(later, later))
  assert segment(run, image, out, "--continue") == 0
  assert results(out) == {"scan.nii.gz": expected["scan_0.nii.gz"]}


def test_a_series_is_the_same_if_all_its_slices_are(tmp_path):
  write_series(tmp_path / "scan", np.zeros((4, 5, 3)), np.diag([-1.0, -1, 2, 1]))
  image = inputs.InputImage(tmp_path / "scan", "scan")
  recorded = inputs.identity(image)
  assert inputs.is_unchanged(image, recorded)
  first, *_ = sorted((tmp_path / "scan").iterdir())
  content, stat = bytearray(first.read_bytes()), first.stat()
  content[-1] ^= 1  # of the same size and time
  first.write_bytes(content)
  os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert not inputs.is_unchanged(image, recorded)


def test_a_pipe_in_a_list_is_not_waited_for(run, images, tmp_path, capsys):
  os.mkfifo(tmp_path / "pipe.nii")
  (tmp_path / "list.txt").write_text(f"pipe.nii\n{images / 'scan_0.nii.gz'}\n")
  assert segment(run, tmp_path / "list.txt", tmp_path / "out") == 1
  assert results(tmp_path / "out").keys() == {"scan_0.nii.gz"}
  assert "pipe.nii: is not a regular file" in capsys.readouterr().err


def test_a_second_run_into_one_folder_is_refused(run, images, tmp_path, capsys):
  only = images / "scan_0.nii.gz"
  with held(tmp_path):
    assert segment(run, only, tmp_path) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"condseg-predict: {tmp_path}: is in use by process {os.getpid()} on ")
    assert not results(tmp_path) and not (tmp_path / "run.json").exists()
    assert segment(run, only, tmp_path, "--num_parts=2") == 0  # with a record of its own
  (tmp_path / ".lock").write_text("left by a killed process")
  assert segment(run, only, tmp_path) == 0
  assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [
      "run.json", "run_0.json", "scan_0.nii.gz", "scan_0_statistics.json"]


def test_a_record_that_cannot_be_written_is_told_once_and_costs_no_mask(run, images, tmp_path,
                                                                        capsys, expected):
  (tmp_path / "run.json" / "in_the_way").mkdir(parents=True)
  assert segment(run, images, tmp_path) == 1
  assert results(tmp_path) == expected
  failed, = (line for line in capsys.readouterr().err.splitlines() if "failed: " in line)
  assert failed.startswith(f"failed: {tmp_path}/run.json: cannot be written: ")


def test_a_list_of_images(run, images, tmp_path, capsys, expected):
  shutil.copy(images / "scan_1.nii.gz", tmp_path / "scan_1.nii.gz")
  (tmp_path / "list.txt").write_text(f"{images / 'scan_3.nii.gz'}\n\nscan_1.nii.gz\n")
  assert segment(run, tmp_path / "list.txt", tmp_path / "out") == 0
  assert results(tmp_path / "out") == {f"scan_{n}.nii.gz": expected[f"scan_{n}.nii.gz"]
                                       for n in (1, 3)}
  for text, reason in ((f"{images / 'scan_1.nii.gz'}\nscan_1.nii.gz", "the same name"),
                       ("scan_9.nii.gz", "is listed in list.txt, but does not exist"),
                       ("\n", "lists no image")):
    (tmp_path / "list.txt").write_text(text)
    assert segment(run, tmp_path / "list.txt", tmp_path / "out") == 1
    assert reason in capsys.readouterr().err


def test_a_full_disk_costs_only_the_images_whose_probabilities_do_not_fit(
    run, images, tmp_path, capsys):
  """Files are limited to 9 kB, which only probabilities of the larger images exceed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
  try:
    assert segment(run, images, tmp_path, "--probabilities") == 1
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  done = results(tmp_path)
  assert 0 < len(done) < 5
  # Complete results are kept, incomplete probabilities are removed.
  stems = {name.removesuffix(".nii.gz") for name in done}
  assert {path.name for path in tmp_path.glob("*.zarr")} == {f"{s}_probabilities.zarr"
                                                             for s in stems}
  failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
  assert len(failures) == 5 - len(done)
  assert all(".nii.gz: the probabilities cannot be written: File too large (free space in "
             f"{tmp_path}, or choose another folder)" in line for line in failures)
  assert segment(run, images, tmp_path, "--probabilities", "--continue") == 0
  assert len(list(tmp_path.glob("*.zarr"))) == len(results(tmp_path)) == 5
  assert done.items() < results(tmp_path).items()


def test_a_full_disk_leaves_no_half_written_mask(run, images, tmp_path, monkeypatch, capsys):
  """The disk is full while the first mask is written, and has space again for the next images."""
  write, calls = files.write_label, []

  def full(path, *arguments):
    calls.append(path)
    if len(calls) == 1:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return write(path, *arguments)

  monkeypatch.setattr(files, "write_label", full)
  assert segment(run, images, tmp_path) == 1
  assert sorted(results(tmp_path)) == [f"scan_{n}.nii.gz" for n in (1, 2, 3, 4)]
  failed, = (line for line in capsys.readouterr().err.splitlines() if "failed: " in line)
  assert failed == (f"failed: {images}/scan_0.nii.gz: {tmp_path}/scan_0.nii.gz cannot be written: "
                    "No space left on device (check permissions and free space)")
  monkeypatch.setattr(files, "write_label", write)
  assert segment(run, images, tmp_path, "--continue") == 0
  assert len(results(tmp_path)) == 5
