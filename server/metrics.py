"""Every metric, named once. Prometheus names `minicpmv_*`, in seconds, bytes and tokens.

No label ever takes a value from a client: routes are templates, methods and reasons come from closed sets, names of
keys from the operator.
Implements `server.engine.client.EngineObserver`; everything here is called on the event loop's thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from server.engine.channel import Ready, Stats
from server.request import Timings, Usage

# The buckets that operators of other inference servers have on their dashboards; inter-token latency
# begins lower, since a model of this size decodes faster than 10 ms a token.
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
_INTER_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
_IMAGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_CROPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 40, 80)

_TIERS = ("device", "host")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Described:
    """One line of docs/metrics.md."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, *, version: str) -> None:
        # A second sample a series that says when it was born; no dashboard reads it and the page grows by half.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the package types only part of itself
        self.registry = CollectorRegistry()
        self.routing_registry = CollectorRegistry()
        """The few of them that routers choose a replica by."""
        self.catalogue: list[Described] = []
        ProcessCollector(registry=self.registry)
        self._engine_metrics()
        self._request_metrics()
        self._image_metrics()
        self._gauge("build_info", "Always 1; the version is the label.", ["version"]).labels(version).set(1)

    def render(self) -> bytes:
        """The page for Prometheus. Takes milliseconds: `server.api.health` calls it off the event loop."""
        return generate_latest(self.registry)

    def render_routing(self) -> bytes:
        """The page for routers, in a tenth of a millisecond."""
        return generate_latest(self.routing_registry)

    # From the engine (EngineObserver)

    def on_ready(self, ready: Ready) -> None:
        """The engine process has loaded the model."""
        self.cache_config.clear()
        self.cache_config.labels(str(ready.kv_block_tokens), str(ready.num_kv_blocks)).set(1)
        self.memory_budget_bytes.set(ready.memory_budget_bytes)
        self.engine_weight_bytes.set(ready.weight_bytes)
        self.engine_kv_bytes.set(ready.kv_bytes)
        for tier, num_slots in zip(_TIERS, (ready.num_crop_slots, ready.num_host_slots), strict=True):
            self.image_cache_capacity.labels(tier).set(num_slots)

    def on_stats(self, stats: Stats) -> None:
        """A snapshot of the engine and what was added since the last one."""
        self.engine_reports.inc()
        self.running.set(stats.num_running)
        self.waiting.set(stats.num_waiting)
        self.kv_usage.set(stats.num_kv_blocks_used / stats.num_kv_blocks if stats.num_kv_blocks else 0)
        self.preemptions.inc(stats.preemptions)
        self.engine_steps.inc(stats.steps)
        self.prompt_tokens.inc(stats.prompt_tokens)
        self.generation_tokens.inc(stats.generated_tokens)
        self.prefix_cache_queries.inc(stats.prefix_query_tokens)
        self.prefix_cache_hits.inc(stats.prefix_hit_tokens)
        self.drafted_tokens.inc(stats.drafted_tokens)
        self.accepted_tokens.inc(stats.accepted_tokens)
        self.image_encode_s.inc(stats.encode_s)
        self.crops_encoded.inc(stats.crops_encoded)
        for tier, queries, hits, evictions, num_bytes in (
            ("device", stats.crop_queries, stats.crop_hits, stats.crop_evictions, stats.crop_bytes),
            (
                *("host", stats.host_crop_queries, stats.host_crop_hits),
                *(stats.host_crop_evictions, stats.host_crop_bytes),
            ),
        ):
            self.image_cache_queries.labels(tier).inc(queries)
            self.image_cache_hits.labels(tier).inc(hits)
            self.image_cache_evictions.labels(tier).inc(evictions)
            self.image_cache_bytes.labels(tier).set(num_bytes)
        self.engine_memory_bytes.set(stats.memory_bytes)
        self.memory_peak_bytes.set(stats.peak_memory_bytes)

    def on_image(self, *, num_crops: int, decode_s: float | None, slice_s: float | None) -> None:
        """A request has this picture. It was decoded and cut, or, with None, need not be: the engine has seen it."""
        self.image_crops.observe(num_crops)
        self.image_file_queries.inc()
        if decode_s is None or slice_s is None:
            self.image_file_hits.inc()
        else:
            self.image_decode_s.observe(decode_s)
            self.image_slice_s.observe(slice_s)

    def on_image_again(self, *, decode_s: float, slice_s: float) -> None:
        """A picture was decoded after all, or again, since the engine did not have all crops of its request."""
        self.image_file_redecodes.inc()
        self.image_decode_s.observe(decode_s)
        self.image_slice_s.observe(slice_s)

    def on_restart(self) -> None:
        """The engine process ended unasked and is being started again: nothing runs or waits in it."""
        self.engine_restarts.inc()
        for gauge in (self.running, self.waiting, self.kv_usage, self.engine_memory_bytes):
            gauge.set(0)
        for tier in _TIERS:
            self.image_cache_bytes.labels(tier).set(0)

    # From the HTTP layer

    def watch_admission(self, *, num_held: Callable[[], int], is_ready: Callable[[], bool]) -> None:
        """What is asked for whenever the page is rendered, in whatever thread."""
        self.requests_in_progress.set_function(num_held)
        self.ready.set_function(is_ready)

    def on_image_fetch(self, elapsed_s: float) -> None:
        """A remote picture has come, redirects included."""
        self.image_fetch_s.observe(elapsed_s)

    def on_image_fetch_failed(self, reason: str) -> None:
        """A remote picture was not fetched, or is none: a reason of `server.fetch.refusal`, or "busy", or "image"."""
        self.image_fetch_failures.labels(reason).inc()

    def on_http(self, *, route: str | None, method: str, status: int) -> None:
        """One HTTP exchange ended. `route` is the template that matched, None where none did."""
        self.http_requests.labels(route or "other", method if method in _METHODS else "other", str(status)).inc()

    def on_rejected(self, reason: str) -> None:
        """A request was refused; the reason is the error's code."""
        self.rejected.labels(reason).inc()

    def on_stream_error(self, reason: str) -> None:
        """A stream that had begun ended with an error event; the reason is the error's code."""
        self.stream_errors.labels(reason).inc()

    def on_key_request(self, name: str) -> None:
        """A key's request passed the key's limits. Names are the operator's."""
        self.key_requests.labels(name).inc()

    def on_key_tokens(self, name: str, num_tokens: int) -> None:
        """A request of this key has ended: its prompt and answer tokens."""
        self.key_tokens.labels(name).inc(num_tokens)

    def on_first_token(self, elapsed_s: float) -> None:
        """A request's first token has come, so long after the request."""
        self.first_token_s.observe(elapsed_s)

    def on_next_token(self, elapsed_s: float) -> None:
        """A further token of a choice has come, so long after the one before."""
        self.inter_token_s.observe(elapsed_s)

    def on_choice(self, finish_reason: str, num_tokens: int, timings: Timings | None) -> None:
        """One choice of a request has ended."""
        self.choices_finished.labels(finish_reason).inc()
        self.request_generation_tokens.observe(num_tokens)
        if timings is not None:
            self.queue_s.observe(timings.queue_s)
            self.prefill_s.observe(timings.prefill_s)
            self.decode_s.observe(timings.decode_s)

    def on_request(self, outcome: str, usage: Usage, total_s: float) -> None:
        """A request that the engine had accepted has ended: "completed", "aborted" or "failed"."""
        self.requests_finished.labels(outcome).inc()
        self.request_prompt_tokens.observe(usage.prompt_tokens)
        self.request_image_crops.observe(usage.num_crops)
        if outcome == "completed":
            self.request_s.observe(total_s)

    def _engine_metrics(self) -> None:
        self.running = self._gauge("num_requests_running", "Sequences that take part in engine steps.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences that wait in the engine for their first step.")
        self.kv_usage = self._gauge("kv_cache_usage_ratio", "KV blocks that running sequences hold, 0 to 1.")
        self.cache_config = self._gauge(
            "cache_config_info",
            "Always 1; the size of the KV cache is in the labels.",
            ["block_size", "num_gpu_blocks"],
        )
        for gauge in (self.running, self.waiting, self.kv_usage, self.cache_config):
            self.routing_registry.register(gauge)
        self.preemptions = self._counter("num_preemptions_total", "Sequences put back to make room in the KV cache.")
        self.engine_steps = self._counter("engine_steps_total", "Steps that the engine has run.")
        self.engine_reports = self._counter(
            "engine_reports_total", "Reports of the engine: one a second at least, unless it loads or is stuck."
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens_total", "Prompt tokens, computed or found in the prefix cache."
        )
        self.generation_tokens = self._counter("generation_tokens_total", "Tokens generated.")
        self.prefix_cache_queries = self._counter(
            "prefix_cache_queries_tokens_total", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = self._counter("prefix_cache_hits_tokens_total", "Prompt tokens found there.")
        self.drafted_tokens = self._counter("speculation_drafted_tokens_total", "Tokens guessed ahead of being drawn.")
        self.accepted_tokens = self._counter(
            "speculation_accepted_tokens_total", "Of these, those that came true: steps saved."
        )
        self.engine_restarts = self._counter("engine_restarts_total", "Times the engine process had to be replaced.")
        self.engine_memory_bytes = self._gauge(
            "engine_memory_bytes", "Memory of the engine: host, or allocated on CUDA."
        )
        self.memory_budget_bytes = self._gauge(
            "memory_budget_bytes", "What the memory plan lets the engine take, with its runtime."
        )
        self.memory_peak_bytes = self._gauge(
            "memory_peak_bytes", "The most that the engine has taken: resident, or reserved by torch on CUDA."
        )
        self.engine_weight_bytes = self._gauge("engine_weight_bytes", "Of it, the model's weights.")
        self.engine_kv_bytes = self._gauge("engine_kv_cache_bytes", "Of it, the KV cache.")

    def _request_metrics(self) -> None:
        self.http_requests = self._counter(
            "http_requests_total", "HTTP exchanges by route template.", ["route", "method", "code"]
        )
        self.requests_in_progress = self._gauge(
            "requests_in_progress", "Requests that hold a place, from their body to the last byte of the answer."
        )
        self.ready = self._gauge("ready", "1 while a request would be answered: /health/ready.")
        self.rejected = self._counter("requests_rejected_total", "Requests refused, by error code.", ["reason"])
        self.key_requests = self._counter("key_requests_total", "Requests within their key's limits.", ["key"])
        self.key_tokens = self._counter("key_tokens_total", "Prompt and answer tokens by key.", ["key"])
        self.stream_errors = self._counter("stream_errors_total", "Streams that ended with an error event.", ["reason"])
        self.requests_finished = self._counter("requests_finished_total", "Accepted requests that ended.", ["outcome"])
        self.choices_finished = self._counter("choices_finished_total", "Choices that ended.", ["finish_reason"])
        # Alerts compare these with 0, so the series exist from the start.
        for reason in ("too_many_requests", "engine_unavailable"):
            self.rejected.labels(reason)
        for outcome in ("completed", "aborted", "failed"):
            self.requests_finished.labels(outcome)
        self.first_token_s = self._histogram(
            "time_to_first_token_seconds", "From arrival of the request to its first token.", _FIRST_TOKEN_S
        )
        self.inter_token_s = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of one choice.", _INTER_TOKEN_S
        )
        self.request_s = self._histogram(
            "e2e_request_latency_seconds", "Completed requests, arrival to end.", _REQUEST_S
        )
        self.queue_s = self._histogram("request_queue_time_seconds", "Waiting in the engine.", _REQUEST_S)
        self.prefill_s = self._histogram("request_prefill_time_seconds", "First step to first token.", _REQUEST_S)
        self.decode_s = self._histogram("request_decode_time_seconds", "First token to last.", _REQUEST_S)
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.request_generation_tokens = self._histogram("request_generation_tokens", "Tokens of a choice.", _TOKENS)

    def _image_metrics(self) -> None:
        self.image_fetch_s = self._histogram("image_fetch_seconds", "Remote pictures that came.", _IMAGE_S)
        self.image_fetch_failures = self._counter(
            "image_fetch_failures_total", "Remote pictures that were refused, did not come, or are none.", ["reason"]
        )
        self.image_decode_s = self._histogram("image_decode_seconds", "Picture file to pixels.", _IMAGE_S)
        self.image_slice_s = self._histogram("image_slice_seconds", "Pixels to crops.", _IMAGE_S)
        self.image_crops = self._histogram("image_crops", "Crops of a picture.", _CROPS)
        self.request_image_crops = self._histogram("request_image_crops", "Crops of a request.", _CROPS)
        self.image_encode_s = self._counter("image_encode_seconds_total", "Time spent in the vision encoder.")
        self.crops_encoded = self._counter("image_crops_encoded_total", "Crops that went through the vision encoder.")
        self.image_cache_queries = self._counter(
            "image_cache_queries_total",
            "Crops looked up in the image cache; on the host, those that the device does not have.",
            ["tier"],
        )
        self.image_cache_hits = self._counter("image_cache_hits_total", "Crops found there.", ["tier"])
        self.image_cache_evictions = self._counter(
            "image_cache_evictions_total",
            "Encoded crops that had to leave: the device, for the host; the host.",
            ["tier"],
        )
        self.image_cache_bytes = self._gauge(
            "image_cache_bytes", "Encoded crops, and on the device those to be.", ["tier"]
        )
        self.image_cache_capacity = self._gauge(
            "image_cache_capacity_crops", "Encoded crops that there is room for.", ["tier"]
        )
        for tier in _TIERS:
            for metric in (self.image_cache_queries, self.image_cache_hits, self.image_cache_evictions):
                metric.labels(tier)
            self.image_cache_bytes.labels(tier)
        self.image_file_queries = self._counter(
            "image_file_queries_total", "Pictures looked up by their file's content."
        )
        self.image_file_hits = self._counter(
            "image_file_hits_total", "Pictures found, which were neither decoded nor sent to the engine."
        )
        self.image_file_redecodes = self._counter(
            "image_file_redecodes_total", "Pictures decoded later, when the engine no longer had all that it needed."
        )

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(self._describe(name, "gauge", text, labels), text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(self._describe(name, "counter", text, labels), text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(self._describe(name, "histogram", text, ()), text, buckets=buckets, registry=self.registry)

    def _describe(self, name: str, kind: str, text: str, labels: Sequence[str]) -> str:
        self.catalogue.append(Described(f"minicpmv_{name}", kind, text, tuple(labels)))
        return f"minicpmv_{name}"
