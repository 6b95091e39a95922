"""What the page of metrics says after what happened."""

from prometheus_client.parser import text_string_to_metric_families

from server.engine.channel import Ready, Stats
from server.metrics import Metrics
from server.request import Timings, Usage

STATS = Stats(
    num_running=3,
    num_waiting=2,
    num_kv_blocks_used=25,
    num_kv_blocks=100,
    num_crop_slots_used=4,
    preemptions=1,
    steps=5,
    prompt_tokens=70,
    generated_tokens=8,
    prefix_query_tokens=70,
    prefix_hit_tokens=32,
    drafted_tokens=9,
    accepted_tokens=5,
    crops_encoded=6,
    crop_queries=10,
    crop_hits=4,
    host_crop_queries=6,
    host_crop_hits=5,
    crop_evictions=3,
    host_crop_evictions=2,
    crop_bytes=700,
    host_crop_bytes=500,
    encode_s=1.5,
    memory_bytes=1000,
    peak_memory_bytes=2000,
)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Value by name, without the prefix, and labels."""
    return {
        (sample.name.removeprefix("minicpmv_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_engine_snapshots_set_gauges_and_add_to_counters() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.on_stats(STATS)
    metrics.on_stats(STATS)
    gauges = {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_ratio": 0.25,
        "engine_memory_bytes": 1000,
        "memory_peak_bytes": 2000,
    }
    counters = {
        "num_preemptions_total": 2,
        "engine_steps_total": 10,
        "prompt_tokens_total": 140,
        "generation_tokens_total": 16,
        "prefix_cache_queries_tokens_total": 140,
        "prefix_cache_hits_tokens_total": 64,
        "speculation_drafted_tokens_total": 18,
        "speculation_accepted_tokens_total": 10,
        "image_encode_seconds_total": 3,
        "image_crops_encoded_total": 12,
    }
    assert {name: value(metrics, name) for name in gauges | counters} == gauges | counters
    for tier, expected in (("device", (20, 8, 6, 700)), ("host", (12, 10, 4, 500))):
        names = ("queries_total", "hits_total", "evictions_total", "bytes")
        assert tuple(value(metrics, f"image_cache_{name}", tier=tier) for name in names) == expected


def test_restart_empties_the_engine() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.on_stats(STATS)
    metrics.on_restart()
    assert value(metrics, "engine_restarts_total") == 1
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio", "engine_memory_bytes"):
        assert value(metrics, name) == 0
    assert value(metrics, "image_cache_bytes", tier="host") == 0
    assert value(metrics, "generation_tokens_total") == 8


def test_ready_describes_the_cache_once() -> None:
    metrics = Metrics(version="1.2.3")
    for num_blocks in (10, 20):
        metrics.on_ready(
            Ready(
                device="cpu",
                dtype="fp32",
                weights="int8",
                kv="int8",
                weight_bytes=7,
                kv_bytes=9,
                memory_budget_bytes=8 * 2**30,
                memory=[("workspace", 300 * 2**20), ("graphs", 0)],
                num_kv_blocks=num_blocks,
                kv_block_tokens=16,
                num_crop_slots=4,
                num_host_slots=9,
                load_s=1.0,
                kernels=None,
            )
        )
    described = [labels for name, labels in samples(metrics) if name == "cache_config_info"]
    assert described == [frozenset({("block_size", "16"), ("num_gpu_blocks", "20")})]
    assert value(metrics, "engine_weight_bytes") == 7
    assert value(metrics, "engine_kv_cache_bytes") == 9
    assert value(metrics, "memory_budget_bytes") == 8 * 2**30
    assert [value(metrics, "image_cache_capacity_crops", tier=tier) for tier in ("device", "host")] == [4, 9]


def test_engine_without_blocks_uses_none() -> None:
    metrics = Metrics(version="1.2.3")
    empty = dict.fromkeys(Stats.__struct_fields__, 0)
    metrics.on_stats(Stats(**empty))
    assert value(metrics, "kv_cache_usage_ratio") == 0


def test_pictures() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.on_image(decode_s=0.02, slice_s=0.2, num_crops=10)
    assert value(metrics, "image_decode_seconds_sum") == 0.02
    assert value(metrics, "image_slice_seconds_sum") == 0.2
    assert value(metrics, "image_crops_bucket", le="9.0") == 0
    assert value(metrics, "image_crops_bucket", le="10.0") == 1
    metrics.on_image(decode_s=None, slice_s=None, num_crops=10)
    metrics.on_image_again(decode_s=0.03, slice_s=0.2)
    names = ("file_queries_total", "file_hits_total", "file_redecodes_total", "decode_seconds_count", "crops_count")
    assert [value(metrics, f"image_{name}") for name in names] == [2, 1, 1, 2, 2]


def test_remote_pictures() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.on_image_fetch(0.3)
    metrics.on_image_fetch_failed("timeout")
    metrics.on_image_fetch_failed("timeout")
    assert value(metrics, "image_fetch_seconds_sum") == 0.3
    assert value(metrics, "image_fetch_failures_total", reason="timeout") == 2


def test_labels_are_never_a_clients_words() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.on_http(route="/v1/models", method="GET", status=200)
    metrics.on_http(route=None, method="BREW", status=404)
    assert value(metrics, "http_requests_total", route="/v1/models", method="GET", code="200") == 1
    assert value(metrics, "http_requests_total", route="other", method="other", code="404") == 1


def test_request_and_its_choices() -> None:
    metrics = Metrics(version="1.2.3")
    usage = Usage(prompt_tokens=700, image_tokens=640, num_images=1, num_crops=10, image_pixels=1)
    metrics.on_first_token(0.3)
    metrics.on_next_token(0.004)
    metrics.on_choice("stop", 12, Timings(queue_s=1, prefill_s=2, decode_s=3))
    metrics.on_choice("length", 30, None)
    metrics.on_request("completed", usage, 6.0)
    metrics.on_request("aborted", usage, 60.0)
    expected = {
        "time_to_first_token_seconds_sum": 0.3,
        "inter_token_latency_seconds_sum": 0.004,
        "request_queue_time_seconds_sum": 1,
        "request_prefill_time_seconds_sum": 2,
        "request_decode_time_seconds_sum": 3,
        "request_generation_tokens_sum": 42,
        "request_prompt_tokens_count": 2,
        "request_image_crops_sum": 20,
        # A request that was given up says nothing about how long answers take.
        "e2e_request_latency_seconds_sum": 6,
    }
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.005") == 1
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.0025") == 0
    assert value(metrics, "choices_finished_total", finish_reason="stop") == 1
    assert value(metrics, "requests_finished_total", outcome="aborted") == 1


def test_series_that_alerts_compare_exist_from_the_start() -> None:
    metrics = Metrics(version="1.2.3")
    assert value(metrics, "requests_rejected_total", reason="too_many_requests") == 0
    assert value(metrics, "requests_finished_total", outcome="failed") == 0
    assert value(metrics, "build_info", version="1.2.3") == 1
    metrics.on_rejected("too_many_requests")
    metrics.on_stream_error("engine_unavailable")
    assert value(metrics, "requests_rejected_total", reason="too_many_requests") == 1
    assert value(metrics, "stream_errors_total", reason="engine_unavailable") == 1


def test_no_sample_says_when_it_was_born() -> None:
    assert not [name for name, _ in samples(Metrics(version="1.2.3")) if name.endswith("_created")]


def test_the_page_for_routers_has_their_gauges_and_nothing_else() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.on_stats(STATS)
    families = list(text_string_to_metric_families(metrics.render_routing().decode()))
    assert {sample.name: sample.value for family in families for sample in family.samples} == {
        "minicpmv_num_requests_running": 3,
        "minicpmv_num_requests_waiting": 2,
        "minicpmv_kv_cache_usage_ratio": 0.25,
    }


def test_admission_is_asked_when_the_page_is_rendered() -> None:
    metrics = Metrics(version="1.2.3")
    held = [5]
    metrics.watch_admission(num_held=lambda: held[0], is_ready=lambda: held[0] < 6)
    assert (value(metrics, "requests_in_progress"), value(metrics, "ready")) == (5, 1)
    held[0] = 6
    assert (value(metrics, "requests_in_progress"), value(metrics, "ready")) == (6, 0)
