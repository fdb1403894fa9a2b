"""Training steps a second on several devices and processes, each with the same global batch.

On one machine all of them share its cores: what is seen is what the division costs, not what more
machines would bring. The peer of every row is one device by jit. All of them convolve by plain JAX:
oneDNN serves a single device only, and its speed would be taken for a cost of the division.
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

# Name: driver, processes, devices of each.
LAYOUTS = {"1 device, jit": ("jit", 1, 1), "1 device, pmap": ("pmap", 1, 1),
           "2 devices, jit": ("jit", 1, 2), "2 devices, pmap": ("pmap", 1, 2),
           "2 processes, jit": ("jit", 2, 1), "2 processes, pmap": ("pmap", 2, 1)}
FIRST = "1 device, jit"
CONFIG, CHANGES = "hippocampus", {}
BATCH, STEPS, ROUNDS = 4, 8, 2


def run(folder: Path) -> list[dict]:
  """The rows of the suite."""
  if jax.default_backend() != "cpu":
    progress("scale: the children are CPU processes")
  rates = {name: [] for name in LAYOUTS}
  for turn in range(ROUNDS):
    for name, layout in LAYOUTS.items():
      progress(f"scale, {name}, round {turn + 1} of {ROUNDS}")
      rates[name].append(measure(*layout))
  medians = {name: statistics.median(found) for name, found in rates.items()}
  common = {"unit": "1/s", "faster_is_less": False, "batch": BATCH, "rounds": ROUNDS,
            "convolutions": "plain JAX"}
  return [best_row(f"steps a second, {CONFIG}, {name}", rate, {FIRST: medians[FIRST]}, **common)
          for name, rate in medians.items()]


def measure(driver: str, processes: int, devices: int) -> float:
  """Steps a second in processes of its own."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  settings = {"driver": driver, "processes": processes, "devices": devices, "port": port,
              "config": nets.config_of(CONFIG, CHANGES).to_dict(), "batch": BATCH, "steps": STEPS}
  started = [child.start(__name__, json.dumps({**settings, "rank": rank}))
             for rank in range(processes)]
  return min(child.result(process) for process in started)


def main(text: str) -> None:
  """In the child: prints the steps a second."""
  settings = json.loads(text)
  os.environ["CONDSEG_ONEDNN"] = "0"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", settings["devices"])
  processes, rank = settings["processes"], settings["rank"]
  if processes > 1:
    jax.distributed.initialize(f"localhost:{settings['port']}", processes, rank)
  config = Config.from_dict(settings["config"])
  model = nets.network(config)
  # This process's part of the batch, the same samples whatever the layout.
  part = [x[rank::processes] for x in nets.inputs(config.data.subvolume, settings["batch"])]
  step = ours.Step(model, nets.parameters(model), config, part, settings["driver"])
  jax.block_until_ready(step())
  begin = time.perf_counter()
  for _ in range(settings["steps"]):
    found = step()
  jax.block_until_ready(found)
  print(settings["steps"] / (time.perf_counter() - begin))


if __name__ == "__main__":
  main(*sys.argv[1:])
