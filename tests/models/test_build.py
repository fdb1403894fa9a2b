"""Settings to a network, and what a wrong one is answered."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Conditioning
from condseg_jax.config import Model
from condseg_jax.errors import InputError
from condseg_jax.models import build
from condseg_jax.models.build import build_model
from condseg_jax.models.dense_unet import DenseUNet

CODES = (0.7, -0.5, 0.1)
MODEL = Model(strides=((2, 2),), layers_per_level=(1, 1), channels=4, growth=4)
CONDITION = Conditioning()


def test_a_config_to_a_network():
  model = build_model(MODEL, CONDITION, np.array(CODES, np.float32))
  assert model == DenseUNet(codes=tuple(float(np.float32(c)) for c in CODES), strides=((2, 2),),
                            layers_per_level=(1, 1), channels=4, growth=4)
  assert hash(model) == hash(build_model(MODEL, CONDITION, np.array(CODES, np.float32)))
  half = dataclasses.replace(MODEL, dtype="bfloat16")
  assert build_model(half, CONDITION, CODES).dtype == jnp.bfloat16


def test_every_setting_of_the_network_reaches_it():
  """Values that are no default: none is lost on the way."""
  model = Model(strides=((1, 2, 2), (2, 2, 2)), layers_per_level=(2, 1, 3),
                decoder_layers_per_level=(1, 2), channels=6, growth=5, encoder_block="residual",
                decoder_block="plain", norm="instance", activation="relu", dtype="bfloat16",
                deep_supervision=1, remat=True)
  condition = Conditioning(mechanism="film", vector="embedding", embedding_size=3, from_level=1)
  expected = DenseUNet(
      codes=CODES, strides=((1, 2, 2), (2, 2, 2)), layers_per_level=(2, 1, 3),
      decoder_layers_per_level=(1, 2),
      channels=6, growth=5, encoder_block="residual", decoder_block="plain", norm="instance",
      activation="relu", dtype=jnp.bfloat16, deep_supervision=1, remat=True, mechanism="film",
      vector="embedding", embedding_size=3, from_level=1)
  assert build_model(model, condition, CODES) == expected


@pytest.mark.parametrize("change, fault", [
    (dict(layers_per_level=(1, 1, 1)), "levels"),
    (dict(layers_per_level=(1,), strides=()), "levels"),
    (dict(strides=((2, 2, 2, 2),)), "axes"),
    (dict(strides=((2, 2), (2, 2, 2)), layers_per_level=(1, 1, 1)), "axes"),
    (dict(strides=((2, 0),)), "1 or more"), (dict(layers_per_level=(1, -1)), "0 or more"),
    (dict(channels=0), "1 or more"), (dict(position="bridge"), "position"),
    (dict(decoder_layers_per_level=(1, 1)), "decoder_layers_per_level"),
    (dict(decoder_layers_per_level=(-1,)), "0 or more"),
    (dict(from_level=0, position="output_head", mechanism="dynamic"), "from_level"),
    (dict(position="output_head"), "does not act"),
    (dict(position="encoder", mechanism="spade"), "does not act"),
    (dict(mechanism="norm", norm="none"), "needs a normalisation"), (dict(vector="word"), "vector"),
    (dict(vector="text"), "one vector for each class"),
    (dict(vector="text", texts=((1, 2), (3,), (4, 5))), "one length"),
    (dict(mechanism="tint"), "mechanism"), (dict(norm="batch"), "norm"),
    (dict(activation="elu"), "activation"), (dict(from_level=1), "from_level"),
    (dict(from_level=-1), "from_level"), (dict(from_level=0, position="input"), "from_level"),
    (dict(network="swin"), "model.network: 'swin' is not registered")])
def test_settings_that_make_no_network(change, fault):
  fields = {f.name for f in dataclasses.fields(Model)}
  model = dataclasses.replace(MODEL, **{k: v for k, v in change.items() if k in fields})
  condition = dataclasses.replace(CONDITION,
                                  **{k: v for k, v in change.items() if k not in fields})
  with pytest.raises(InputError, match=fault) as error:
    build_model(model, condition, CODES)
  assert error.value.usage


def test_a_network_of_ones_own(monkeypatch):
  """A function from settings to a network, and a line of the config."""
  made = []

  def own(model, conditioning, codes):
    made.append(codes)
    return build.dense_unet(dataclasses.replace(model, channels=2), conditioning, codes)

  monkeypatch.setitem(build.NETWORKS, "own", own)
  network = build_model(dataclasses.replace(MODEL, network="own"), CONDITION, CODES)
  assert network.channels == 2 and made == [CODES]
