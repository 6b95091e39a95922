"""What a running server tells of itself: metrics, lines of the log, and traces."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import COMMON
from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess, wait_until
from tests.support.trace_collector import TraceCollector, collect_traces


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceCollector]:
    with collect_traces() as running:
        yield running


@pytest.fixture(scope="module")
def observed(collector: TraceCollector) -> Iterator[ServerProcess]:
    running = ServerProcess(
        *(*COMMON, "--metrics-compat", "vllm", "--log-format", "json", "--log-level", "debug"),
        *("--otlp-endpoint", collector.url),
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100"},
    )
    yield running
    assert running.stop() == 0


def vllm(server: ServerProcess, name: str) -> float:
    return server.metric(f"vllm:{name}")


def test_a_scrape_has_the_same_figures_under_both_names(observed: ServerProcess) -> None:
    before = vllm(observed, "generation_tokens_total")
    observed.client().chat.completions.create(
        model="tiny",
        messages=question("What is this?", draw_page(200, 200)),
        max_tokens=5,
        extra_body={"ignore_eos": True},
    )
    wait_until(lambda: vllm(observed, "generation_tokens_total") == before + 5, 20, "the engine's report")
    wait_until(lambda: vllm(observed, "num_requests_running") == 0, 20, "the engine's report")
    for name in (
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds_count",
        "e2e_request_latency_seconds_sum",
        "num_requests_waiting",
    ):
        assert vllm(observed, name) == observed.metric(f"minicpmv_{name}")
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 1.0' in (
        observed.get("/metrics").text
    )
    assert observed.metric("minicpmv_image_decode_seconds_count") == 1


def test_routers_find_their_gauges_on_the_small_page(observed: ServerProcess) -> None:
    page = observed.get("/metrics/routing").text
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0' in page
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0' in page
    assert "minicpmv_cache_config_info{" in page
    assert len(page) < 3000


def test_every_line_is_an_object_and_every_request_has_one(observed: ServerProcess) -> None:
    answer = observed.client().chat.completions.with_raw_response.create(
        model="tiny",
        messages=question("A private question?", draw_page(200, 220)),
        max_tokens=3,
        extra_headers={"x-request-id": "mine"},
    )
    assert answer.status_code == 200

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in observed.output().splitlines()]

    def access() -> list[dict[str, Any]]:
        return [line for line in lines() if line["logger"] == "server.access" and line["request_id"] == "mine"]

    wait_until(lambda: bool(access()), 20, "the line")
    (line,) = access()
    expected = {"level": "info", "status": 200, "model": "tiny", "num_images": 1, "outcome": "completed"}
    assert line.items() >= expected.items()
    assert line["completion_tokens"] >= 1
    assert line["total_s"] >= line["prefill_s"] > 0
    assert line["decode_images_s"] > 0
    assert "private" not in observed.output()
    # Both processes write them, also at their start.
    assert any("listens on" in line["message"] for line in lines())
    assert {line["level"] for line in lines()} <= {"debug", "info"}


def test_a_picture_question_as_a_trace(observed: ServerProcess, collector: TraceCollector) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    observed.client().chat.completions.create(
        model="tiny",
        messages=question("And this?", draw_page(200, 240)),
        max_tokens=3,
        extra_headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
    )

    def spans() -> dict[str, Any]:
        return {span.name: span for span in collector.spans if span.trace_id.hex() == trace_id}

    wait_until(lambda: "chat tiny" in spans(), 30, "the export")
    wait_until(lambda: len(spans()) == 6, 30, "the export of all")
    found = spans()
    root = found.pop("chat tiny")
    assert collector.services == {"minicpmv"}
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    order = ["decode_images", "queue", "encode_images", "prefill", "decode"]
    assert found.keys() == set(order)
    assert {span.parent_span_id for span in found.values()} == {root.span_id}
    for span in found.values():
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    ends = [found[name].end_time_unix_nano for name in order]
    assert ends == sorted(ends)
    assert found["prefill"].start_time_unix_nano <= found["encode_images"].start_time_unix_nano
