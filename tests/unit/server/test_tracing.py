"""The spans of a request: which they are, how they hang together, what they say, and that they are off by default."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from PIL import Image

from server.errors import EngineUnavailable
from server.request import Timings
from server.settings import InvalidSettings, Settings
from server.tracing import Tracing, start_tracing
from tests.support.api_server import CHAT, ApiServer, serve
from tests.support.fake_engine import MODEL, say, script
from tests.support.pictures import question
from tests.support.server_process import wait_until

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}


class Traced:
    """A server whose spans a test can read."""

    def __init__(self, server: ApiServer, exporter: InMemorySpanExporter) -> None:
        self.server = server
        self._exporter = exporter

    def ask(self, headers: dict[str, str] | None = None, **options: object) -> None:
        body = {"model": MODEL.model_id, "messages": question("a private question", Image.new("RGB", (9, 9)))}
        self.server.http.post(CHAT, json=body | options, headers=headers)

    def spans(self) -> dict[str, ReadableSpan]:
        """Those of the one request so far, by name; the request's own is made first and ends last."""
        wait_until(lambda: any(span.kind is SpanKind.SERVER for span in self._exporter.get_finished_spans()), 10, "it")
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def num_spans(self) -> int:
        return len(self._exporter.get_finished_spans())


@pytest.fixture(params=[False])
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, with_content=request.param)
    with serve(tracing=tracing, trace_content=request.param) as server:
        yield Traced(server, exporter)
    tracing.close()


def test_stages_hang_under_the_request(traced: Traced) -> None:
    now = time.monotonic()
    timings = Timings(1.0, 2.0, 3.0, arrived_s=now, encode=(now + 1.5, now + 2.5))
    *first, last = say("Hel", "lo.", cached_tokens=4)
    traced.server.engine.answer = script(*first, replace(last, timings=timings))
    traced.ask()
    spans = traced.spans()
    root = spans.pop(f"chat {MODEL.model_id}")
    assert spans.keys() == {"queue", "prefill", "encode_images", "decode"}
    assert root.context is not None
    assert root.parent is None
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert span.attributes == {"minicpmv.choice": 0}
    durations = {name: (span.end_time or 0) - (span.start_time or 0) for name, span in spans.items()}
    assert {name: round(ns / 1e9, 3) for name, ns in durations.items()} == {
        "queue": 1.0,
        "prefill": 2.0,
        "encode_images": 1.0,
        "decode": 3.0,
    }
    assert spans["queue"].end_time == spans["prefill"].start_time
    # The engine's clock has been placed on the calendar.
    assert abs((spans["queue"].start_time or 0) / 1e9 - time.time()) < 60


def test_attributes_follow_the_conventions(traced: Traced) -> None:
    traced.ask(max_tokens=5, temperature=0.5, seed=7, stream=True)
    root = traced.spans()[f"chat {MODEL.model_id}"]
    assert root.kind is SpanKind.SERVER
    assert root.status.status_code is StatusCode.UNSET
    assert root.attributes is not None
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "minicpmv",
        "gen_ai.request.model": MODEL.model_id,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 71,
        "gen_ai.usage.output_tokens": 2,
        "minicpmv.num_images": 1,
        "minicpmv.outcome": "completed",
    }
    assert dict(root.attributes).items() >= expected.items()
    assert "private" not in str(root.attributes)
    assert "Hello" not in str(root.attributes)


def test_the_callers_trace_goes_on(traced: Traced) -> None:
    traced.ask(SAMPLED)
    for span in traced.spans().values():
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE_ID
    root = traced.spans()[f"chat {MODEL.model_id}"]
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT_ID


def test_the_caller_may_decide_against_it(traced: Traced) -> None:
    traced.ask(NOT_SAMPLED)
    assert traced.num_spans() == 0


@pytest.mark.parametrize("header", ["nonsense", "00-" + "0" * 32 + f"-{PARENT_ID}-01"])
def test_a_header_that_is_none_begins_a_trace(traced: Traced, header: str) -> None:
    traced.ask({"traceparent": header})
    assert traced.spans()[f"chat {MODEL.model_id}"].parent is None


def test_failures(traced: Traced) -> None:
    traced.server.engine.answer = script(*say("Hel", finish_reason=None), EngineUnavailable("gone"))
    traced.ask(stream=True)
    root = traced.spans()[f"chat {MODEL.model_id}"]
    assert root.status.status_code is StatusCode.ERROR
    assert (root.attributes or {})["error.type"] == "engine_unavailable"


def test_refused_requests_have_one_span(traced: Traced) -> None:
    traced.ask(temperature=9)
    spans = traced.spans()
    assert spans.keys() == {f"POST {CHAT}"}
    attributes = spans[f"POST {CHAT}"].attributes or {}
    assert (attributes["http.response.status_code"], attributes["error.type"]) == (400, "invalid_value")
    assert spans[f"POST {CHAT}"].status.status_code is StatusCode.UNSET  # the client's mistake


def test_probes_and_paths_that_are_none_of_ours(traced: Traced) -> None:
    for path in ("/health", "/metrics", "/secret/path"):
        traced.server.http.get(path)
    assert traced.spans().keys() == {"GET"}


@pytest.mark.parametrize("traced", [True], indirect=True)
def test_content_when_asked_for(traced: Traced) -> None:
    traced.ask()
    attributes = traced.spans()[f"chat {MODEL.model_id}"].attributes or {}
    assert attributes["gen_ai.input.messages"] == (
        '[{"role": "user", "parts": [{"type": "text", "content": "[picture 9x9]\\na private question"}]}]'
    )
    assert attributes["gen_ai.output.messages"] == (
        '[{"role": "assistant", "parts": [{"type": "text", "content": "Hello."}]}]'
    )


@pytest.fixture
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_otel_variables")
class TestStart:
    def test_off_unless_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert start_tracing(Settings()) is None
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
        assert start_tracing(Settings()) is None

    @pytest.mark.parametrize("by_environment", [False, True])
    def test_on(self, monkeypatch: pytest.MonkeyPatch, by_environment: bool) -> None:
        if by_environment:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
            tracing = start_tracing(Settings())
        else:
            tracing = start_tracing(Settings(otlp_endpoint="http://127.0.0.1:9"))
        assert tracing is not None
        tracing.close()

    def test_without_the_packages(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        with pytest.raises(InvalidSettings, match=r"minicpmv\[otel\]"):
            start_tracing(Settings(otlp_endpoint="http://127.0.0.1:9"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        assert start_tracing(Settings()) is None
        assert "minicpmv[otel]" in caplog.text
