"""The figures of one or more measurements of the same load on the same server."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from server.bench.load import Measurement
from server.bench.objective import Objective
from server.bench.record import Record


@dataclass(frozen=True, slots=True)
class Distribution:
    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The value below which this fraction lies, on the straight line between the two nearest ranks.

    So does numpy by default: of 10 and 20 the median is 15.

    Args:
        ordered: ascending, not empty.
    """
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution(values: Iterable[float]) -> Distribution | None:
    """None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p90, p95, p99 = (percentile(ordered, fraction) for fraction in (0.5, 0.9, 0.95, 0.99))
    mean = math.fsum(ordered) / len(ordered)
    return Distribution(len(ordered), mean, ordered[0], p50, p90, p95, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class FailureCount:
    kind: str
    count: int
    example: str
    """The message of the first."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Rates are over the wall time, failed requests' tokens left out; latencies are in seconds, of requests that
    succeeded, and None where there was nothing to measure."""

    num_requests: int
    num_failed: int
    num_cut: int
    """Interrupted by the user; neither requests nor failures."""
    num_late: int
    wall_s: float
    requests_per_s: float
    """That succeeded."""
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt, cached tokens included, and answer."""
    pictures_per_s: float
    goodput_per_s: float | None
    """Requests that met the objective; None without one."""
    good_share: float | None
    """Of all requests, failed ones included, that met the objective."""
    ttft_s: Distribution | None
    itl_s: Distribution | None
    """Gaps between chunks of a stream; a chunk holds `tokens_per_chunk` tokens."""
    token_gap_s: Distribution | None
    """Of each request: its mean time of a token after the first chunk."""
    end_to_end_s: Distribution | None
    send_lag_s: Distribution | None
    """By how much requests left later than they were due: this program's own delay."""
    prompt_tokens: Distribution | None
    completion_tokens: Distribution | None
    tokens_per_chunk: float | None
    tokens_from: Literal["usage", "chunks", "both"]
    """What tokens were counted by: the server's usage, or chunks where it reported none."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_pictures: int
    num_reused_pictures: int
    failures: tuple[FailureCount, ...]
    """Most frequent first."""


def summarise(measurements: Sequence[Measurement], objective: Objective | None = None) -> Summary:
    """The figures of all of them taken as one: records pooled, wall times added."""
    records = [record for measurement in measurements for record in measurement.records]
    good = [record for record in records if record.failure is None]
    wall_s = math.fsum(measurement.wall_s for measurement in measurements)
    num_prompt_tokens = sum(record.usage.prompt_tokens for record in good if record.usage)
    num_completion_tokens = sum(record.completion_tokens for record in good)
    num_pictures = sum(record.num_pictures for record in good)
    num_chunks = sum(len(record.chunks_s) for record in good)
    num_met = sum(map(objective.is_met_by, good)) if objective else None
    return Summary(
        num_requests=len(records),
        num_failed=len(records) - len(good),
        num_cut=sum(measurement.num_cut for measurement in measurements),
        num_late=sum(measurement.num_late for measurement in measurements),
        wall_s=wall_s,
        requests_per_s=_rate(len(good), wall_s),
        output_tokens_per_s=_rate(num_completion_tokens, wall_s),
        total_tokens_per_s=_rate(num_prompt_tokens + num_completion_tokens, wall_s),
        pictures_per_s=_rate(num_pictures, wall_s),
        goodput_per_s=None if num_met is None else _rate(num_met, wall_s),
        good_share=None if num_met is None or not records else num_met / len(records),
        ttft_s=distribution(record.ttft_s for record in good if record.ttft_s is not None),
        itl_s=distribution(gap for record in good for gap in record.gaps_s),
        token_gap_s=distribution(record.token_gap_s for record in good if record.token_gap_s is not None),
        end_to_end_s=distribution(record.end_to_end_s for record in good),
        send_lag_s=distribution(record.sent_s - record.due_s for record in records),
        prompt_tokens=distribution(record.usage.prompt_tokens for record in good if record.usage),
        completion_tokens=distribution(record.completion_tokens for record in good),
        tokens_per_chunk=num_completion_tokens / num_chunks if num_chunks else None,
        tokens_from=_tokens_from(good),
        num_prompt_tokens=num_prompt_tokens,
        num_cached_tokens=sum(record.usage.cached_tokens for record in good if record.usage),
        num_completion_tokens=num_completion_tokens,
        num_pictures=num_pictures,
        num_reused_pictures=sum(record.num_reused_pictures for record in good),
        failures=_failures(records),
    )


def _rate(count: int, wall_s: float) -> float:
    return count / wall_s if wall_s else 0.0


def _tokens_from(records: Sequence[Record]) -> Literal["usage", "chunks", "both"]:
    num_counted = sum(record.usage is not None for record in records)
    if num_counted == len(records):
        return "usage"
    return "both" if num_counted else "chunks"


def _failures(records: Iterable[Record]) -> tuple[FailureCount, ...]:
    failures = [record.failure for record in records if record.failure is not None]
    examples: dict[str, str] = {}
    for failure in failures:
        examples.setdefault(failure.kind, failure.message)
    counts = Counter(failure.kind for failure in failures)
    return tuple(FailureCount(kind, count, examples[kind]) for kind, count in counts.most_common())
