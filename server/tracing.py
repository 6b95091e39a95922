"""OpenTelemetry traces: the spans of each request, made when it has ended, from what was noted of it.

So nothing is measured for them alone, and where they are off they cost nothing. The packages are an extra, and are
imported only where traces are wanted. Names of spans and attributes follow OpenTelemetry's conventions for HTTP servers
and for generative AI; what these do not know begins with `minicpmv.`.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.notes import Content, Generation, RequestNotes, Stage
from server.settings import InvalidSettings, Settings, environment_wants_traces
from server.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_INSTALL = "traces need more packages: pip install minicpmv[otel]"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the outermost layer knows of a request that has ended."""

    request_id: str
    method: str
    route: str | None
    """The template; None where none matched."""
    status: int
    began_s: float
    """`time.monotonic`, like the end."""
    ended_s: float
    headers: Mapping[str, str]
    """By lower-case names. `traceparent` and `tracestate` say which trace the request belongs to."""


class Tracing:
    """For one event loop's thread. Whatever is wrong with the collector, requests do not see it."""

    def __init__(self, provider: "TracerProvider", *, with_content: bool = False) -> None:
        """
        Args:
            provider: samples the spans and exports them, in a thread of its own.
            with_content: whether attributes have messages and answers.
        """
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("minicpmv", VERSION)
        self._with_content = with_content

    def record(self, exchange: Exchange, notes: RequestNotes) -> dict[str, str]:
        """Makes the spans of a request. Returns `trace_id` and `span_id` for its line in the log."""
        carrier = {name: exchange.headers[name] for name in ("traceparent", "tracestate") if name in exchange.headers}
        # Epoch of the monotonic clock, now: both may drift apart while a server runs.
        epoch_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            _name(exchange, notes),
            context=self._propagator.extract(carrier),
            kind=self._api.SpanKind.SERVER,
            attributes=_exchange_attributes(exchange, notes.fields) | _generation_attributes(notes),
            start_time=_ns(exchange.began_s, epoch_ns),
        )
        if span.is_recording():
            if self._with_content and notes.content is not None:
                span.set_attributes(_content_attributes(notes.content))
            if exchange.status >= 500 or notes.fields.get("outcome") == "failed":
                span.set_status(self._api.StatusCode.ERROR)
            for stage in notes.stages:
                self._child(span, stage, epoch_ns)
        span.end(_ns(exchange.ended_s, epoch_ns))
        context = span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def close(self) -> None:
        """Exports what is left. Takes as long as the collector does, up to the exporter's time limit."""
        self._provider.shutdown()

    def _child(self, parent: "Span", stage: Stage, epoch_ns: int) -> None:
        child = self._tracer.start_span(
            stage.name,
            context=self._api.set_span_in_context(parent),
            attributes={f"minicpmv.{name}": value for name, value in stage.fields.items()},
            start_time=_ns(stage.began_s, epoch_ns),
        )
        child.end(_ns(stage.ended_s, epoch_ns))


def start_tracing(settings: Settings) -> Tracing | None:
    """Traces as the settings or the `OTEL_*` variables want them; None where neither does.

    Raises:
        InvalidSettings: a setting asks for traces, and the packages are not installed.
    """
    if settings.otlp_endpoint is None and not environment_wants_traces():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as err:
        if settings.otlp_endpoint is not None:
            raise InvalidSettings(f"otlp_endpoint: {_INSTALL}") from err
        # The variables may be meant for everything that runs here.
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but %s", _INSTALL)
        return None
    resource = Resource({SERVICE_NAME: "minicpmv", SERVICE_VERSION: VERSION})
    of_environment = Resource.create()
    if not str(of_environment.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = Resource({SERVICE_VERSION: VERSION})
    endpoint = settings.otlp_endpoint
    url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
    provider = TracerProvider(resource=of_environment.merge(resource), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    return Tracing(provider, with_content=settings.trace_content)


def _ns(monotonic_s: float, epoch_ns: int) -> int:
    return epoch_ns + round(monotonic_s * 1e9)


def _name(exchange: Exchange, notes: RequestNotes) -> str:
    if notes.generation is not None:
        return f"{notes.generation.operation} {notes.fields['model']}"
    return f"{exchange.method} {exchange.route}" if exchange.route else exchange.method


def _exchange_attributes(exchange: Exchange, fields: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "minicpmv.request_id": exchange.request_id,
    }
    if exchange.route is not None:
        attributes["http.route"] = exchange.route
    error = fields.get("error_code") or (str(exchange.status) if exchange.status >= 500 else None)
    if error is not None:
        attributes["error.type"] = error
    return attributes


def _generation_attributes(notes: RequestNotes) -> dict[str, Any]:
    if notes.generation is None:
        return {}
    fields = notes.fields
    reasons = fields.get("finish_reason")
    attributes = _request_attributes(notes.generation) | {
        "gen_ai.request.model": fields["model"],
        "gen_ai.request.stream": fields.get("stream"),
        "gen_ai.response.model": fields["model"],
        "gen_ai.response.id": fields.get("completion_id"),
        "gen_ai.response.finish_reasons": reasons.split(",") if reasons else None,
        "gen_ai.response.time_to_first_chunk": fields.get("first_token_s"),
        "gen_ai.usage.input_tokens": fields.get("prompt_tokens"),
        "gen_ai.usage.output_tokens": fields.get("completion_tokens"),
        "gen_ai.usage.cache_read.input_tokens": fields.get("cached_tokens"),
        "minicpmv.num_images": fields.get("num_images"),
        "minicpmv.num_crops": fields.get("num_crops"),
        "minicpmv.outcome": fields.get("outcome"),
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _request_attributes(generation: Generation) -> dict[str, Any]:
    sampling = generation.sampling
    return {
        "gen_ai.operation.name": generation.operation,
        "gen_ai.provider.name": "minicpmv",
        "gen_ai.request.max_tokens": generation.max_tokens,
        "gen_ai.request.choice.count": generation.num_choices if generation.num_choices > 1 else None,
        "gen_ai.request.seed": generation.seed,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
    }


def _content_attributes(content: Content) -> dict[str, str]:
    def told(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    messages = [told(message["role"], message["content"]) for message in content.messages]
    answers = [told("assistant", answer) for answer in content.answers]
    return {
        "gen_ai.input.messages": json.dumps(messages, ensure_ascii=False),
        "gen_ai.output.messages": json.dumps(answers, ensure_ascii=False),
    }
