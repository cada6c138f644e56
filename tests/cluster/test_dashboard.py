"""The Grafana dashboard with data in it: its queries, asked of a real Prometheus that scrapes an operator's and a
trainer's metrics. Grafana itself is no package of Debian's, and is not tried."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.kube.host import require_packages, wait_until
from tests.support.ports import free_port
from tests.support.serving import serving
from visionrl.status import EvaluationProgress, Progress, Score, TrainerReport
from visionrl_operator.metrics import Metrics
from visionrl_trainer.report.prometheus import metrics_text

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
PANELS = json.loads((ROOT / "charts" / "visionrl" / "files" / "dashboard.json").read_text())["panels"]
QUERIES = {(panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", [])}
OF_CADVISOR = "container_"
"""Metrics that the kubelet has."""
CONFIGURATION = """
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: operator
    metrics_path: /operator
    static_configs: [{targets: ["127.0.0.1:PORT"], labels: {namespace: visionrl}}]
  - job_name: trainer
    metrics_path: /trainer
    static_configs:
      - {targets: ["127.0.0.1:PORT"], labels: {namespace: team, visionrl_dev_job: demo}}
"""


@contextlib.contextmanager
def metrics() -> Iterator[int]:
    """A port where an operator that is busy and a trainer answer; between two scrapes something happens."""
    operator = Metrics()
    operator.leader.set(1)
    operator.watch_queue(lambda: 2, lambda: 1)
    operator.watch_phases(lambda: ["Running", "Pending", "Failed"])
    score = Score(mean=4.0, low=3.5, high=4.5, episodes=8)
    progress = Progress(iteration=3, total=10, reward=2.5, evaluation=EvaluationProgress(latest=score))
    numbers = ("episodes_per_minute", "mismatch_kl", "entropy", "invalid_rate", "trainer_idle", "server_idle")
    report = TrainerReport(phase="Training", progress=progress.model_copy(update=dict.fromkeys(numbers, 0.5)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            operator.reconcile_seconds.labels("ok").observe(0.01)
            operator.children_seconds.observe(0.2)
            operator.count_request("post", "Pod", 500)
            operator.probe_requests.labels("ok").inc()
            operator.count_missed("Pod", 1)
            text = operator.text() if self.path == "/operator" else metrics_text(report).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield server.server_port


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Prometheus that has scraped both for a while."""
    require_packages({"prometheus": "prometheus"})
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    with metrics() as scraped:
        (folder / "prometheus.yml").write_text(CONFIGURATION.replace("PORT", str(scraped)))
        words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        words += [f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log, cwd=folder)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
                wait_until(lambda: len(answer(client, "visionrl_operator_leader[1h]")) == 1, "the first scrape", 120)
                yield client
        finally:
            process.terminate()
            process.wait()


def answer(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """The series that a query finds; none while nobody answers."""
    try:
        found = client.get("/api/v1/query", params={"query": query})
    except httpx.HTTPError:
        return []
    assert found.status_code in (200, 503), found.text
    return list(found.json()["data"]["result"]) if found.status_code == 200 else []


@pytest.mark.parametrize(("panel", "query"), sorted(QUERIES), ids=lambda text: text[:40])
def test_a_panels_query_finds_numbers(prometheus: httpx.Client, panel: str, query: str) -> None:
    if query.count(OF_CADVISOR):
        pytest.skip("the kubelet's")
    asked = query.replace("$namespace", ".*").replace("$__rate_interval", "1m")

    def found() -> bool:
        values = [float(series["value"][1]) for series in answer(prometheus, asked)]
        return bool(values) and all(value == value for value in values)

    wait_until(found, f"{panel}: {asked}", 120)
