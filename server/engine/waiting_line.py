"""A bound on what waits for its first token: requests, and the tokens of their prompts."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.errors import TooManyRequests
from server.pace import Pace
from server.request import TokenEvent


class WaitingLine:
    """All on the event loop's thread. One request may always wait, however long its prompt is."""

    def __init__(self, *, max_requests: int, max_tokens: int) -> None:
        """
        Args:
            max_requests: that wait at once.
            max_tokens: of the prompts of all that wait.
        """
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._num_requests = 0
        self._num_tokens = 0
        self._pace = Pace()

    def check(self, num_tokens: int = 0) -> None:
        """Raises TooManyRequests where a prompt of so many tokens finds no place."""
        if self._num_requests >= self._max_requests:
            self._refuse(f"{self._num_requests} requests wait for their first token")
        if self._num_requests and self._num_tokens + num_tokens > self._max_tokens:
            self._refuse(f"requests with {self._num_tokens} prompt tokens wait for their first token")

    async def through(
        self, num_tokens: int, events: AsyncGenerator[TokenEvent, None]
    ) -> AsyncGenerator[TokenEvent, None]:
        """The same events, the request being in the line until the first of them. Closes `events`.

        Raises:
            TooManyRequests: before the first event; there is no place.
        """
        async with aclosing(events):
            self.check(num_tokens)
            self._num_requests += 1
            self._num_tokens += num_tokens
            try:
                first = await anext(events, None)
            finally:
                self._num_requests -= 1
                self._num_tokens -= num_tokens
                self._pace.on_leaving(time.monotonic(), was_idle=not self._num_requests)
            if first is not None:
                yield first
            async for event in events:
                yield event

    def check_invariants(self) -> None:
        assert self._num_requests >= 0
        assert self._num_tokens >= 0
        assert self._num_requests or not self._num_tokens

    def _refuse(self, what: str) -> None:
        raise TooManyRequests(
            f"{what}, which is the limit",
            retry_after_s=self._pace.retry_after_s(self._num_requests, time.monotonic()),
        )
