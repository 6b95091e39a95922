"""Who is let in: a permit for the whole life of each request, none while draining, none beyond the limit."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.engine.client import Engine
from server.errors import EngineUnavailable, TooManyRequests
from server.pace import Pace

_RETRY_AFTER_S = 2
"""While the engine is away, or the server drains: another replica may be there at once."""

_WHY_NOT = {
    "starting": "the model is still being loaded",
    "restarting": "the engine is being restarted",
    "failed": "the engine could not be started",
    "stopped": "the server is shutting down",
}


class Admission:
    """Counts requests in the house. All on the event loop's thread."""

    def __init__(self, engine: Engine, *, max_requests: int) -> None:
        self._engine = engine
        self._max_requests = max_requests
        self._num_held = 0
        self._pace = Pace()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self.is_draining = False

    @property
    def num_held(self) -> int:
        """Requests in the house."""
        return self._num_held

    @property
    def is_ready(self) -> bool:
        """Whether a new request would find a working engine."""
        return self._engine.state == "ready" and not self.is_draining

    @contextmanager
    def permit(self) -> Iterator[None]:
        """A place for one request, given back at the end of the block.

        Raises:
            EngineUnavailable: the server drains, or its engine is not ready.
            TooManyRequests: every place is taken.
        """
        if self.is_draining:
            raise EngineUnavailable("the server is shutting down", retry_after_s=_RETRY_AFTER_S)
        if self._engine.state != "ready":
            raise EngineUnavailable(_WHY_NOT[self._engine.state], retry_after_s=_RETRY_AFTER_S)
        if self._num_held >= self._max_requests:
            raise TooManyRequests(
                f"{self._num_held} requests are waiting or running, which is the limit",
                retry_after_s=self._pace.retry_after_s(self._num_held, time.monotonic()),
            )
        self._num_held += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self._num_held -= 1
            self._pace.on_leaving(time.monotonic(), was_idle=not self._num_held)
            if self._num_held == 0:
                self._is_empty.set()

    async def drain(self) -> None:
        """Let nobody in from now on; returns when the last request has left."""
        self.is_draining = True
        await self._is_empty.wait()
