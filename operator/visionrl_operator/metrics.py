"""What ``/metrics`` shows, in Prometheus' format."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

WRITES = frozenset({"post", "put", "patch", "delete"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The operator's metrics, each in a registry of its own: several operators may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = self._histogram("reconcile_seconds", "Duration of one pass over a job.", ["result"])
        self.children_seconds = self._histogram(
            "job_children_seconds", "From the creation of a job to that of its first objects.", []
        )
        self.api_requests = self._counter("api_requests", "Requests to the API server.", ["verb", "kind", "code"])
        self.api_writes = self._counter("api_writes", "Writing requests to the API server.", ["kind"])
        self.probe_requests = self._counter("probe_requests", "Requests for trainers' reports.", ["result"])
        self.missed_changes = self._counter("watch_missed", "Changed objects that the watch missed.", ["kind"])
        self.leader = Gauge("visionrl_operator_leader", "1 while this process leads.", registry=self.registry)

    def watch_queue(self, waiting: Callable[[], int], active: Callable[[], int]) -> None:
        """Show a work queue: keys that are due, keys that workers have."""
        for name, text, value in (
            ("queue_depth", "Jobs that are due and wait for a worker.", waiting),
            ("queue_active", "Jobs that workers are busy with.", active),
        ):
            Gauge(f"visionrl_operator_{name}", text, registry=self.registry).set_function(value)

    def watch_phases(self, phases: Callable[[], Iterable[str]]) -> None:
        """Show the jobs by phase, counted when asked."""
        self.registry.register(_Phases(phases))

    def count_missed(self, kind: str, count: int) -> None:
        """Objects of a kind that a watch missed."""
        self.missed_changes.labels(kind).inc(count)

    def count_request(self, verb: str, kind: str, code: int) -> None:
        self.api_requests.labels(verb, kind, str(code)).inc()
        if verb in WRITES and kind != "Lease":
            self.api_writes.labels(kind).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(f"visionrl_operator_{name}", text, labels, buckets=SECONDS, registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"visionrl_operator_{name}", text, labels, registry=self.registry)


class _Phases(Collector):
    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("visionrl_operator_jobs", "Jobs by phase.", labels=["phase"])
        for phase, count in Tally(self._phases()).items():
            family.add_metric([phase], count)
        yield family
