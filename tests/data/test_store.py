"""The store: exact, never half visible, never silently wrong, and a subvolume costs its chunks."""

import dataclasses
import json
import shutil

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.data import store as store_lib
from condseg_jax.data import writer as write_lib
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from support.stored import write_arrays

NAMES = ("liver", "spleen")
AFFINE_3D = np.array([[0, 0, -1.5, 7], [0, -0.7, 0, 8], [2.0, 0, 0, -9], [0, 0, 0, 1]])


def three_valued(shape, seed=0):
  return np.random.default_rng(seed).choice([0, 1, 255], shape, p=[0.6, 0.3, 0.1]).astype(np.uint8)


def arrays(kind, seed=0):
  """An image of a kind and two masks on its grid."""
  rng = np.random.default_rng(seed)
  if kind == "rgb":
    image = rng.integers(0, 256, (300, 270, 3)).astype(np.uint8)
  elif kind == "ct":
    image = rng.integers(-32768, 32768, (40, 70, 65, 1)).astype(np.int16)
  else:
    image = (10.0 ** rng.uniform(-30, 30, (5, 6, 7, 1))).astype(np.float32)
  return image, three_valued((2, *image.shape[:-1]), seed + 1)


def write(root, image, masks, case_id="case", **changes):
  values = {"dataset": "abdomen", "split": "train", "annotated": NAMES[:len(masks)],
            "affine": AFFINE_3D if masks.ndim == 4 else np.eye(3), "source": "from"}
  return write_arrays(root, case_id, image, masks, **(values | changes))


def finish(root, *cases):
  spacing = (1.0,) * len(cases[0].shape)
  return write_lib.write_manifest(root, modality="ct", spacing=spacing,
                                  table=ClassTable.create(NAMES), cases=cases)


def chunks(folder):
  """The chunk files of an array, by their place in the grid of chunks."""
  return {tuple(map(int, p.relative_to(folder / "c").parts)): p
          for p in (folder / "c").rglob("*") if p.is_file()}


def spoil(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
  """Root, store, image and masks of one CT that spans several chunks."""
  root = tmp_path_factory.mktemp("ct")
  image, masks = arrays("ct")
  return root, finish(root, write(root, image, masks)), image, masks


# --- exactness ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["rgb", "ct", "mr"])
def test_round_trip_is_exact(kind, tmp_path):
  image, masks = arrays(kind)
  written = finish(tmp_path, write(tmp_path, image, masks))
  store = Store.open(tmp_path)
  assert store == written
  case, = store.cases
  read = store.read_image(case)
  assert read.dtype == image.dtype
  np.testing.assert_array_equal(read, image)
  read = store.read_masks(case, NAMES)
  assert read.dtype == np.uint8
  np.testing.assert_array_equal(read, masks)
  np.testing.assert_array_equal(store.read_masks(case, NAMES[::-1]), masks[::-1])
  assert store.read_masks(case, ()).shape == (0, *case.shape)
  volume = store.read_volume(case)
  np.testing.assert_array_equal(volume.array, image if kind == "rgb" else image[..., 0])
  np.testing.assert_array_equal(volume.affine, case.affine)
  if kind != "rgb":
    np.testing.assert_array_equal(volume.affine, AFFINE_3D)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_box_is_a_slice(ct, data):
  _, store, image, masks = ct
  case, = store.cases
  box = []
  for size in case.shape:
    low = data.draw(st.integers(0, size - 1))
    box.append(slice(low, data.draw(st.integers(low + 1, size))))
  names = data.draw(st.permutations(NAMES))[:data.draw(st.integers(0, 2))]
  np.testing.assert_array_equal(store.read_image(case, box), image[tuple(box)])
  expected = masks[(np.array([NAMES.index(n) for n in names], int), *box)]
  np.testing.assert_array_equal(store.read_masks(case, names, box), expected)


def test_on_disk_it_is_zarr_v3(ct):
  root, _, image, masks = ct
  for name, array, chunk in (("image", image, (32, 64, 64, 1)), ("masks", masks, (1, 32, 64, 64))):
    tree = json.loads((root / "cases/case" / name / "zarr.json").read_text())
    assert (tree["zarr_format"], tree["node_type"]) == (3, "array")
    assert tuple(tree["shape"]) == array.shape and tree["data_type"] == array.dtype.name
    assert tuple(tree["chunk_grid"]["configuration"]["chunk_shape"]) == chunk
    grid = [-(-n // c) for n, c in zip(array.shape, chunk, strict=True)]
    assert len(chunks(root / "cases/case" / name)) == np.prod(grid)


@pytest.mark.parametrize("name", ["a b", "50%41", "a#1", "what?", "größe"])
def test_the_folder_may_have_any_name(name, tmp_path):
  image, masks = arrays("mr")
  store = finish(tmp_path / name, write(tmp_path / name, image, masks))
  np.testing.assert_array_equal(store.read_image(store.cases[0]), image)
  assert [p.name for p in tmp_path.iterdir()] == [name]


def test_cases_are_ordered_by_id(tmp_path):
  image, masks = arrays("mr")
  store = finish(tmp_path, *(write(tmp_path, image, masks, i) for i in ("b", "c", "a")))
  assert [c.id for c in store.cases] == ["a", "b", "c"]


# --- never half visible -------------------------------------------------------------------------
@pytest.mark.parametrize("killed_at", ["image", "masks", "case.json"])
@pytest.mark.parametrize("rewritten", [False, True])
def test_a_half_written_case_does_not_exist(killed_at, rewritten, tmp_path, monkeypatch):
  image, masks = arrays("mr")
  if rewritten:
    finish(tmp_path, write(tmp_path, image, masks, source="before"))

  def killed(function):
    def wrapper(path, *args):
      if path.name == killed_at:
        raise KeyboardInterrupt
      return function(path, *args)
    return wrapper

  for name in ("create_array", "write_text"):
    monkeypatch.setattr(write_lib, name, killed(getattr(write_lib, name)))
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, image, masks, source="after")
  monkeypatch.undo()

  for source in ("before", "after"):
    assert write_lib.finished_case(tmp_path, "case", source) is None
  with pytest.raises(InputError, match="manifest.json"):
    Store.open(tmp_path)
  written = write(tmp_path, image, masks, source="after")
  assert write_lib.finished_case(tmp_path, "case", "after") == written
  np.testing.assert_array_equal(finish(tmp_path, written).read_image(written), image)


def test_a_kill_while_an_old_case_is_removed_leaves_no_record_of_it(tmp_path, monkeypatch):
  image, masks = arrays("mr")
  finish(tmp_path, write(tmp_path, image, masks))

  def killed(path):
    shutil.rmtree(path / "masks")
    raise KeyboardInterrupt
  monkeypatch.setattr(type(store_lib.epath.Path(tmp_path)), "rmtree", killed)
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, image + 1, masks, source="other")
  assert (tmp_path / "cases/case/image").exists()
  assert write_lib.finished_case(tmp_path, "case", "from") is None


def test_without_case_json_a_case_is_not_finished(tmp_path):
  written = write(tmp_path, *arrays("mr"))
  assert write_lib.finished_case(tmp_path, "case", "from") == written
  assert write_lib.finished_case(tmp_path, "case", "elsewhere") is None
  assert write_lib.finished_case(tmp_path, "other", "from") is None
  (tmp_path / "cases/case/case.json").unlink()
  assert write_lib.finished_case(tmp_path, "case", "from") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "case"}', '{"foreground": []}', ""])
def test_a_case_whose_record_is_damaged_is_prepared_again(text, tmp_path):
  write(tmp_path, *arrays("mr"))
  (tmp_path / "cases/case/case.json").write_text(text)
  assert write_lib.finished_case(tmp_path, "case", "from") is None


def test_a_store_opens_only_once_it_has_its_manifest(tmp_path):
  with pytest.raises(InputError, match="manifest.json"):
    Store.open(tmp_path / "nowhere")
  case = write(tmp_path, *arrays("mr"))
  with pytest.raises(InputError, match="manifest.json"):
    Store.open(tmp_path)
  finish(tmp_path, case)
  assert Store.open(tmp_path).cases == (case,)
  assert not list(tmp_path.rglob("*.partial"))


def test_a_case_written_anew_is_read_anew(tmp_path):
  for image, masks in (arrays("ct"), arrays("mr"), (arrays("mr")[0], arrays("mr")[1][:1])):
    store = finish(tmp_path, write(tmp_path, image, masks))
    case, = store.cases
    np.testing.assert_array_equal(store.read_image(case), image)
    np.testing.assert_array_equal(store.read_masks(case, case.annotated), masks)


# --- never silently wrong -----------------------------------------------------------------------
def damaged(tree, kind):
  match kind:
    case "truncated":
      return json.dumps(tree)[:-40]
    case "empty":
      return ""
    case "list":
      return "[]"
    case "version":
      return json.dumps(tree | {"version": store_lib.VERSION + 1})
    case "no version":
      return json.dumps({k: v for k, v in tree.items() if k != "version"})
    case "no table":
      return json.dumps(tree | {"table": {}})
    case "case without id":
      return json.dumps(tree | {"cases": [{k: v for k, v in c.items() if k != "id"}
                                          for c in tree["cases"]]})
    case "unknown field":
      return json.dumps(tree | {"cases": [c | {"new": 1} for c in tree["cases"]]})
    case "foreground":
      return json.dumps(tree | {"cases": [c | {"foreground": []} for c in tree["cases"]]})


@pytest.mark.parametrize("kind", [
    "truncated", "empty", "list", "version", "no version", "no table", "case without id",
    "unknown field", "foreground"])
def test_a_damaged_manifest_is_refused_by_name(kind, tmp_path):
  finish(tmp_path, write(tmp_path, *arrays("mr")))
  path = tmp_path / "manifest.json"
  path.write_text(damaged(json.loads(path.read_text()), kind))
  with pytest.raises(InputError) as caught:
    Store.open(tmp_path)
  assert str(tmp_path) in caught.value.subject and "prepare it again" in caught.value.cure
  path.write_bytes(b"\xff\xfe\x80")
  with pytest.raises(InputError, match="damaged"):
    Store.open(tmp_path)


@pytest.mark.parametrize("name", ["image", "masks"])
@pytest.mark.parametrize("harm", ["missing chunk", "flipped bit", "no metadata", "no array"])
def test_damaged_arrays_are_refused_by_name(name, harm, tmp_path):
  """Also where all is 0: a missing chunk of a mask must not pass for negative voxels."""
  image, masks = arrays("ct")
  image[32:], masks[:, 32:] = 0, 0
  store = finish(tmp_path, write(tmp_path, image, masks))
  case, = store.cases
  folder = tmp_path / "cases/case" / name
  last = max(chunks(folder))
  match harm:
    case "missing chunk":
      chunks(folder)[last].unlink()
    case "flipped bit":
      spoil(chunks(folder)[last])
    case "no metadata":
      (folder / "zarr.json").unlink()
    case "no array":
      shutil.rmtree(folder)
  with pytest.raises(InputError) as caught:
    store.read_image(case) if name == "image" else store.read_masks(case, NAMES)
  assert str(tmp_path / "cases/case") in caught.value.subject and not caught.value.usage


def test_a_subvolume_reads_its_own_chunks_only(tmp_path):
  """Every other chunk is spoiled, so that reading it would fail."""
  image, masks = arrays("ct")
  store = finish(tmp_path, write(tmp_path, image, masks))
  case, = store.cases
  box = (slice(33, 40), slice(10, 60), slice(3, 64))
  wanted = {"image": {(1, 0, 0, 0)}, "masks": {(1, 1, 0, 0)}}
  for name, mine in wanted.items():
    files = chunks(tmp_path / "cases/case" / name)
    assert mine < files.keys()
    for place in files.keys() - mine:
      spoil(files[place])
  np.testing.assert_array_equal(store.read_image(case, box), image[box])
  np.testing.assert_array_equal(store.read_masks(case, ["spleen"], box), masks[(slice(1, 2), *box)])
  with pytest.raises(InputError):
    store.read_image(case)
  with pytest.raises(InputError):
    store.read_masks(case, ["liver"], box)


# --- records ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["rgb", "ct"])
def test_records_describe_the_arrays(kind, tmp_path):
  image, masks = arrays(kind)
  masks[1] = 0
  masks[1].flat[[3, 50, 4000]] = 1
  case = write(tmp_path, image, masks)
  assert case.shape == image.shape[:-1]
  assert case.mean == pytest.approx(image.astype(np.float64).mean(), rel=1e-12)
  assert case.sd == pytest.approx(image.astype(np.float64).std(), rel=1e-12)
  assert case.positives == {"liver": (masks[0] == 1).sum(), "spleen": 3}
  for name, mask in zip(NAMES, masks, strict=True):
    places = case.foreground[name]
    assert len(places) == len(set(places)) == min(64, (mask == 1).sum())
    assert all(mask[place] == 1 for place in places)
  inside = image[(masks == 1).any(0)].mean(-1)
  assert len(case.intensities) == 500
  assert set(case.intensities) <= {float(f"{v:.6g}") for v in inside}
  assert np.mean(case.intensities) == pytest.approx(
      inside.mean(), abs=5 * inside.std() / np.sqrt(500))


def test_foreground_positions_are_spread_over_the_class(tmp_path):
  mask = np.ones((1, 40, 20, 20), np.uint8)
  case = write(tmp_path, np.zeros((40, 20, 20, 1), np.int16), mask)
  middle = np.array(case.foreground["liver"]).mean(0)
  # The mean of 64 uniform numbers below n has the standard deviation n / sqrt(12 · 64).
  assert np.all(abs(middle - (19.5, 9.5, 9.5)) < 5 * np.array((40, 20, 20)) / np.sqrt(12 * 64))


def test_an_absent_class_has_no_foreground(tmp_path):
  image, masks = arrays("mr")
  masks[masks == 1] = 255
  case = write(tmp_path, image, masks)
  assert case.positives == {"liver": 0, "spleen": 0}
  assert case.foreground == {"liver": (), "spleen": ()} and case.intensities == ()


def test_a_record_survives_json(tmp_path):
  case = write(tmp_path, *arrays("ct"))
  again = store_lib.Case.from_json(json.loads(json.dumps(dataclasses.asdict(case))))
  assert again == case and hash(again.shape) == hash(case.shape)


def test_sha256_follows_the_content_alone(tmp_path):
  image, masks = arrays("mr")
  first = write(tmp_path / "a", image, masks)
  assert write(tmp_path / "b", np.asfortranarray(image), masks.copy(), "other", dataset="x",
               source="y").sha256 == first.sha256
  changed_image, changed_mask = image.copy(), masks.copy()
  changed_image[2, 3, 4, 0] *= 2
  changed_mask[1, 2, 3, 4] ^= 1
  zeros = np.zeros_like(image)
  others = [(changed_image, masks), (image, changed_mask), (image, masks[::-1]),
            (zeros, masks), (zeros.view(np.int32), masks),
            (zeros.transpose(1, 0, 2, 3), masks.reshape(2, 6, 5, 7))]
  digests = {write(tmp_path / "c", *pair).sha256 for pair in others}
  assert len(digests) == len(others) and first.sha256 not in digests
  assert all(len(d) == 64 for d in digests)


@pytest.mark.parametrize("case_id", [
    "../x", "..", ".", "", "a/b", "/etc", ".hidden", "a b", "a\\b", "x\n", "größe", "a:b"])
def test_ids_that_are_no_folder_names_are_refused(case_id, tmp_path):
  root = tmp_path / "inner" / "store"
  with pytest.raises(InputError, match="folder name"):
    write(root, *arrays("mr"), case_id)
  assert list(tmp_path.iterdir()) == []


def test_usual_ids_are_taken(tmp_path):
  for case_id in ("hippocampus_001", "0001TP_006690", "img-1.a", "_x", "A"):
    assert write(tmp_path, *arrays("mr"), case_id).id == case_id


# --- which classes overlap ----------------------------------------------------------------------
def test_overlapping_classes_are_recorded(tmp_path):
  """A part of a whole overlaps it; a border of two neighbours, a hundredth of the smaller, not."""
  shape = (40, 30, 20)  # two slabs
  whole, part, neighbour = (np.zeros(shape, np.uint8) for _ in range(3))
  whole[5:35], part[8:12, :3] = 1, 1
  neighbour[35:] = 1
  neighbour[34, 0] = 1  # 20 of 3020 voxels
  neighbour[:2] = 255  # not known, and so no overlap
  image = np.zeros((*shape, 1), np.int16)
  case = write(tmp_path, image, np.stack([whole, part, neighbour]),
               annotated=("liver", "cyst", "spleen"))
  assert case.overlapping == (("cyst", "liver"),)
  neighbour[34, :3] = 1  # 60 of 3060
  case = write(tmp_path, image, np.stack([whole, part, neighbour]),
               annotated=("liver", "cyst", "spleen"))
  assert case.overlapping == (("cyst", "liver"), ("liver", "spleen"))
  assert write(tmp_path, image, whole[None]).overlapping == ()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_overlaps_are_those_of_the_whole_masks(seed, tmp_path_factory):
  rng = np.random.default_rng(seed)
  masks = np.stack([(rng.random((34, 6, 5)) < p).astype(np.uint8) for p in rng.random(4) ** 3])
  names = ("a", "b", "c", "d")
  case = write(tmp_path_factory.mktemp("store"), np.zeros((34, 6, 5, 1), np.int16), masks,
               annotated=names)
  expected = {(names[i], names[j]) for i in range(4) for j in range(i + 1, 4)
              if (masks[i] & masks[j]).sum() >= max(1, write_lib.OVERLAP * min(masks[i].sum(),
                                                                               masks[j].sum()))}
  assert set(case.overlapping) == expected


def test_a_store_that_did_not_record_overlaps(tmp_path):
  """It opens as before; only who asks for them hears of it, and preparing again records them."""
  case = write(tmp_path, *arrays("mr"))
  assert finish(tmp_path, case).overlapping == set(case.overlapping)
  former = dataclasses.replace(case, overlapping=None)
  store = finish(tmp_path, former)
  assert store.overlapping == set()
  with pytest.raises(InputError, match="prepare again"):
    store.check_overlaps()
  assert write_lib.finished_case(tmp_path, "case", "from") == case
  record = tmp_path / "cases/case/case.json"
  tree = json.loads(record.read_text())
  del tree["overlapping"]
  record.write_text(json.dumps(tree))
  assert write_lib.finished_case(tmp_path, "case", "from") is None
  single = dataclasses.replace(former, annotated=("liver",))
  dataclasses.replace(store, cases=(single,)).check_overlaps()
