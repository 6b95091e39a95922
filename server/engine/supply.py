"""Pixels on their way into shared memory: with a request, or later, when the engine asks for what was not sent."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from server.engine.arena import Arena, ArenaClosed
from server.engine.picture_workers import Pixels
from server.engine.prepare import Picture

logger = logging.getLogger(__name__)

Decode = Callable[[Sequence[Picture]], Awaitable[list[Pixels]]]
"""Pictures -> the pixels of all their crops, in order."""


class PixelSupply:
    """Fills the arena of one engine. For one event loop's thread, but for the copying itself."""

    def __init__(
        self,
        arena: Arena,
        decode: Decode,
        *,
        send: Callable[[int, list[int]], None],
        fail: Callable[[int], None],
    ) -> None:
        """
        Args:
            decode: makes the pixels that the engine asks for.
            send: called with a request's id and the offsets of all its crops.
            fail: called with the id of a request whose pixels could not be made.
        """
        self._arena = arena
        self._decode = decode
        self._send = send
        self._fail = fail
        self._pictures: dict[int, Sequence[Picture]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def place(self, crops: Sequence[Pixels]) -> list[int]:
        """Copy pixels into the arena, once there is room; returns their offsets.

        Raises:
            ArenaClosed: the engine is gone, or goes while this waits.
        """
        if not crops:
            return []
        offsets = await self._arena.allocate([pixels.nbytes for pixels in crops])
        # In a thread: the first touch of shared pages makes a large picture cost several milliseconds.
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, crops, offsets)
        try:
            await asyncio.shield(writing)
        except BaseException:
            # Not before the thread has finished: the ranges would be another request's by then.
            writing.add_done_callback(lambda _: self._arena.free(offsets))
            raise
        return offsets

    def offer(self, request_id: int, pictures: Sequence[Picture]) -> None:
        """The engine may ask for the pixels of this request until `withdraw`. They are all of its pictures."""
        if pictures:
            self._pictures[request_id] = pictures

    def withdraw(self, request_id: int) -> None:
        """The request has ended; what is still being made for it is given up."""
        self._pictures.pop(request_id, None)
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()

    def ask(self, request_id: int) -> None:
        """The engine asks for the pixels of a request. It may have ended, or they may be on their way already."""
        if request_id in self._pictures and request_id not in self._tasks:
            self._tasks[request_id] = asyncio.create_task(self._make(request_id), name="pixel-supply")

    async def _make(self, request_id: int) -> None:
        try:
            offsets = await self.place(await self._decode(self._pictures[request_id]))
        except ArenaClosed:
            return  # whoever waits for the engine has been told
        except Exception:
            # They were decoded once before, so it is nothing that the client could mend.
            logger.exception("the pictures of request %d could not be decoded again", request_id)
            self._fail(request_id)
            return
        del self._tasks[request_id]
        self._send(request_id, offsets)

    def _write(self, crops: Sequence[Pixels], offsets: Sequence[int]) -> None:
        for pixels, offset in zip(crops, offsets, strict=True):
            self._arena.write(offset, pixels.data.cast("B"))
