"""Training steps per second on several devices and processes with the same global batch.

All layouts share the cores of one machine, so the rows show the overhead of the division, not the
speed-up by more machines. The peer of every row is one device with jit. All layouts use the
convolutions of plain JAX: oneDNN supports a single device only, and its speed would look like an
overhead of the others.
"""

import json
import os
from pathlib import Path
import socket
import statistics
import sys
import time

import jax

from condseg_jax.config import Config
from tools.benchmark import child
from tools.benchmark import nets
from tools.benchmark import ours
from tools.benchmark.timing import best_row
from tools.benchmark.timing import progress

# Name → driver, processes, devices per process.
LAYOUTS = {"1 device, jit": ("jit", 1, 1), "1 device, pmap": ("pmap", 1, 1),
           "2 devices, jit": ("jit", 1, 2), "2 devices, pmap": ("pmap", 1, 2),
           "2 processes, jit": ("jit", 2, 1), "2 processes, pmap": ("pmap", 2, 1)}
FIRST = "1 device, jit"
CONFIG, CHANGES = "hippocampus", {}
BATCH, STEPS, ROUNDS = 4, 8, 2


def run(_folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  if jax.default_backend() != "cpu":
    progress("scale: the child processes run on CPU")
  rates = {name: [] for name in LAYOUTS}
  for turn in range(ROUNDS):
    for name, layout in LAYOUTS.items():
      progress(f"scale, {name}, round {turn + 1} of {ROUNDS}")
      rates[name].append(measure(*layout))
  medians = {name: statistics.median(values) for name, values in rates.items()}
  common = {"unit": "1/s", "faster_is_less": False, "batch": BATCH, "rounds": ROUNDS,
            "convolutions": "plain JAX"}
  return [best_row(f"steps a second, {CONFIG}, {name}", rate, {FIRST: medians[FIRST]}, **common)
          for name, rate in medians.items()]


def measure(driver: str, processes: int, devices: int) -> float:
  """Returns the steps per second of a layout, measured in child processes.

  Args:
    driver: `jit` or `pmap`.
    processes: number of processes.
    devices: devices per process.
  """
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  settings = {"driver": driver, "processes": processes, "devices": devices, "port": port,
              "config": nets.config_of(CONFIG, CHANGES).to_dict(), "batch": BATCH, "steps": STEPS}
  started = [child.start(__name__, json.dumps({**settings, "rank": rank}))
             for rank in range(processes)]
  return min(child.result(process) for process in started)


def main(text: str) -> None:
  """Runs in the child: prints the steps per second."""
  settings = json.loads(text)
  os.environ["CONDSEG_ONEDNN"] = "0"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", settings["devices"])
  processes, rank = settings["processes"], settings["rank"]
  if processes > 1:
    jax.distributed.initialize(f"localhost:{settings['port']}", processes, rank)
  config = Config.from_dict(settings["config"])
  model = nets.network(config)
  # The share of this process; the global batch is the same for all layouts.
  share = [x[rank::processes] for x in nets.inputs(config.data.subvolume, settings["batch"])]
  step = ours.Step(model, nets.parameters(model), config, share, settings["driver"])
  jax.block_until_ready(step())
  begin = time.perf_counter()
  for _ in range(settings["steps"]):
    result = step()
  jax.block_until_ready(result)
  print(settings["steps"] / (time.perf_counter() - begin))


if __name__ == "__main__":
  main(*sys.argv[1:])
