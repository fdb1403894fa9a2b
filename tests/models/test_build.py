"""Settings to a network, and what a wrong one is answered."""

import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.models.build import build_model
from condseg_jax.models.dense_unet import DenseUNet

CODES = (0.7, -0.5, 0.1)
MODEL = dict(strides=[[2, 2]], depth=[1, 1], channels=4, growth=4, norm="group",
             activation="leaky_relu", dtype="float32")
CONDITION = dict(position="decoder", mechanism="channel", vector="hash", embedding_size=8,
                 from_level=None)


def test_a_config_to_a_network():
  model = build_model(MODEL, CONDITION, np.array(CODES, np.float32))
  assert model == DenseUNet(codes=tuple(float(np.float32(c)) for c in CODES), strides=((2, 2),),
                            depth=(1, 1), channels=4, growth=4)
  assert hash(model) == hash(build_model(MODEL, CONDITION, np.array(CODES, np.float32)))
  assert build_model(MODEL | {"dtype": "bfloat16"}, CONDITION, CODES).dtype == jnp.bfloat16


@pytest.mark.parametrize("change, fault", [
    (dict(width=3), "width"), (dict(codes=(1.0,)), "codes"), (dict(name="x"), "name"),
    (dict(dtype="float16"), "float16"), (dict(depth=[1, 1, 1]), "levels"),
    (dict(depth=[1], strides=[]), "levels"), (dict(strides=[[2, 2, 2, 2]]), "axes"),
    (dict(strides=[[2, 2], [2, 2, 2]], depth=[1, 1, 1]), "axes"), (dict(strides=[2]), "model"),
    (dict(strides=[[2, 0]]), "1 or more"), (dict(depth=3), "model"),
    (dict(depth=[1, -1]), "0 or more"), (dict(channels=0), "1 or more"),
    (dict(position="bridge"), "position"), (dict(decoder_depth=[1, 1]), "decoder_depth"),
    (dict(decoder_depth=[-1]), "0 or more"),
    (dict(from_level=0, position="head", mechanism="dynamic"), "from_level"),
    (dict(position="head"), "does not act"),
    (dict(position="encoder", mechanism="spade"), "does not act"),
    (dict(mechanism="norm", norm="none"), "needs a normalisation"), (dict(vector="word"), "vector"),
    (dict(vector="text"), "one vector for each class"),
    (dict(vector="text", texts=[[1, 2], [3], [4, 5]]), "one length"),
    (dict(mechanism="tint"), "mechanism"), (dict(norm="batch"), "norm"),
    (dict(activation="elu"), "activation"), (dict(from_level=1), "from_level"),
    (dict(from_level=-1), "from_level"), (dict(from_level=0, position="input"), "from_level")])
def test_settings_that_make_no_network(change, fault):
  with pytest.raises(InputError, match=fault) as error:
    build_model(MODEL | change, {k: v for k, v in CONDITION.items() if k not in change}, CODES)
  assert error.value.usage


@pytest.mark.parametrize("key", ["strides", "depth"])
def test_settings_that_are_missing(key):
  with pytest.raises(InputError, match=key):
    build_model({k: v for k, v in MODEL.items() if k != key}, CONDITION, CODES)
