"""Features as pictures, parameters as a table, class vectors in the plane."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from condseg_jax.analysis import activations
from condseg_jax.analysis import feature_maps
from condseg_jax.analysis import grids
from condseg_jax.analysis import parameters
from condseg_jax.analysis.run import class_plane
from condseg_jax.analysis.run import maps
from condseg_jax.analysis.samples import Sample
from condseg_jax.classes import ClassTable
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def test_a_map_times_a_vector_of_channels_is_recovered():
  pattern = np.zeros((5, 6))
  pattern[1, 2:4] = 3
  offset = normal(2, 1, 1, 4, seed=1)
  maps, change = feature_maps.principal_maps(pattern[None, ..., None] * normal(4) + offset)
  expected = pattern - pattern.mean()
  for found in maps:  # bright where the pattern is, since it is rare
    np.testing.assert_allclose(found / np.abs(found).max(), expected / expected.max(), atol=1e-9)
  np.testing.assert_allclose(change, change[0, 0])
  assert change[0, 0] > 0


def test_no_change_where_the_class_changes_nothing():
  features = np.repeat(normal(1, 5, 6, 4), 3, axis=0)
  maps, change = feature_maps.principal_maps(features)
  np.testing.assert_allclose(change, 0, atol=1e-12)
  np.testing.assert_allclose(maps[0], maps[2])
  maps, change = feature_maps.principal_maps(np.ones((2, 5, 6, 4)))
  assert not maps.any() and not change.any()


def test_squared_change_adds_up_to_the_share():
  features = normal(3, 5, 6, 4)
  _, change = feature_maps.principal_maps(features)
  share = feature_maps.class_share(features.reshape(3, 30, 4))
  assert (change ** 2).mean() == pytest.approx(share)


def test_a_packed_picture_is_the_same_to_half_a_step():
  image = normal(5, 7)
  step = (image.max() - image.min()) / 255
  assert np.abs(feature_maps.unpack(feature_maps.pack(image)) - image).max() <= 0.5001 * step
  np.testing.assert_array_equal(feature_maps.unpack(feature_maps.pack(np.full((2, 3), 7.0))), 7)


def test_an_image_and_more_classes_than_it_annotates(tmp_path):
  """In 2-D there is no slice to choose; the classes of the image are shown first."""
  names, window = ("a", "b", r"c$\frac{x$", "d", "e"), (16, 24)
  table = ClassTable.create(names)
  model = DenseUNet(tuple(table.codes.tolist()), ((2, 2),), (0, 0), channels=4, growth=4,
                    vector="embedding")
  image = normal(*window, 3).astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), image[None], jnp.zeros(1, jnp.int32))
  masks = np.full((*window, 5), 255, np.uint8)
  masks[..., 4] = 0
  masks[3:9, 5:9, 4] = 1
  every_layer = activations.list_layers(model, 3)
  layers = feature_maps.shown_layers(every_layer)
  assert layers == ["down_0/join", "down_1/join", "merge_0/join", "head"]
  predictor = Predictor(model, variables, table, Plan("rgb", (1.0, 1.0), window))
  found = maps(predictor, Sample("one", image, masks, (4,)), every_layer)
  assert [layer["name"] for layer in found["layers"]] == layers
  assert list(found["layers"][0]["maps"]) == ["e", *names[:3]]
  assert found["layers"][0]["share"] == 0 and found["layers"][-1]["share"] > 0
  assert np.unique(found["label"]).tolist() == [0, 5]
  network = {"maps": found, "classes": names, "colors": table.colors,
             "class_plane": class_plane(parameters.class_vectors(variables["params"]))}
  grids.draw_maps(tmp_path / "maps.png", network, "maps")
  grids.draw_plane(tmp_path / "plane.png", network, "plane")
  for name in ("maps.png", "plane.png"):
    assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5
  # The name of each row, to the left of the image, has the colour of its class.
  picture = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB"), np.float64)
  names_of_rows = picture[100:, :130].reshape(-1, 3)
  for name, color in zip(names, table.colors, strict=True):
    distance = np.abs(names_of_rows - color).max(-1).min()
    assert (distance < 40) == (name in found["layers"][0]["maps"]), name


def test_the_table_holds_every_parameter():
  model = DenseUNet((0.1, -0.6), ((2, 2),), (1, 1), channels=4, growth=4, vector="embedding",
                    embedding_size=3)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)),
                          jnp.zeros(1, jnp.int32))["params"]
  table = {p.name: p for p in parameters.parameter_table(params)}
  assert table["class_vector/embedding"] == ("class_vector/embedding", (2, 3), 6)
  assert table["stem/conv/kernel"].shape == (3, 3, 1, 4)
  assert sum(p.count for p in table.values()) == sum(x.size for x in jax.tree.leaves(params))


def test_learned_class_vectors():
  vectors = normal(2, 3)
  assert parameters.class_vectors({"class_vector": {"embedding": vectors}}) is not None
  assert parameters.class_vectors({"stem": {"conv": {"kernel": vectors}}}) is None


def test_points_of_a_plane_keep_their_distances():
  flat = normal(6, 2)
  rotation, _ = np.linalg.qr(normal(5, 5, seed=1))
  plane, parts = parameters.principal_plane(flat @ rotation[:2] + 3)
  distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
  np.testing.assert_allclose(distances(plane), distances(flat), atol=1e-9)
  assert parts.sum() == pytest.approx(1) and parts[0] >= parts[1]


@pytest.mark.parametrize("vectors, parts", [(np.ones((3, 4)), (0, 0)), (np.ones((1, 4)), (0, 0)),
                                            (np.arange(3.0)[:, None], (1, 0))])
def test_fewer_dimensions_than_two(vectors, parts):
  plane, found = parameters.principal_plane(vectors)
  assert plane.shape == (len(vectors), 2)
  np.testing.assert_allclose(found, parts)
