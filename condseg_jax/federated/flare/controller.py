"""The rounds inside FLARE's server process: asks the sites, averages what they send, and saves.

A job of FLARE is a stretch of rounds with the sites that are there. All state is that of
`federation.Federation`, on disk after every round; a job that ends early loses a round at most.
"""

import dataclasses
import json
import os
from pathlib import Path

from nvflare.app_common.workflows.model_controller import ModelController

from condseg_jax.federated.flare import messages

FEDERATION = "CONDSEG_FEDERATION"  # environment: the folder of the run
REQUEST, STATUS, STOP = "request.json", "status.json", "stop"


class RoundsController(ModelController):
  """Runs the rounds that are left; WORKDIR/stop ends the job after the one at hand."""

  def __init__(self) -> None:
    super().__init__(persistor_id="", ignore_result_error=True, task_check_period=0.2)

  def run(self) -> None:
    from condseg_jax.config import Config
    from condseg_jax.errors import InputError
    from condseg_jax.federated.federation import Federation
    from condseg_jax.federated.site import Rounds

    folder = Path(os.environ[FEDERATION])
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    present = sorted(client.name for client in self.engine.get_clients())
    status = {"job": self.fl_ctx.get_job_id(), "present": present, "error": ""}
    self._note(folder, status)
    try:
      federation = Federation(Config.from_dict(request["config"]), Rounds(**request["rounds"]),
                              folder)
      if federation.record is None:
        federation.begin(self._descriptions(present))
      while federation.done < federation.rounds.rounds and not (folder / STOP).exists():
        present = self._round(federation, present, request)
        self._note(folder, status | {"present": present})
    except InputError as error:
      self._note(folder, status | {"error": str(error)})
    except Exception as error:  # FLARE would log it, and the server would go on asking
      self._note(folder, status | {"error": f"{type(error).__name__}: {error}"})
      raise

  def _descriptions(self, sites: list[str]) -> dict:
    from condseg_jax.errors import InputError
    answers = self.send_model_and_wait(task_name=messages.DESCRIBE, data=messages.describe_task(),
                                       targets=sites)
    found = {}
    for answer in answers:
      try:
        found[answer.meta["client_name"]] = messages.read_description(answer)
      except ValueError as error:
        raise InputError(f"site {answer.meta['client_name']}", f"sent {error}",
                         "use the same version everywhere") from error
    missing = sorted(set(sites) - set(found))
    if missing:
      raise InputError(f"site {missing[0]}", "could not describe its data", "see problem.txt in "
                       "its folder")
    return dict(sorted(found.items()))

  def _round(self, federation, sites: list[str], request: dict) -> list[str]:
    """Runs a round; returns the sites that answered."""
    task = messages.train_task(federation.done, federation.record,
                               dataclasses.asdict(federation.rounds), federation.taught,
                               federation.arrays)
    answers = self.broadcast_model(
        task, task_name=messages.TRAIN, targets=sites,
        min_responses=min(request["least_sites"] or len(sites), len(sites)),
        wait_time_after_min_received=request["patience"])
    updates, absent = {}, dict.fromkeys(sites, "has not answered")
    for answer in answers:
      name = answer.meta["client_name"]
      try:
        updates[name] = messages.read_update(answer)
        del absent[name]
      except ValueError as error:
        absent[name] = f"sent {error}"
    federation.finish_round(dict(sorted(updates.items())), absent)
    return sorted(updates)

  @staticmethod
  def _note(folder: Path, status: dict) -> None:
    from condseg_jax.system.atomic import write_text
    write_text(folder / STATUS, json.dumps(status))
