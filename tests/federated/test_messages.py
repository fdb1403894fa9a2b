"""What server and sites tell each other: there and back, and what is no message."""

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="the extra `federated` is not installed")

from nvflare.app_common.abstract.fl_model import FLModel  # noqa: E402

from condseg_jax.federated.average import Update  # noqa: E402
from condseg_jax.federated.description import Description  # noqa: E402
from condseg_jax.federated.flare import messages  # noqa: E402


def test_there_and_back():
  site = Description("mr", (2.0, 1.0, 1.0), {"liver": 10}, {"liver": ("W",)})
  assert messages.read_description(messages.description_message(site)) == site
  update = Update({"params/a": np.ones(3, np.float32)}, {"liver": 4}, {"liver": 0.5})
  found = messages.read_update(messages.update_message(update))
  assert (found.samples, found.dice) == (update.samples, update.dice)
  np.testing.assert_array_equal(found.arrays["params/a"], update.arrays["params/a"])


@pytest.mark.parametrize("content", [None, 5, ["{}"], "", "[]", "{", "[" * 100_000, "{}"])
@pytest.mark.parametrize("read", [messages.read_description, messages.read_update,
                                  messages.read_train_task])
def test_what_is_no_message_is_refused(read, content):
  """Whatever a site or a server sends, one kind of error says that it is none."""
  with pytest.raises(ValueError):
    read(FLModel(metrics={"none": 0.0}, meta={"content": content}))
