"""OpenTelemetry spans of a run: the trainer's iterations and phases, each rollout, and what became of it elsewhere.

Off unless the job names a collector (``tracking.otlp``). The W3C header ``traceparent`` carries a span from one
component to the next. What else there is to choose is OpenTelemetry's own variables' (``OTEL_TRACES_SAMPLER``,
``OTEL_EXPORTER_OTLP_HEADERS``, …). Without the extra ``tracing`` a warning says that nothing is traced.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from visionrl.job import Component, Job, Otlp

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

_tracer: Tracer | None = None


def start(job: Job, component: Component) -> None:
    """Send this process's spans to the job's collector, in batches, from a thread of their own."""
    otlp = job.spec.tracking.otlp
    if otlp is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        logger.warning('tracking.otlp is not used: no package %s; pip install "visionrl[tracing]"', error.name)
        return
    trace_with(BatchSpanProcessor(OTLPSpanExporter(endpoint=traces_url(otlp))), job.name, component)


def trace_with(processor: SpanProcessor, job: str, component: Component) -> None:
    """Give this process's spans to a processor. At the end of the process they are flushed."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _tracer
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service_name(component), "visionrl.job": job}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("visionrl")


@contextlib.contextmanager
def span(
    name: str,
    kind: Literal["internal", "client", "server"] = "internal",
    came_with: Mapping[str, str] | None = None,
    **attributes: str | int,
) -> Iterator[None]:
    """A span around the block, below the current one, or below the sender's of the headers that a request came with."""
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = None if came_with is None else TraceContextTextMapPropagator().extract(came_with)
    named = {f"visionrl.{key}": value for key, value in attributes.items()}
    with _tracer.start_as_current_span(name, parent, SpanKind[kind.upper()], named):
        yield


def headers() -> dict[str, str]:
    """Those of a request whose receiver continues the current span; none where nothing is traced."""
    carried: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carried)
    return carried


def traces_url(otlp: Otlp) -> str:
    return f"{otlp.endpoint.rstrip('/')}/v1/traces"


def service_name(component: Component) -> str:
    return f"visionrl-{component.lower()}"
