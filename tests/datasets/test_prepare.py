"""Preparing: where voxels go, what masks say, what a killed run leaves, and what is refused."""

from concurrent import futures
import fcntl
import gzip
import json
import shutil
import threading

import nibabel
from nibabel import orientations
import numpy as np
import pytest

from condseg_jax.data import writer as write_lib
from condseg_jax.data.store import Store
from condseg_jax.datasets import prepare as prepare_lib
from condseg_jax.datasets.carve import partial_labels_by_frames
from condseg_jax.datasets.case import Memory
from condseg_jax.datasets.case import prepare_case
from condseg_jax.datasets.corrupt import Corruption
from condseg_jax.datasets.layouts.camvid import read_camvid
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import median_spacing
from condseg_jax.datasets.prepare import prepare
from condseg_jax.datasets.raw import keep_classes
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import axcodes
from condseg_jax.geometry import Volume

SHAPE = (14, 12, 9)
SPACING = (1.0, 1.5, 2.0)
AFFINE = np.array([[1.0, 0, 0, -20], [0, 1.5, 0, 30], [0, 0, 2.0, 5], [0, 0, 0, 1]])  # R A S
LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


def turned(volume, codes):
  """The same voxels stored along other axes."""
  change = orientations.ornt_transform(orientations.io_orientation(volume.affine),
                                       orientations.axcodes2ornt(codes))
  array = orientations.apply_orientation(volume.array, change)
  return Volume(array, volume.affine @ orientations.inv_ornt_aff(change, volume.geometry.shape))


def world(volume):
  """World coordinates of every voxel, [*shape, 3]."""
  index = np.stack(np.meshgrid(*map(np.arange, volume.geometry.shape), indexing="ij"), -1)
  return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def ramp(points):
  """A linear function of the world, which linear interpolation gives back exactly."""
  return 2 * points[..., 0] - 3 * points[..., 1] + 5 * points[..., 2]


def example(seed=0, shape=SHAPE, affine=AFFINE):
  """Image and label map: noise, a box of each class."""
  rng = np.random.default_rng(seed)
  label = np.zeros(shape, np.uint8)
  label[2:7, 3:9, 2:6] = 1
  label[8:12, 3:9, 2:6] = 2
  image = rng.normal(0, 50, shape) + 100 * label
  return Volume(np.rint(image).astype(np.int16), affine), Volume(label, affine)


def write(root, cases=None, modality="CT", labels=LABELS, ending=".nii"):
  """A folder in MSD layout of {id: (image, label)}."""
  cases = {i: example(ord(i)) for i in "abcde"} if cases is None else cases
  for folder in ("imagesTr", "labelsTr"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  training = []
  for name, (image, label) in cases.items():
    write_nifti(root / "imagesTr" / (name + ending), image)
    write_nifti(root / "labelsTr" / (name + ending), label, label=True)
    training.append({"image": f"imagesTr/{name}{ending}", "label": f"labelsTr/{name}{ending}"})
  (root / "dataset.json").write_text(json.dumps(
      {"modality": {"0": modality}, "labels": labels, "training": training}))
  return root


def made(root, out, spacing=None, keep=()):
  return prepare(keep_classes(read_msd(root), keep), out, spacing, progress=False)


def digests(store):
  return {case.id: case.sha256 for case in store.cases}


def times(out):
  return {p.relative_to(out): p.stat().st_mtime_ns
          for p in out.rglob("*") if p.is_file() and p.parent != out}


# --- geometry -----------------------------------------------------------------------------------
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "PSR"])
def test_voxels_stay_where_they_are_in_the_world(codes, tmp_path):
  image = Volume(ramp(world(example()[0])).astype(np.float32), AFFINE)
  box = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
  box.array[3:9, 4:10, 2:6] = 1
  root = write(tmp_path / "raw", {"a": (turned(image, codes), turned(box, codes))}, "MRI")
  wanted = (1.25, 1.0, 0.8)
  store = made(root, tmp_path / "out", wanted, ["anterior"])
  case, = store.cases
  volume = store.read_volume(case)
  assert axcodes(volume.affine) == ("S", "P", "L") and store.spacing == wanted
  extent = np.array([9 * 2.0, 12 * 1.5, 14 * 1.0])
  assert volume.array.shape == tuple(np.rint(extent / wanted).astype(int))
  np.testing.assert_allclose(volume.spacing, extent / volume.array.shape, rtol=1e-9)
  # Beyond the outermost voxel centres of the file the border is repeated.
  inner = (slice(1, -1),) * 3
  np.testing.assert_allclose(volume.array[inner], ramp(world(volume))[inner], atol=1e-3)
  mask = store.read_masks(case, ["anterior"])[0] == 1
  np.testing.assert_allclose(world(volume)[mask].mean(0), world(box)[box.array == 1].mean(0),
                             atol=0.5)
  assert mask.sum() * np.prod(volume.spacing) == pytest.approx(6 * 6 * 4 * 3.0, rel=0.25)


def test_at_its_own_spacing_nothing_is_interpolated(tmp_path):
  image, label = example()
  store = made(write(tmp_path / "raw", {"a": (image, label)}), tmp_path / "out")
  assert store.spacing == (2.0, 1.5, 1.0)
  case, = store.cases
  flipped = np.flip(image.array, (0, 1)).transpose(2, 1, 0)  # R A S to S P L
  np.testing.assert_array_equal(store.read_image(case)[..., 0], flipped)
  flipped = np.flip(label.array, (0, 1)).transpose(2, 1, 0)
  np.testing.assert_array_equal(store.read_masks(case, ["anterior", "posterior"]),
                                [flipped == 1, flipped == 2])


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.0), (3.0, 1.0, 1.3)])
def test_the_axis_order_of_the_file_does_not_matter(spacing, tmp_path):
  image, label = example()
  codes = ["RAS", "LPS", "SRA", "PIL", "ASL"]
  cases = {c: (turned(image, c), turned(label, c)) for c in codes}
  store = made(write(tmp_path / "raw", cases), tmp_path / "out", spacing)
  assert len(set(digests(store).values())) == 1
  affines = np.array([c.affine for c in store.cases])
  np.testing.assert_allclose(affines, np.broadcast_to(affines[0], affines.shape), atol=1e-9)


def test_median_spacing_of_training_cases_from_headers(tmp_path):
  scales = {"a": 1.0, "b": 1.2, "c": 3.0, "d": 9.0}
  cases = {}
  for name, scale in scales.items():
    volume, label = (Volume(v.array, np.diag([scale, 2 * scale, 3 * scale, 1])) for v in example())
    cases[name] = volume, label
  root = write(tmp_path / "raw", cases)
  (root / "splits.json").write_text(json.dumps({"train": ["a", "b", "c"], "val": ["d"]}))
  for path in (root / "imagesTr").iterdir():
    path.write_bytes(path.read_bytes()[:352])  # the voxels are not looked at
  np.testing.assert_allclose(median_spacing([read_msd(root)]), (3.6, 2.4, 1.2), rtol=1e-6)
  other = write(tmp_path / "other", {"e": cases["c"], "f": cases["c"]})
  np.testing.assert_allclose(median_spacing([read_msd(root), read_msd(other)]), (9, 6, 3),
                             rtol=1e-6)


# --- masks --------------------------------------------------------------------------------------
def test_unlabelled_voxels_stay_unlabelled(tmp_path):
  image, label = example()
  label.array[:, :2, :] = 3
  labels = {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}
  root = write(tmp_path / "raw", {"a": (image, label)}, labels=labels)
  for spacing, share in (((2.0, 1.5, 1.0), 1e-9), ((1.0, 1.0, 1.0), 0.05)):
    store = made(root, tmp_path / "out", spacing)
    case, = store.cases
    assert case.annotated == ("anterior", "posterior")
    masks = store.read_masks(case, case.annotated)
    assert set(np.unique(masks)) == {0, 1, 255}
    np.testing.assert_array_equal(masks[0] == 255, masks[1] == 255)
    assert (masks[0] == 255).mean() == pytest.approx(2 / 12, abs=share)


def test_a_label_stored_along_other_axes_lies_where_it_should(tmp_path):
  image, label = example()
  first = made(write(tmp_path / "raw", {"a": (image, label)}), tmp_path / "out")
  second = made(write(tmp_path / "turned", {"a": (image, turned(label, "LPS"))}), tmp_path / "two")
  assert digests(first) == digests(second)


@pytest.mark.parametrize("keep", ["Anterior", "anterior", "ANTERIOR"])
def test_a_single_class_is_carved_from_several(keep, tmp_path):
  root = write(tmp_path / "raw")
  both, one = made(root, tmp_path / "both"), made(root, tmp_path / "one", keep=[keep])
  assert both.table.names == ("anterior", "posterior") and one.table.names == ("anterior",)
  for case, whole in zip(one.cases, both.cases, strict=True):
    assert case.annotated == ("anterior",) and set(case.positives) == {"anterior"}
    np.testing.assert_array_equal(one.read_masks(case, ["anterior"]),
                                  both.read_masks(whole, ["anterior"]))
    with pytest.raises(ValueError):
      one.read_masks(case, ["posterior"])


@pytest.mark.parametrize(("modality", "dtype"), [("CT", np.int16), ("MRI", np.float32)])
def test_dtypes_lose_nothing_worth_having(modality, dtype, tmp_path):
  image, label = example()
  values = image.array.astype(np.float32) + np.float32(0.25)
  values.flat[:2] = -1e6, 1e6
  root = write(tmp_path / "raw", {"a": (Volume(values, AFFINE), label)}, modality)
  store = made(root, tmp_path / "out")
  read = np.flip(store.read_image(store.cases[0])[..., 0].transpose(2, 1, 0), (0, 1))
  assert read.dtype == dtype
  expected = np.clip(np.rint(values), -32768, 32767) if modality == "CT" else values
  np.testing.assert_array_equal(read, expected.astype(dtype))


# --- resuming -----------------------------------------------------------------------------------
def test_finished_cases_are_kept(tmp_path):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  first = made(root, out)
  before = times(out)
  assert made(root, out) == first and times(out) == before
  # A case whose files changed is done again, alone.
  image, label = example(77)
  write_nifti(root / "labelsTr" / "c.nii", Volume(label.array[::-1], AFFINE), label=True)
  second = made(root, out)
  changed = {p.parts[1] for p, t in times(out).items() if before.get(p) != t}
  assert changed == {"c"}
  assert {i for i, d in digests(second).items() if d != digests(first)[i]} == {"c"}
  write_nifti(root / "imagesTr" / "a.nii", image)
  assert digests(made(root, out))["a"] != digests(first)["a"]


@pytest.mark.parametrize("change", ["spacing", "modality", "keep", "split"])
def test_another_way_of_preparing_makes_other_cases(change, tmp_path):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  made(root, out)
  before = times(out)
  spacing, keep = (2.0, 1.5, 1.0), ()
  match change:
    case "spacing":
      spacing = (2.0, 3.0, 1.0)
    case "modality":
      write(root, modality="MRI")
    case "keep":
      keep = ["posterior"]
    case "split":
      (root / "splits.json").write_text(json.dumps({"train": [], "val": list("abcde")}))
  store = made(root, out, spacing, keep)
  after = times(out)
  assert all(after[p] != t for p, t in before.items() if p in after)
  assert digests(store) == digests(made(root, tmp_path / "afresh", spacing, keep))
  assert store.cases == made(root, tmp_path / "afresh", spacing, keep).cases


DIFFERENT = {
    "nothing": {},
    "spacing": {"spacing": (2.0, 3.0, 1.0)},
    "keep": {"keep": ["posterior"]},
    "corruption": {"alteration": Corruption("parts", 0.5)},
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_a_store_of_other_settings_is_not_replaced(change, tmp_path):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  first = made(root, out, (2.0, 1.5, 1.0))

  def again(overwrite, spacing=(2.0, 1.5, 1.0), keep=(), alteration=None):
    folder = keep_classes(read_msd(root), keep)
    folder = folder.altered(alteration) if alteration else folder
    return prepare(folder, out, spacing, overwrite=overwrite, progress=False)

  if change == "nothing":
    before = times(out)
    assert again(False) == first and times(out) == before
    return
  with pytest.raises(InputError, match="was prepared with .* instead of") as caught:
    again(False, **DIFFERENT[change])
  assert caught.value.usage and "`overwrite`" in caught.value.cure
  assert Store.open(out) == first
  assert again(True, **DIFFERENT[change]) != first


def test_another_dataset_is_other_settings(tmp_path):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  made(root, out)
  labels = {"0": "background", "1": "Liver", "2": "Spleen"}
  renamed = write(tmp_path / "renamed", labels=labels)
  with pytest.raises(InputError, match="classes anterior, posterior instead of liver, spleen"):
    prepare(read_msd(renamed), out, overwrite=False, progress=False)
  other = write(tmp_path / "other", {"x": example(1)})
  with pytest.raises(InputError, match="other cases, such as 'a' instead of 'x'"):
    prepare(read_msd(other), out, overwrite=False, progress=False)
  more = write(root, {i: example(ord(i)) for i in "abcdef"})  # one case more is no other setting
  assert len(prepare(read_msd(more), out, overwrite=False, progress=False).cases) == 6


def test_an_unfinished_store_is_resumed_without_overwriting(tmp_path):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  first = made(root, out)
  (out / "manifest.json").unlink()
  assert prepare(read_msd(root), out, overwrite=False, progress=False) == first


@pytest.mark.parametrize("again", [False, True])
def test_a_killed_run_is_resumed(again, tmp_path, monkeypatch):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  expected = made(root, tmp_path / "afresh", (3.0, 3.0, 3.0))
  if again:
    made(root, out)  # a finished store at another spacing was there before
  calls, inner = [], write_lib.create_array

  def killed(path, *args):
    if path.name == "masks":
      calls.append(path)
      if len(calls) == 3:
        raise KeyboardInterrupt
    return inner(path, *args)

  monkeypatch.setattr(write_lib, "create_array", killed)
  with pytest.raises(KeyboardInterrupt):
    made(root, out, (3.0, 3.0, 3.0))
  monkeypatch.undo()
  with pytest.raises(InputError, match="manifest.json"):
    Store.open(out)
  finished = {p.parent.name for p in out.glob("cases/*/case.json")
              if json.loads(p.read_text())["shape"] == list(expected.cases[0].shape)}
  assert 2 <= len(finished) < 5
  before = times(out)
  store = made(root, out, (3.0, 3.0, 3.0))
  assert store.cases == expected.cases and digests(store) == digests(expected)
  kept = {p.parts[1] for p, t in times(out).items() if before.get(p) == t}
  assert kept == finished
  for case in store.cases:
    np.testing.assert_array_equal(store.read_image(case), expected.read_image(case))


def test_one_process_at_a_time_prepares_into_a_folder(tmp_path):
  root, out = write(tmp_path / "raw"), tmp_path / "out"
  out.mkdir()
  thread = threading.Thread(target=made, args=(root, out))
  with open(out / ".lock", "w") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and not list(out.rglob("zarr.json"))
  thread.join(30)
  assert len(Store.open(out).cases) == 5


# --- refused ------------------------------------------------------------------------------------
def harm(root, kind):
  """Spoils case c; returns the file at fault and what is said of it."""
  image, label = example(5)
  image_path, label_path = root / "imagesTr" / "c.nii.gz", root / "labelsTr" / "c.nii.gz"
  match kind:
    case "shape":
      write_nifti(label_path, Volume(label.array[:-1], AFFINE), label=True)
      return label_path, "shape"
    case "affine":
      write_nifti(label_path, Volume(label.array, AFFINE + np.eye(4, k=3)), label=True)
      return label_path, "mm away"
    case "unknown value":
      label.array[0, 0, 0] = 7
      write_nifti(label_path, label, label=True)
      return label_path, "unknown label value 7"
    case "fraction":
      write_nifti(label_path, Volume(label.array * np.float32(0.5), AFFINE))
      return label_path, "fraction"
    case "nan":
      values = image.array.astype(np.float32)
      values[3, 4, 5] = np.nan
      write_nifti(image_path, Volume(values, AFFINE))
      return image_path, "1 of 1512 voxels are NaN"
    case "truncated":
      image_path.write_bytes(image_path.read_bytes()[:-300])
      return image_path, "truncated"
    case "cut inside":
      image_path.write_bytes(gzip.compress(gzip.decompress(image_path.read_bytes())[:-300]))
      return image_path, "truncated"
    case "4-D":
      nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), AFFINE), image_path)
      return image_path, "4-D: 2 volumes"
    case "no image":
      image_path.unlink()
      return image_path, "No such file"
    case "no label":
      label_path.unlink()
      return label_path, "No such file"


@pytest.mark.parametrize("kind", [
    "shape", "affine", "unknown value", "fraction", "nan", "truncated", "cut inside",
    "4-D", "no image", "no label"])
def test_a_bad_file_is_named_and_nothing_is_lost(kind, tmp_path):
  root, out = write(tmp_path / "raw", ending=".nii.gz"), tmp_path / "out"
  shutil.copytree(root, tmp_path / "good")
  path, reason = harm(root, kind)
  with pytest.raises(InputError, match=reason) as caught:
    made(root, out, (2.0, 1.5, 1.0))
  assert caught.value.subject == str(path) and caught.value.cure and not caught.value.usage
  with pytest.raises(InputError, match="manifest.json"):
    Store.open(out)
  finished = {p.parent.name for p in out.glob("cases/*/case.json")}
  assert {"a", "b"} <= finished and "c" not in finished
  shutil.rmtree(root)
  shutil.copytree(tmp_path / "good", root)
  assert len(made(root, out, (2.0, 1.5, 1.0)).cases) == 5


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (np.nan, 1.0, 1.0)])
def test_no_spacing(spacing, tmp_path):
  with pytest.raises(InputError, match="spacing") as caught:
    made(write(tmp_path / "raw"), tmp_path / "out", spacing)
  assert caught.value.usage


def test_a_spacing_at_which_no_machine_holds_a_case(tmp_path):
  with pytest.raises(InputError, match="would have 1800 x 180000 x 140000 voxels at the target "):
    made(write(tmp_path / "raw"), tmp_path / "out", (0.01, 1e-4, 1e-4))


def test_an_error_within_a_mask_keeps_no_memory_from_other_threads(tmp_path):
  """As of a full disk, after which all other threads waited for ever."""
  class Failing(futures.ThreadPoolExecutor):
    def map(self, function, *arguments):
      if function.func is write_lib._write_mask:
        raise OSError("disk full")
      return super().map(function, *arguments)

  folder = read_msd(write(tmp_path / "raw"))
  memory = Memory(1.0)
  with Failing(1) as pool, pytest.raises(OSError, match="disk full") as caught:
    prepare_case(folder.cases[0], folder, tmp_path / "out", SPACING[::-1], memory, pool)
  assert caught.traceback  # which keeps the frames of the failed case
  waiting = threading.Thread(target=lambda: memory.take(1 << 40).__enter__(), daemon=True)
  waiting.start()
  waiting.join(10)
  assert not waiting.is_alive()


def test_spacing_of_another_number_of_axes(tmp_path):
  with pytest.raises(InputError, match="3 axes, but the target spacing 2"):
    made(write(tmp_path / "raw"), tmp_path / "out", (1.0, 1.0))


def test_an_id_that_is_no_folder_name(tmp_path):
  root = write(tmp_path / "raw", {"a b": example()})
  with pytest.raises(InputError, match="'a b'.*folder name"):
    made(root, tmp_path / "out")


# --- pictures -----------------------------------------------------------------------------------
def pictures(root, image):
  for folder in ("train", "trainannot"):
    (root / folder).mkdir(parents=True)
  (root / "classes.json").write_text(json.dumps({"classes": ["sky", "road"], "ignore": 2}))
  for i in range(3):
    write_png(root / "train" / f"{i}.png", image)
    write_png(root / "trainannot" / f"{i}.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 3)
  return root


def test_pictures(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
  folder = partial_labels_by_frames(read_camvid(pictures(tmp_path / "raw", image)), 2)
  assert median_spacing([folder]) == (1.0, 1.0)
  store = prepare(folder, tmp_path / "out", progress=False)
  assert (store.modality, store.spacing) == ("rgb", (1.0, 1.0))
  assert [(c.dataset, c.annotated) for c in store.cases] == [
      ("sky", ("sky",)), ("sky", ("sky",)), ("road", ("road",))]
  np.testing.assert_array_equal(store.read_image(store.cases[0]), image)
  assert all(c.no_mirror == ("H",) for c in store.table.classes)
  masks = store.read_masks(store.cases[2], ["road"])
  np.testing.assert_array_equal(masks.ravel(), np.tile([0, 1, 255], 16))
  half = prepare(folder, tmp_path / "half", (2.0, 2.0), progress=False)
  assert half.read_image(half.cases[0]).shape == (3, 4, 3)
  assert half.read_image(half.cases[0]).dtype == np.uint8


def test_grey_pictures_are_refused(tmp_path):
  folder = read_camvid(pictures(tmp_path / "raw", np.zeros((6, 8), np.uint8)))
  with pytest.raises(InputError, match="1 channels, but rgb images have 3") as caught:
    prepare(folder, tmp_path / "out", progress=False)
  assert caught.value.subject.endswith(".png")


def test_two_pictures_of_one_name_are_refused(tmp_path):
  root = pictures(tmp_path / "raw", np.zeros((6, 8, 3), np.uint8))
  shutil.copytree(root / "train", root / "val")
  shutil.copytree(root / "trainannot", root / "valannot")
  with pytest.raises(InputError, match="two cases have the id '0'"):
    prepare(read_camvid(root), tmp_path / "out", progress=False)


def test_the_number_of_workers_has_a_bound(tmp_path, monkeypatch):
  """Each holds a whole volume, so that a machine of 64 cores would run out of memory."""
  seen = []
  inner = prepare_lib.concurrent.futures.ThreadPoolExecutor

  def pool(workers):
    seen.append(workers)
    return inner(workers)
  monkeypatch.setattr(prepare_lib.os, "cpu_count", lambda: 64)
  monkeypatch.setattr(prepare_lib.concurrent.futures, "ThreadPoolExecutor", pool)
  made(write(tmp_path / "raw"), tmp_path / "out")
  assert seen == [16, 8]
