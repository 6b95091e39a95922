"""The names of vLLM's metrics for what we count as well: routers and dashboards exist that know no others.

Nothing is counted twice: when the page is rendered, the samples of our own metrics are repeated under these names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class _Alias:
    name: str
    """After `vllm:`, without `_total`."""
    source: MetricWrapperBase
    labels: Mapping[str, str] = field(default_factory=dict)
    """vLLM's names of our labels, where they differ."""


def add_vllm_names(metrics: Metrics, model_id: str) -> None:
    """From now on the pages have them, with vLLM's labels `model_name` and `engine`.

    Source of names and meanings: vLLM's docs/design/metrics.md. Those with `gpu_` are former names, which the router of
    its production-stack still reads.
    """
    _register(metrics.routing_registry, _routing(metrics), model_id)
    _register(metrics.registry, [*_routing(metrics), *_others(metrics)], model_id)


def _routing(metrics: Metrics) -> list[_Alias]:
    return [
        _Alias("num_requests_running", metrics.running),
        _Alias("num_requests_waiting", metrics.waiting),
        _Alias("kv_cache_usage_perc", metrics.kv_usage),
        _Alias("gpu_cache_usage_perc", metrics.kv_usage),
        _Alias("cache_config_info", metrics.cache_config),
    ]


def _others(metrics: Metrics) -> list[_Alias]:
    return [
        _Alias("num_preemptions", metrics.preemptions),
        _Alias("prompt_tokens", metrics.prompt_tokens),
        _Alias("generation_tokens", metrics.generation_tokens),
        _Alias("prefix_cache_queries", metrics.prefix_cache_queries),
        _Alias("prefix_cache_hits", metrics.prefix_cache_hits),
        _Alias("gpu_prefix_cache_queries", metrics.prefix_cache_queries),
        _Alias("gpu_prefix_cache_hits", metrics.prefix_cache_hits),
        _Alias("mm_cache_queries", metrics.image_file_queries),
        _Alias("mm_cache_hits", metrics.image_file_hits),
        _Alias("request_success", metrics.choices_finished, {"finish_reason": "finished_reason"}),
        _Alias("time_to_first_token_seconds", metrics.first_token_s),
        _Alias("inter_token_latency_seconds", metrics.inter_token_s),
        _Alias("e2e_request_latency_seconds", metrics.request_s),
        _Alias("request_queue_time_seconds", metrics.queue_s),
        _Alias("request_prefill_time_seconds", metrics.prefill_s),
        _Alias("request_decode_time_seconds", metrics.decode_s),
        _Alias("request_prompt_tokens", metrics.request_prompt_tokens),
        _Alias("request_generation_tokens", metrics.request_generation_tokens),
    ]


def _register(registry: CollectorRegistry, aliases: list[_Alias], model_id: str) -> None:
    registry.register(_VllmNames(aliases, model_id))


class _VllmNames(Collector):
    def __init__(self, aliases: list[_Alias], model_id: str) -> None:
        self._aliases = aliases
        self._labels = {"model_name": model_id, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        for alias in self._aliases:
            for family in alias.source.collect():
                yield self._renamed(family, alias)

    def _renamed(self, family: Metric, alias: _Alias) -> Metric:
        renamed = Metric(f"vllm:{alias.name}", family.documentation, family.type)
        for sample in family.samples:
            # A counter's samples end with _total, a histogram's with _bucket, _count and _sum.
            name = renamed.name + sample.name.removeprefix(family.name)
            labels = {alias.labels.get(label, label): value for label, value in sample.labels.items()}
            renamed.add_sample(name, labels | self._labels, sample.value)
        return renamed
