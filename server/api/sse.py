"""Server-sent events: framing, keep-alive comments, errors after the first byte, and clients that leave."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.connection import ClientGone, while_connected
from server.api.errors import as_api_error, error_object
from server.notes import note

DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients skip it, but proxies see a living connection."""


def frame(data: Any) -> bytes:
    """One event. JSON has no raw newlines, so one `data:` line always suffices."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(StreamingResponse):
    """Sends frames as they come; the generator of frames is closed at once when the client goes away.

    The status line is sent with the first frame or the first keep-alive comment. A failure before that is raised, and
    becomes a response of its own; a later one becomes an event with an `error` object, and `[DONE]`.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        keep_alive_s: float,
        send_timeout_s: float,
        on_error: Callable[[str], None],
    ) -> None:
        """
        Args:
            frames: the events, framed, with `DONE` as the last.
            keep_alive_s: after so many seconds of silence a comment is sent.
            send_timeout_s: a client that takes longer than this to accept a frame counts as gone.
            on_error: told the code of a failure that became an event.
        """
        super().__init__(
            frames,
            media_type="text/event-stream",
            # The second keeps nginx from collecting the stream before it passes it on.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._frames = frames
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        self._send = send
        self._clock = asyncio.get_running_loop().time
        # Frames and comments come from two tasks; one is sent at a time.
        self._sending = asyncio.Lock()
        self._moved_s = self._clock()
        """When a write last began or ended."""
        self._has_started = False
        async with aclosing(self._frames):
            await while_connected(receive, self._send_frames(), self._watch())

    async def _send_frames(self) -> None:
        try:
            async for data in self._frames:
                await self._write(data)
        except Exception as err:  # the status is spent: the client can only be told inside the stream
            if not self._has_started:
                raise
            error = as_api_error(err)
            self._on_error(error.code or error.type)
            note(error_code=error.code)
            await self._write(frame(error_object(error)) + DONE)
        await self._write(b"", more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        async with self._sending:
            self._moved_s = self._clock()
            if not self._has_started:
                self._has_started = True
                start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                await self._send(start)
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._moved_s = self._clock()

    async def _watch(self) -> None:
        """Fills silence with comments; raises ClientGone when a write does not end in time.

        A task of its own, since a timer for each write would cost more than the write.
        """
        while True:
            still_s = self._clock() - self._moved_s
            limit_s = self._send_timeout_s if self._sending.locked() else self._keep_alive_s
            if still_s < limit_s:
                await asyncio.sleep(min(limit_s - still_s, self._keep_alive_s))
            elif self._sending.locked():
                raise ClientGone
            else:
                await self._comment()

    async def _comment(self) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await self._write(_KEEP_ALIVE)
        except TimeoutError as err:
            raise ClientGone from err
