"""The files of a run: metrics.jsonl, TensorBoard events, run.json, plan.json."""

from collections.abc import Mapping
import importlib.metadata
import json
import math
import platform
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import tensorboardX

from condseg_jax.system import buckets
from condseg_jax.system.atomic import write_text

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore", "numpy",
            "scipy", "nibabel")


class RunFiles:
  """Writes the files of a run; only the first process writes.

  Args:
    workdir: workdir of the run.
    config: config as plain containers.
    resumed: whether the seconds of earlier sessions are added.
  """

  def __init__(self, workdir, config: Mapping, *, resumed: bool = False):
    self._writes = jax.process_index() == 0
    buckets.connect(workdir)
    self._folder = epath.Path(workdir)
    self._before = _seconds(self._folder / "run.json") if resumed else 0.0
    self._started = time.time()
    self._run: dict[str, Any] = {"config": config, "versions": versions(), "devices": devices()}
    self._events: Any = None
    if self._writes:
      self._folder.mkdir(parents=True, exist_ok=True)
      if buckets.is_bucket(workdir):
        from condseg_jax.train import event_file
        event_file.register()
      self._events = tensorboardX.SummaryWriter(str(self._folder / "tensorboard"))
      self.finish("running", {})

  def plan(self, tree: Mapping) -> None:
    """Writes plan.json: the preprocessing plan and the training set that it was derived from."""
    if self._writes:
      write_text(self._folder / "plan.json", json.dumps(tree, indent=1))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line to metrics.jsonl and one point per value to TensorBoard; NaN becomes null."""
    if not self._writes:
      return
    values = {key: float(value) for key, value in values.items()}
    line: dict[str, Any] = {"step": step}
    line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._append("metrics.jsonl", json.dumps(line) + "\n")
    for key, value in values.items():
      if math.isfinite(value):
        self._events.add_scalar(key, value, step)

  def _append(self, name: str, text: str) -> None:
    path = self._folder / name
    if buckets.is_bucket(path):  # whose objects cannot grow
      before = path.read_text(encoding="utf-8") if path.exists() else ""
      write_text(path, before + text)
      return
    with path.open("a", encoding="utf-8") as stream:
      stream.write(text)

  def picture(self, step: int, image_HWC: np.ndarray) -> None:
    """Writes a picture, uint8, to TensorBoard."""
    if self._writes:
      self._events.add_image("progress", image_HWC, step, dataformats="HWC")

  def finish(self, status: str, values: Mapping) -> None:
    """Writes run.json: `running`, `finished`, `interrupted` or `failed`, and the last values."""
    if not self._writes:
      return
    seconds = round(self._before + time.time() - self._started, 2)
    self._run |= {"status": status, "seconds": seconds, **values}
    write_text(self._folder / "run.json", json.dumps(self._run, indent=1))
    self._events.flush()


def finished(workdir) -> bool:
  """Returns whether run.json marks the run as finished."""
  try:
    return json.loads((epath.Path(workdir) / "run.json").read_text(encoding="utf-8")
                      )["status"] == "finished"
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _seconds(path: epath.Path) -> float:
  """Returns the seconds a run has taken so far, 0 if its record is missing or damaged."""
  try:
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
  except (OSError, ValueError, KeyError, TypeError):
    return 0.0


def trim_metrics(workdir, step: int) -> None:
  """Drops the lines of metrics.jsonl after a step, which a resumed run writes again."""
  path = epath.Path(workdir) / "metrics.jsonl"
  if jax.process_index() == 0 and path.exists():
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if json.loads(line)["step"] <= step]
    write_text(path, "".join(line + "\n" for line in lines))


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that affect the results."""
  return {"python": platform.python_version(),
          **{name: importlib.metadata.version(name) for name in PACKAGES}}


def devices() -> dict:
  """Describes the devices of the run."""
  return {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind,
          "devices": jax.device_count(), "processes": jax.process_count()}
