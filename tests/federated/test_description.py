"""What a site says about its data, and what is pooled from it."""

import json

from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.config import Config
from condseg_jax.data import selection
from condseg_jax.datasets import discover
from condseg_jax.errors import InputError
from condseg_jax.federated.description import describe
from condseg_jax.federated.description import Description
from condseg_jax.federated.description import pooled
from condseg_jax.federated.description import QUANTILES
from condseg_jax.plan import Plan
from support.tiny import write_datasets

CONFIG = Config().override({"data.subvolume": (8, 16, 16)})


def site(spacing=(2.0, 1.0, 1.0), modality="mr", **cases) -> Description:
  return Description(modality, spacing, cases or {"liver": 10})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  root = write_datasets(tmp_path_factory.mktemp("data"))
  return {name: discover.open_stores(root / "train" / name, (2.0, 1.0, 1.0), None, progress=False)
          for name in ("ball", "box")}


def test_it_says_this_and_no_more(stores):
  found = describe(stores["ball"])
  assert found.cases == {"ball": 5}  # of four
  tree = json.loads(json.dumps(found.to_json()))
  assert set(tree) == {"modality", "spacing", "cases", "sides", "overlapping", "intensities"}
  assert len(tree["intensities"]) == QUANTILES and all(x == int(x) for x in tree["intensities"])
  assert Description.from_json(tree) == found


def test_the_pooled_plan_is_that_of_all_cases(stores):
  record = pooled(CONFIG, {name: describe(found) for name, found in stores.items()})
  assert record.table.names == ("ball", "box")
  every = [s for found in stores.values() for s in found]
  samples = [np.asarray(c.intensities) for d in selection.datasets(every) for c in d.cases]
  expected = Plan.pooled("ct", record.plan.spacing, (8, 16, 16), samples)
  for name in ("low", "high", "mean", "sd"):
    assert getattr(record.plan, name) == pytest.approx(getattr(expected, name), abs=expected.sd / 2)


@pytest.mark.parametrize(("sites", "changes", "line"), [
    ({"a": site(), "b": site(modality="rgb")}, {}, "site b: has 3-D rgb images, a 3-D mr"),
    ({"a": site(), "b": site((1.0, 1.0))}, {}, "site b: has 2-D mr images"),
    ({"a": site(), "b": site((1.0, 1.0, 1.0))}, {}, "prepare its data with --spacing=2,1,1"),
    ({"a": site(liver=5), "b": site(hepar=5)}, {"data.classes": ("liver",)},
     "site b: annotates 'hepar', which data.classes lacks"),
    ({"a": site()}, {"data.classes": ("liver", "spleen")}, "'spleen' is annotated at no site"),
])
def test_sites_that_clash_are_named(sites, changes, line):
  with pytest.raises(InputError) as caught:
    pooled(CONFIG.override(changes), sites)
  assert line in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3), max_leaves=5)


@settings(max_examples=100, deadline=None)
@example(key="cases", value={"liver": float("inf")})
@given(key=st.sampled_from(["modality", "spacing", "cases", "sides", "overlapping", "intensities"]),
       value=json_values)
def test_what_is_no_description_is_refused(key, value):
  tree = site().to_json() | {key: value}
  try:
    found = Description.from_json(tree)
  except ValueError:
    return
  assert Description.from_json(json.loads(json.dumps(found.to_json()))) == found
  assert all(np.isfinite(found.spacing)) and min(found.spacing) > 0 and found.cases
