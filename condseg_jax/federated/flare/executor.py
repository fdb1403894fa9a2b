"""A site inside FLARE's client process. It answers two tasks: what it has, and a round of training.

The folder and the data of the site are those that its operator named, in the environment of the
process; a task brings neither path nor code. Before anything is sent it is listed in
FOLDER/sent/: a description in full, an update with names, shapes and digests of its arrays.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import make_reply
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from condseg_jax.federated.flare import messages

SITE = "CONDSEG_FEDERATED_SITE"  # environment: JSON with `data`, `spacing`, `cache`, `folder`


class SiteExecutor(Executor):
  """Trains with the data of this site; the network is compiled in the first round of a job."""

  def __init__(self) -> None:
    super().__init__()
    self._site: Any = None

  def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext,
              abort_signal: Signal) -> Shareable:  # noqa: ARG002 (FLARE's signature)
    """Answers a task; an error is one line in the log of the site, and a code for the server."""
    from condseg_jax.errors import InputError
    place = json.loads(os.environ[SITE])
    try:
      message = FLModelUtils.from_shareable(shareable)
      answer = (self._describe if task_name == messages.DESCRIBE else self._train)(place, message)
    except (InputError, ValueError, KeyError) as error:
      self.log_error(fl_ctx, f"condseg: {error}")
      Path(place["folder"], "problem.txt").write_text(f"{error}\n", encoding="utf-8")
      return make_reply(ReturnCode.EXECUTION_EXCEPTION)
    return FLModelUtils.to_shareable(answer)

  def _describe(self, place: dict[str, Any], _message: FLModel) -> FLModel:
    from condseg_jax.federated.description import describe
    found = describe(_stores(place))
    _list_sent(place, "description.json", found.to_json())
    return messages.description_message(found)

  def _train(self, place: dict[str, Any], message: FLModel) -> FLModel:
    from condseg_jax.federated.site import Rounds
    from condseg_jax.federated.site import Site
    from condseg_jax.system.cache import enable_compilation_cache
    task, arrays = messages.read_train_task(message)
    if self._site is None:
      enable_compilation_cache()
      self._site = Site(task["record"], _stores(place), Rounds(**task["rounds"]))
    update = self._site.train(task["round"], arrays, task["taught"])
    _list_sent(place, f"round_{task['round'] + 1:04d}.json", {
        "samples": dict(update.samples), "dice": dict(update.dice),
        "bytes": sum(a.nbytes for a in update.arrays.values()),
        "arrays": [{"name": name, "shape": list(array.shape), "type": array.dtype.name,
                    "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
                   for name, array in update.arrays.items()]})
    return messages.update_message(update)


def _stores(place: dict[str, Any]) -> list:
  from condseg_jax.data.store import open_prepared
  from condseg_jax.datasets import discover
  spacing = tuple(place["spacing"])
  return open_prepared(place["data"], spacing) or discover.open_stores(
      place["data"], spacing, place["cache"] or None, progress=False)


def _list_sent(place: dict[str, Any], name: str, tree: Any) -> None:
  from condseg_jax.system.atomic import write_text
  folder = Path(place["folder"]) / "sent"
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / name, json.dumps(tree, indent=1))
