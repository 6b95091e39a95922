"""What a running server tells of itself: metrics."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import COMMON
from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess, wait_until


@pytest.fixture(scope="module")
def observed() -> Iterator[ServerProcess]:
    running = ServerProcess(*COMMON, "--metrics-compat", "vllm")
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
