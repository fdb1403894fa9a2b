"""What Prometheus is told at /metrics: counts and durations, nothing of requests themselves."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client import Counter
from prometheus_client import generate_latest
from prometheus_client import Histogram
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from condseg_jax.serve.queue import Queue

# The text format of Prometheus 0.0.4, as `generate_latest` writes it.
MEDIA = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)  # seconds of a prediction


class Metrics:
  """The metrics of a service.

  Args:
    queue: whose predictions are measured.
  """

  def __init__(self, queue: Queue):
    self._registry = CollectorRegistry()
    self._registry.register(_QueueState(queue))
    ProcessCollector(registry=self._registry)
    self._requests = Counter("condseg_requests", "HTTP requests by route and status",
                             ("route", "status"), registry=self._registry)
    self._predictions = Histogram("condseg_prediction_seconds", "Predictions by status of their "
                                  "outcome, without the time in the queue", ("status",),
                                  buckets=BUCKETS, registry=self._registry)
    queue.observe = self._predicted

  def answered(self, route: str, status: int) -> None:
    """Counts a request.

    Args:
      route: as the service declares it, so that there are few.
      status: of the answer.
    """
    self._requests.labels(route, str(status)).inc()

  def render(self) -> bytes:
    """Returns the metrics in Prometheus' text format."""
    return generate_latest(self._registry)

  def _predicted(self, status: int, seconds: float) -> None:
    self._predictions.labels(str(status)).observe(seconds)


class _QueueState(Collector):
  """The queue as it is when Prometheus asks."""

  def __init__(self, queue: Queue):
    self._queue = queue

  def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    queue = self._queue
    for name, text, value in (
        ("ready", "Whether the network is loaded and the worker runs", queue.device.ready),
        ("queue_places", "Places for waiting requests and the running one", queue.places),
        ("queue_waiting", "Waiting requests", queue.taken - queue.running),
        ("queue_running", "Running requests", queue.running)):
      yield GaugeMetricFamily(f"condseg_{name}", text, value=int(value))
    yield CounterMetricFamily("condseg_worker_restarts", "Exits of the worker",
                              value=queue.restarts)
