"""Requests made ahead of their time, so that drawing a picture never delays the one that is due."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """Keeps `depth` items ready, made in their order by one thread."""

    def __init__(self, make: Callable[[], Item], *, depth: int, limit: int | None = None) -> None:
        """
        Args:
            make: the next item; called in the thread.
            limit: items in all; None: as many as are taken.
        """
        self._make = make
        self._left = limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bench-feed")
        self._coming: deque[asyncio.Future[Item]] = deque()
        self.num_late = 0
        """Items that were taken before they were ready: the taker had to wait for this program, not for the server."""
        for _ in range(depth):
            self._order()

    async def fill(self) -> None:
        """Returns when everything that is to be ready is."""
        if self._coming:
            await asyncio.wait(self._coming)

    async def take(self) -> Item | None:
        """The next item; None after the last."""
        if not self._coming:
            return None
        item = self._coming.popleft()
        self._order()
        self.num_late += not item.done()
        return await item

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _order(self) -> None:
        if self._left is not None:
            if self._left == 0:
                return
            self._left -= 1
        self._coming.append(asyncio.get_running_loop().run_in_executor(self._thread, self._make))
