"""Spans of a rollout, from the trainer's client over the task app's server to the request that the model gets."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.jobs import job
from tests.support.ports import free_port
from tests.support.taskapp import KEY, FakeOpenAI, fake_openai
from visionrl import tracing
from visionrl.rollout import RolloutRequest
from visionrl_taskapp.server.app import Settings, TaskApp, create_app
from visionrl_trainer.rollout import client


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_tracer", None)  # put back at the end
    tracing.trace_with(SimpleSpanProcessor(exporter), "demo", "trainer")
    return exporter


@pytest.fixture(scope="module")
def openai() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


@contextlib.contextmanager
def taskapp(job_server: str | None) -> Iterator[str]:
    """The task app's server in a thread of its own; its URL."""
    port = free_port()
    app = TaskApp(Settings(keys=(KEY,), job_server=job_server, job_key=KEY))
    server = uvicorn.Server(uvicorn.Config(create_app(app), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


async def play(taskapp_url: str, inference_url: str) -> None:
    """An iteration of one episode of two turns."""
    config = {"max_llm_calls": 2, "use_vision": True, "model": "tiny", "inference_url": f"{inference_url}/v1"}
    environment = {"seed": 2_000_001, "config": {"image_size": 72}}
    request = {"run_id": "demo/1/0", "mode": "rl", "env": environment, "policy": {"config": config}}
    async with client.TaskApp(taskapp_url, KEY, 1) as trainers:
        with tracing.span("iteration", iteration=1):
            await trainers.rollout(RolloutRequest.model_validate(request), patience=60)


def below(spans: InMemorySpanExporter, parent: ReadableSpan | None) -> list[ReadableSpan]:
    """The spans that began below this one."""
    found = spans.get_finished_spans()
    if parent is None:
        return [span for span in found if span.parent is None]
    assert parent.context is not None
    return [span for span in found if span.parent and span.parent.span_id == parent.context.span_id]


async def test_a_rollout_is_one_trace_from_the_iteration_to_the_models_answers(
    spans: InMemorySpanExporter, openai: FakeOpenAI
) -> None:
    openai.headers.clear()
    with taskapp(openai.url) as url:
        await play(url, openai.url)
    [iteration] = below(spans, None)
    [asked] = below(spans, iteration)
    [served] = below(spans, asked)
    assert (iteration.name, asked.name, served.name) == ("iteration", "rollout", "rollout")
    assert served.parent is not None
    assert served.parent.is_remote, "by the request's header alone"
    for span in (asked, served):
        assert span.attributes == {"visionrl.run_id": "demo/1/0", "visionrl.seed": 2_000_001}
    parts = below(spans, served)
    assert [span.name for span in parts if span.name != "environment"] == ["completion", "completion"]
    assert len([span for span in parts if span.name == "environment"]) == 3  # reset, and a step for each turn
    # vLLM continues what the header names (--otlp-traces-endpoint).
    answered = [span.context for span in parts if span.name == "completion"]
    assert [each["traceparent"].rpartition("-")[0] for each in openai.headers] == [
        f"00-{context.trace_id:032x}-{context.span_id:016x}" for context in answered if context
    ]
    assert KEY not in "".join(span.to_json() for span in spans.get_finished_spans())


async def test_servers_of_others_are_not_told_of_spans(spans: InMemorySpanExporter, openai: FakeOpenAI) -> None:
    openai.headers.clear()
    with taskapp(None) as url:
        await play(url, openai.url)
    assert [name for each in openai.headers for name in each if "trace" in name] == []
    assert len([span for span in spans.get_finished_spans() if span.name == "completion"]) == 2


async def test_nothing_is_traced_unless_the_job_says_so(openai: FakeOpenAI) -> None:
    openai.headers.clear()
    tracing.start(job({}), "trainer")
    assert tracing._tracer is None
    with taskapp(openai.url) as url:
        await play(url, openai.url)
    assert [name for each in openai.headers for name in each if "trace" in name] == []


def test_without_the_packages_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with caplog.at_level(logging.WARNING):
        tracing.start(job({"tracking.otlp": {"endpoint": "http://127.0.0.1:1"}}), "trainer")
    assert 'tracking.otlp is not used: no package opentelemetry.sdk.trace.export; pip install "visionrl' in caplog.text
    assert tracing._tracer is None


def test_a_process_ends_though_its_collector_is_away() -> None:
    code = (
        "from tests.support.jobs import job; from visionrl import tracing; "
        "tracing.start(job({'tracking.otlp': {'endpoint': 'http://127.0.0.1:1'}}), 'trainer')\n"
        "with tracing.span('iteration'): pass"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
