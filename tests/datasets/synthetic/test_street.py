"""Street scenes: the CamVid layout, near-duplicate frames, and classes that no threshold finds."""

import json
import time

import numpy as np
import pytest

from condseg_jax.datasets.synthetic import street
from condseg_jax.datasets.synthetic.street_scene import BLOCK_M
from condseg_jax.datasets.synthetic.street_scene import Camera
from condseg_jax.formats.picture import read_picture

TRAIN, VAL, FRAMES = 2, 3, 5


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  out = tmp_path_factory.mktemp("street")
  street.write_street(out, train_sequences=TRAIN, val_sequences=VAL, frames=FRAMES)
  return out


@pytest.fixture(scope="module")
def drives():
  """images_NHWC and labels_NHW of six drives, frames far apart."""
  frames = [street.draw_frame("val", q, f) for q in range(6) for f in range(0, 33, 11)]
  return tuple(np.stack(part) for part in zip(*frames, strict=True))


def test_layout(written):
  assert json.loads((written / "classes.json").read_text()) == {
      "ignore": 11, "classes": ["sky", "building", "pole", "road", "pavement", "tree", "sign",
                                "fence", "car", "pedestrian", "bicyclist"]}
  assert sorted(p.name for p in written.iterdir()) == [
      "classes.json", "train", "trainannot", "val", "valannot"]
  for split, sequences in (("train", TRAIN), ("val", VAL)):
    names = [f"{q:02d}_{f:05d}.png" for q in range(sequences) for f in range(FRAMES)]
    for folder in (split, split + "annot"):
      assert sorted(p.name for p in (written / folder).iterdir()) == names
  image, label = (read_picture(written / d / "00_00003.png").array for d in ("train", "trainannot"))
  assert image.shape == (96, 128, 3) and label.shape == (96, 128)
  drawn_image, drawn_label = street.draw_frame("train", 0, 3)
  np.testing.assert_array_equal(image, drawn_image)
  np.testing.assert_array_equal(label, drawn_label)


def test_every_class_and_void_appear(drives):
  _, labels = drives
  share = np.bincount(labels.ravel(), minlength=12) / labels.size
  assert len(share) == 12 and share[:11].min() > 0.002
  assert 0.002 < share[street.VOID] < 0.08
  present = np.array([[(label == k).any() for k in range(11)] for label in labels])
  assert present.mean(axis=0).min() > 0.6


def test_shape_and_seed():
  image, label = street.draw_frame("train", 0, 0, shape_HW=(48, 80))
  assert image.shape == (48, 80, 3) and label.shape == (48, 80)
  assert image.dtype == label.dtype == np.uint8
  again, _ = street.draw_frame("train", 0, 0, shape_HW=(48, 80))
  np.testing.assert_array_equal(image, again)
  others = [street.draw_frame("train", 0, 0, shape_HW=(48, 80), seed=1)[1],
            street.draw_frame("train", 1, 0, shape_HW=(48, 80))[1],
            street.draw_frame("val", 0, 0, shape_HW=(48, 80))[1]]
  assert all((label != other).mean() > 0.05 for other in others)


@pytest.mark.parametrize("sequence", range(3))
def test_consecutive_frames_are_near_duplicates(sequence):
  labels = [street.draw_frame("train", sequence, f)[1] for f in (0, 1, 30)]
  moved, far = ((labels[0] != label).mean() for label in labels[1:])
  assert 0 < moved < 0.12
  assert far > moved


def test_the_street_goes_on_past_a_block():
  """No drive ends: new blocks come into view, and none of them is like the last."""
  views = [street.draw_frame("train", 0, f)[1] for f in (0, 40, 80)]
  assert all((v == street.ID["building"]).mean() > 0.02 for v in views)
  assert (views[0] != views[1]).mean() > 0.05 and (views[1] != views[2]).mean() > 0.05


def test_sky_above_road_below(drives):
  _, labels = drives
  rows = np.arange(labels.shape[1])[:, None]
  height = {k: np.average(np.broadcast_to(rows, labels.shape), weights=labels == k)
            for k in (street.ID["sky"], street.ID["building"], street.ID["road"])}
  assert height[street.ID["sky"]] < height[street.ID["building"]] < height[street.ID["road"]]
  assert not (labels[:, 60:] == street.ID["sky"]).any()


def best_window_dice(values, positive):
  """The best Dice of {lo <= values < hi} over every pair of thresholds of a uint8 channel."""
  hits = np.bincount(values[positive], minlength=256)
  below_hits, below = (np.concatenate([[0], np.cumsum(n)])
                       for n in (hits, np.bincount(values, minlength=256)))
  inside = np.triu(below_hits[None, :] - below_hits[:, None])
  size = np.triu(below[None, :] - below[:, None])
  return (2 * inside / (size + hits.sum())).max()


def test_most_classes_have_no_colour_of_their_own(drives):
  images, labels = drives
  labelled = labels != street.VOID
  best = {name: max(best_window_dice(images[..., c][labelled], (labels == k)[labelled])
                    for c in range(3)) for k, name in enumerate(street.CLASSES)}
  assert sum(dice < 0.6 for dice in best.values()) >= 8, best
  assert max(best[name] for name in ("pole", "pavement", "sign", "pedestrian")) < 0.3


def test_camera_is_a_pinhole():
  """A point twice as far lies half as far from the vanishing point."""
  camera = Camera((96, 128), 1.0, 10.0, 0.0, np.ones(3), np.zeros(3))
  ((u, v), (u2, v2)), depth = camera.project([(3.0, 0.0, 20.0), (3.0, 0.0, 30.0)])
  assert depth == 10
  assert u - camera.u0 == pytest.approx(2 * (u2 - camera.u0))
  assert v - camera.v0 == pytest.approx(2 * (v2 - camera.v0))
  assert u - camera.u0 == pytest.approx(camera.focal * (3.0 - 1.0) / 10)


def test_drawing_is_fast():
  street.draw_frame("train", 0, 0)
  start = time.process_time()
  for frame in range(8):
    street.draw_frame("train", 0, frame * int(BLOCK_M))
  assert (time.process_time() - start) / 8 < 0.15
