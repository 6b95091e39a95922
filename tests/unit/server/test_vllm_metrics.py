"""Under vLLM's names stands what stands under ours."""

from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics
from server.request import Timings
from server.vllm_metrics import add_vllm_names
from tests.unit.server.test_metrics import STATS

LABELS = {"model_name": "tiny", "engine": "0"}


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name.startswith("vllm:")
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics.render())[f"vllm:{name}", frozenset((LABELS | labels).items())]


def make_metrics() -> Metrics:
    metrics = Metrics(version="1")
    add_vllm_names(metrics, "tiny")
    return metrics


def test_off_by_default() -> None:
    assert samples(Metrics(version="1").render()) == {}


def test_gauges_and_counters() -> None:
    metrics = make_metrics()
    metrics.on_stats(STATS)
    expected = {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_perc": 0.25,
        "gpu_cache_usage_perc": 0.25,
        "num_preemptions_total": 1,
        "prompt_tokens_total": 70,
        "generation_tokens_total": 8,
        "prefix_cache_queries_total": 70,
        "prefix_cache_hits_total": 32,
        "gpu_prefix_cache_hits_total": 32,
    }
    assert {name: value(metrics, name) for name in expected} == expected


def test_pictures_are_its_items() -> None:
    metrics = make_metrics()
    for decode_s in (0.02, None):
        metrics.on_image(num_crops=10, decode_s=decode_s, slice_s=decode_s)
    assert value(metrics, "mm_cache_queries_total") == 2
    assert value(metrics, "mm_cache_hits_total") == 1


def test_histograms_and_renamed_labels() -> None:
    metrics = make_metrics()
    metrics.on_first_token(0.3)
    metrics.on_choice("stop", 12, Timings(queue_s=1, prefill_s=2, decode_s=3))
    assert value(metrics, "request_success_total", finished_reason="stop") == 1
    assert value(metrics, "time_to_first_token_seconds_bucket", le="0.25") == 0
    assert value(metrics, "time_to_first_token_seconds_bucket", le="0.5") == 1
    assert value(metrics, "request_prefill_time_seconds_sum") == 2
    assert value(metrics, "request_generation_tokens_count") == 1


def test_the_page_for_routers_has_the_gauges() -> None:
    metrics = make_metrics()
    metrics.on_stats(STATS)
    assert {name for name, _ in samples(metrics.render_routing())} == {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
    }
