"""What became of one request, as its client saw it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

CLOCK = time.perf_counter
"""Of all times in this package. A loop's own clock will not do: uvloop's counts whole milliseconds."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Of the prompt, those that the server says it had computed before; 0 where it says nothing."""


@dataclass(frozen=True, slots=True)
class Failure:
    kind: str
    """From a closed set: `connect`, `broken`, `timeout`, `http 429`, `error event` or `bad stream`."""
    message: str
    """The first words of what the server or the system said."""


@dataclass(frozen=True, slots=True)
class Record:
    """Times are seconds of one clock, whose zero is the start of the measurement."""

    due_s: float
    """When the request was to be sent. In an open loop every latency counts from here, so that a client or a server
    that falls behind cannot hide it; in a closed loop it is when the request was sent."""
    sent_s: float
    ended_s: float
    chunks_s: Sequence[float]
    """When each chunk with tokens came."""
    usage: Usage | None
    """None where the request failed or the server reports none."""
    finish_reason: str | None
    num_pictures: int
    num_reused_pictures: int
    failure: Failure | None = None

    @property
    def completion_tokens(self) -> int:
        """By the server's usage, else one for each chunk."""
        return self.usage.completion_tokens if self.usage is not None else len(self.chunks_s)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None where none came."""
        return self.chunks_s[0] - self.due_s if self.chunks_s else None

    @property
    def end_to_end_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between chunks."""
        return [after - before for before, after in pairwise(self.chunks_s)]

    @property
    def token_gap_s(self) -> float | None:
        """Mean time of a token after the first chunk; None where one chunk or none came.

        The tokens of the first chunk are not known where chunks hold several, so they count as one.
        """
        if len(self.chunks_s) < 2 or self.completion_tokens < 2:
            return None
        return (self.chunks_s[-1] - self.chunks_s[0]) / (self.completion_tokens - 1)
