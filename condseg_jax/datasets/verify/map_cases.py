"""Checks cases in threads of this process, or in the workers of a cluster."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
import os

from condseg_jax.cluster.tasks import Cluster
from condseg_jax.cluster.tasks import each
from condseg_jax.cluster.tasks import in_order
from condseg_jax.cluster.tasks import Outcome


def map_cases(check: Callable, tasks: Sequence[Sequence], names: Sequence[str], threads: int,
              cluster: Cluster | None) -> Iterator[Outcome]:
  """Yields the outcomes of a check in the order of the cases; see `cluster.tasks.each`.

  Args:
    check: at the top level of a module.
    tasks: arguments of each call.
    names: of the cases, for messages.
    threads: maximal number of cases at a time without a cluster.
    cluster: see above; None for none.
  """
  if cluster is not None:
    yield from in_order((outcome.number, outcome) for outcome in each(cluster, check, tasks, names))
    return
  with concurrent.futures.ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
    yield from map(Outcome, range(len(tasks)), pool.map(lambda task: check(*task), tasks))
