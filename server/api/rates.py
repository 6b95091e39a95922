"""What one key may use: requests and tokens a minute, and requests at once. Plain numbers; the clock is an argument."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.errors import TooManyRequests
from server.settings import Settings

RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"


class Bucket:
    """A token bucket that holds what a minute brings.

    It may go below zero: what a request takes is known only when it has taken it, and the debt is waited for.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s

    def level(self, now_s: float) -> float:
        """What may be taken now; negative for a debt."""
        self._level = min(self._level + max(now_s - self._filled_s, 0) * self.per_minute / 60, self.per_minute)
        self._filled_s = now_s
        return self._level

    def take(self, amount: int, now_s: float) -> None:
        self._level = self.level(now_s) - amount

    def wait_s(self, amount: int, now_s: float) -> float:
        """Seconds until so much is there; 0 when it is."""
        return max(amount - self.level(now_s), 0) * 60 / self.per_minute

    def check_invariants(self) -> None:
        """Never more than a minute's worth."""
        assert self._level <= self.per_minute


@dataclass(frozen=True, slots=True)
class KeyQuota:
    """The same for each key; None for no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_requests: int | None

    @classmethod
    def of(cls, settings: Settings) -> "KeyQuota":
        return cls(settings.key_requests_per_minute, settings.key_tokens_per_minute, settings.key_max_requests)


class KeyUse:
    """What one key has used lately. Two digests of one name are one key, so that a rotation resets nothing."""

    def __init__(self, quota: KeyQuota, now_s: float) -> None:
        self._max_requests = quota.max_requests
        self._num_running = 0
        self._mean_s = 1.0
        """Of its requests' durations: each new one counts a tenth."""
        limits = {"requests": quota.requests_per_minute, "tokens": quota.tokens_per_minute}
        self._buckets = {name: Bucket(limit, now_s) for name, limit in limits.items() if limit is not None}

    @contextmanager
    def request(self, now_s: float) -> Iterator[None]:
        """One request, from its headers to the last byte of its answer.

        Raises:
            TooManyRequests: a limit is reached; it knows when to come back.
        """
        if self._max_requests is not None and self._num_running >= self._max_requests:
            # One of the running ones ends, on average, in this time.
            self._refuse("requests at once", self._max_requests, self._mean_s / self._max_requests)
        for name, bucket in self._buckets.items():
            wait_s = bucket.wait_s(1, now_s)
            if wait_s > 0:
                self._refuse(f"{name} per minute", bucket.per_minute, wait_s)
        if "requests" in self._buckets:
            self._buckets["requests"].take(1, now_s)
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    def on_duration(self, elapsed_s: float) -> None:
        """A request of this key has taken so long."""
        self._mean_s += (elapsed_s - self._mean_s) / 10

    def on_tokens(self, num_tokens: int, now_s: float) -> None:
        """Prompt or answer tokens of this key, when they are known."""
        if "tokens" in self._buckets:
            self._buckets["tokens"].take(num_tokens, now_s)

    def headers(self, now_s: float) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*`; empty where there are no limits."""
        headers = {}
        for name, bucket in self._buckets.items():
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(math.floor(bucket.level(now_s)), 0))
            headers[f"x-ratelimit-reset-{name}"] = _duration(bucket.wait_s(bucket.per_minute, now_s))
        return headers

    def check_invariants(self) -> None:
        assert self._num_running >= 0
        for bucket in self._buckets.values():
            bucket.check_invariants()

    def _refuse(self, what: str, limit: int, wait_s: float) -> None:
        raise TooManyRequests(
            f"the limit of this API key is reached: {limit} {what}",
            code=RATE_LIMIT_EXCEEDED,
            retry_after_s=max(math.ceil(wait_s), 1),
        )


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
