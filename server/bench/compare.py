"""Ratios between servers that were measured in turns.

A machine's speed drifts while a benchmark runs. The ratio of two measurements made one after the other hardly does, so
ratios are taken round by round, and their spread over the rounds says how far to trust them.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.bench.load import Load, Measurement
from server.bench.summary import Distribution, Summary, summarise


def _median(values: Distribution | None) -> float | None:
    return values.p50 if values is not None else None


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str
    value: Callable[[Summary], float | None]
    is_rate: bool
    """More is better; of a latency, less."""


_METRICS = (
    _Metric("output tokens/s", lambda summary: summary.output_tokens_per_s, is_rate=True),
    _Metric("requests/s", lambda summary: summary.requests_per_s, is_rate=True),
    _Metric("TTFT p50", lambda summary: _median(summary.ttft_s), is_rate=False),
    _Metric("TPOT p50", lambda summary: _median(summary.token_gap_s), is_rate=False),
    _Metric("E2E p50", lambda summary: _median(summary.end_to_end_s), is_rate=False),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast a server is as the first one; above 1 is faster, for rates and latencies alike."""

    load: Load
    target: str
    baseline: str
    metric: str
    median: float
    """Over the rounds."""
    min: float
    max: float
    num_rounds: int


def ratios(measurements: Sequence[Measurement], targets: Sequence[str]) -> list[Ratio]:
    """Every server against the first, for each load.

    Args:
        targets: names, the baseline first.
    """
    baseline, *others = targets
    loads = dict.fromkeys(measurement.load for measurement in measurements)
    found = []
    for load in loads:
        summaries = {(one.target, one.round): summarise([one]) for one in measurements if one.load == load}
        rounds = {round_ for _, round_ in summaries}
        for target in others:
            for metric in _METRICS:
                values = [
                    value
                    for round_ in rounds
                    if (value := _ratio(metric, summaries.get((target, round_)), summaries.get((baseline, round_))))
                ]
                if values:
                    median, low, high = statistics.median(values), min(values), max(values)
                    found.append(Ratio(load, target, baseline, metric.name, median, low, high, len(values)))
    return found


def _ratio(metric: _Metric, target: Summary | None, baseline: Summary | None) -> float | None:
    """None where either has no such figure, in a round that was interrupted for one."""
    if target is None or baseline is None:
        return None
    mine, theirs = metric.value(target), metric.value(baseline)
    if not mine or not theirs:
        return None
    return mine / theirs if metric.is_rate else theirs / mine
