"""Arrays with entries per class are found in every network, whatever its conditioning."""

import dataclasses

import pytest

from condseg_jax.config import Conditioning
from condseg_jax.config import Model
from condseg_jax.models.class_axes import class_axes

FLAT = Model(strides=((2, 2),), layers_per_level=(1, 1), channels=4, growth=4)


@pytest.mark.parametrize("condition, expected", [
    (dict(), {}),  # the code of a class is no parameter
    (dict(vector="text", texts=((1.0, 0.0),) * 3), {}),
    (dict(mechanism="film", vector="embedding"), {"class_vector/embedding": 0}),
    (dict(vector="one_hot"), {"merge_0/layer_0/condition/kernel": 2,
                              "merge_0/join/condition/kernel": 2}),
    (dict(position="output_head", mechanism="output"), {"head/kernel": 0, "head/bias": 0}),
    (dict(position="output_head", mechanism="dynamic", vector="one_hot"),
     {f"head/{kind}_{i}/kernel": 0 for kind in ("weight", "bias") for i in range(3)})], ids=str)
@pytest.mark.parametrize("classes", [1, 3])
def test_axes_of_every_kind_of_condition(classes, condition, expected):
  found = class_axes(FLAT, Conditioning(**condition), classes, 1)
  assert found == (classes, {f"params/{name}": axis for name, axis in expected.items()})


def test_decoders_of_their_own_are_per_class_throughout():
  found = class_axes(FLAT, Conditioning(position="per_class_decoders"), 2, 1).axes
  assert found and set(found.values()) == {0}
  assert all(name.startswith("params/decoders/each/") for name in found)


def test_the_other_networks():
  model = dataclasses.replace(FLAT, network="plain_unet", growth=16)
  found = class_axes(model, Conditioning(vector="one_hot", mechanism="film"), 4, 3)
  assert found.axes == {f"params/merge_0/layer_0/condition/{name}/kernel": 0
                        for name in ("gamma", "beta")}
