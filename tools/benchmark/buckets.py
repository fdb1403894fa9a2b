"""A store in a bucket against one on the local disk: preparing, and reading random subvolumes.

The server is moto, a test server in Python on the loopback, so that the rows measure the requests
and their handling here and there, not a network: that which tools/test.sh installs, or one on the
PATH.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil
import socket
import statistics
import subprocess
import time
import urllib.request

import numpy as np

from condseg_jax.data import store as store_lib
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import prepare
from tools.benchmark import reading

MOTO = Path(__file__).parent.parent.parent / ".venv" / "moto" / "bin" / "moto_server"
SHAPE = (192, 192, 128)  # x y z
SUBVOLUME = (32, 64, 64)  # D H W
CASES = 3
READS = 40  # per round
ROUNDS = 5
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
               "AWS_EC2_METADATA_DISABLED": "true"}


def run(folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  raw = folder / "raw"
  reading.write_cts(raw, SHAPE, CASES)
  with _server(folder) as address:
    seconds: dict[str, list[float]] = {"bucket": [], "disk": []}
    for turn in range(3):
      for place, root in (("bucket", f"{address}/{turn}"), ("disk", folder / f"store_{turn}")):
        start = time.perf_counter()
        prepare(read_msd(raw), root, (1.0, 1.0, 1.0), progress=False)
        seconds[place].append(time.perf_counter() - start)
    ours, peer = (statistics.median(seconds[place]) for place in ("bucket", "disk"))
    rows = [{"name": f"prepare {CASES} CTs of 192x192x128 into a bucket", "ours": ours,
             "peer": peer, "ratio": peer / ours, "unit": "s", "peer_kind": "local disk"}]
    stores = [store_lib.Store.open(f"{address}/0"), store_lib.Store.open(folder / "store_0")]
    for name, forget in (("nothing cached", True), ("all cached", False)):
      rates: list[list[float]] = [[], []]
      for turn in range(ROUNDS + 1):
        for store, found in zip(stores, rates, strict=True):
          rate = _rate(store, turn, forget)
          if turn:  # the first round fills the caches
            found.append(rate)
      ours, peer = map(statistics.median, rates)
      rows.append({"name": f"random 64x64x32 subvolumes of a bucket, {name}", "ours": ours,
                   "peer": peer, "ratio": ours / peer, "unit": "1/s", "peer_kind": "local disk"})
  return rows


def _rate(store: store_lib.Store, seed: int, forget: bool) -> float:
  """Reads image and mask of random subvolumes; returns how many a second."""
  rng = np.random.default_rng(seed)
  begin = time.perf_counter()
  for number in range(READS):
    if forget:
      store_lib.clear_array_cache()
      store_lib._context.cache_clear()
    case = store.cases[number % CASES]
    starts = [int(rng.integers(0, n - m + 1)) for n, m in zip(case.shape, SUBVOLUME, strict=True)]
    box = tuple(slice(s, s + m) for s, m in zip(starts, SUBVOLUME, strict=True))
    store.read_image(case, box)
    store.read_masks(case, ["liver"], box)
  return READS / (time.perf_counter() - begin)


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
  """Starts moto, and sets what its clients need; yields the address of a bucket."""
  program = shutil.which(MOTO) or shutil.which("moto_server")
  if not program:
    raise SystemExit("moto_server is not installed: see docs/buckets.md")
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
  url = f"http://127.0.0.1:{port}"
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "AWS_"))}
  with (folder / "moto.log").open("w") as log:
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log,
                               stderr=log, env=environment)
  before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")}
  os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=url)
  try:
    request = urllib.request.Request(f"{url}/benchmark", data=b"", method="PUT")
    _patiently(lambda: urllib.request.urlopen(request).close())
    yield "s3://benchmark"
  finally:
    process.terminate()
    process.wait()
    for name, value in before.items():
      os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _patiently(work: Callable[[], None]) -> None:
  for _ in range(300):
    with contextlib.suppress(OSError):
      return work()
    time.sleep(0.1)
  raise SystemExit("moto_server does not start")
