"""What a request must keep to in order to count as good: `ttft=2s,itl=200ms,e2e=30s`."""

from dataclasses import dataclass

from server.bench.duration import format_seconds, parse_seconds
from server.bench.record import Record


@dataclass(frozen=True, slots=True)
class Objective:
    """None: no such limit."""

    ttft_s: float | None = None
    itl_s: float | None = None
    """On the request's mean time of a token after the first."""
    e2e_s: float | None = None

    def is_met_by(self, record: Record) -> bool:
        """Never by a failed request. One without a second token cannot miss `itl`."""
        if record.failure is not None or record.ttft_s is None:
            return False
        seen = ((record.ttft_s, self.ttft_s), (record.token_gap_s, self.itl_s), (record.end_to_end_s, self.e2e_s))
        return all(value is None or limit is None or value <= limit for value, limit in seen)

    def __str__(self) -> str:
        limits = (("ttft", self.ttft_s), ("itl", self.itl_s), ("e2e", self.e2e_s))
        return ", ".join(f"{name} <= {format_seconds(limit)}" for name, limit in limits if limit is not None)


def parse_objective(text: str) -> Objective:
    """
    Raises:
        ValueError: an unknown or repeated name, or no time.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in ("ttft", "itl", "e2e") or f"{name}_s" in limits:
            raise ValueError(f"{part!r} is no objective; write for example ttft=2s,itl=200ms,e2e=30s")
        limits[f"{name}_s"] = parse_seconds(value)
    return Objective(**limits)
