"""The event stream by itself: silence, failures, slow and absent clients, without a network."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from server.api.connection import ClientGone, while_connected
from server.api.sse import DONE, EventStream, frame
from server.errors import EngineUnavailable


class Connection:
    """One ASGI connection that keeps what is sent to it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]


def stream(frames: AsyncGenerator[bytes, None], errors: list[str], **options: float) -> EventStream:
    return EventStream(frames, **({"keep_alive_s": 60.0, "send_timeout_s": 60.0} | options), on_error=errors.append)


async def run(frames: AsyncGenerator[bytes, None], connection: Connection, **options: float) -> list[str]:
    errors: list[str] = []
    await stream(frames, errors, **options)({"type": "http"}, connection.receive, connection.send)
    return errors


def test_frame_is_one_line_whatever_the_text() -> None:
    assert frame({"a": "x\ny\r\u2028"}) == b'data: {"a":"x\\ny\\r\xe2\x80\xa8"}\n\n'


def test_status_once_then_frames_then_the_end() -> None:
    async def frames() -> AsyncGenerator[bytes, None]:
        yield frame(1)
        yield DONE

    async def main() -> list[Any]:
        connection = Connection()
        assert await run(frames(), connection) == []
        return connection.messages

    start, *bodies = asyncio.run(main())
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert [(body["body"], body["more_body"]) for body in bodies] == [
        (b"data: 1\n\n", True),
        (b"data: [DONE]\n\n", True),
        (b"", False),
    ]


def test_silence_is_filled_with_comments_from_the_beginning() -> None:
    async def main() -> list[bytes]:
        connection = Connection()

        def comments() -> int:
            return connection.bodies.count(b": keep-alive\n\n")

        async def frames() -> AsyncGenerator[bytes, None]:
            while comments() < 2:  # noqa: ASYNC110 - the stream tells nobody
                await asyncio.sleep(0.001)
            yield frame(1)
            while comments() < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            yield DONE

        await run(frames(), connection, keep_alive_s=0.01)
        return connection.bodies

    bodies = asyncio.run(main())
    assert bodies[:2] == [b": keep-alive\n\n"] * 2
    assert [body for body in bodies if not body.startswith(b":")] == [b"data: 1\n\n", DONE, b""]


def test_comments_wait_for_silence() -> None:
    async def frames() -> AsyncGenerator[bytes, None]:
        for _ in range(20):
            await asyncio.sleep(0.01)
            yield frame(1)

    async def main() -> list[bytes]:
        connection = Connection()
        await run(frames(), connection, keep_alive_s=0.15)
        return connection.bodies

    assert b": keep-alive\n\n" not in asyncio.run(main())


def test_failure_after_a_comment_is_an_event() -> None:
    """The comment has spent the status."""

    async def main() -> tuple[list[bytes], list[str]]:
        connection = Connection()

        async def frames() -> AsyncGenerator[bytes, None]:
            while not connection.bodies:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            raise EngineUnavailable("gone")
            yield b""

        errors = await run(frames(), connection, keep_alive_s=0.01)
        return connection.bodies, errors

    bodies, errors = asyncio.run(main())
    assert errors == ["engine_unavailable"]
    assert bodies[-2].endswith(DONE)
    assert b'"error"' in bodies[-2]
    assert bodies[-1] == b""


def test_failure_before_the_first_byte_is_raised() -> None:
    async def frames() -> AsyncGenerator[bytes, None]:
        raise EngineUnavailable("gone")
        yield b""

    async def main() -> list[Any]:
        connection = Connection()
        with pytest.raises(EngineUnavailable):
            await run(frames(), connection)
        return connection.messages

    assert asyncio.run(main()) == []


def test_client_that_leaves_closes_the_frames() -> None:
    async def main() -> bool:
        connection = Connection()
        is_closed = False

        async def frames() -> AsyncGenerator[bytes, None]:
            nonlocal is_closed
            try:
                yield frame(1)
                connection.gone.set()
                await asyncio.sleep(60)
            finally:
                is_closed = True

        with pytest.raises(ClientGone):
            await run(frames(), connection)
        return is_closed

    assert asyncio.run(main())


@pytest.mark.parametrize("keep_alive_s", [60.0, 0.01], ids=["frame", "comment"])
def test_client_that_accepts_nothing_counts_as_gone(keep_alive_s: float) -> None:
    async def main() -> bool:
        connection = Connection()
        connection.reads.clear()
        is_closed = False

        async def frames() -> AsyncGenerator[bytes, None]:
            nonlocal is_closed
            try:
                if keep_alive_s < 1:
                    await asyncio.sleep(60)
                yield frame(1)
            finally:
                is_closed = True

        with pytest.raises(ClientGone):
            await run(frames(), connection, keep_alive_s=keep_alive_s, send_timeout_s=0.02)
        return is_closed

    assert asyncio.run(main())


def test_result_of_finished_work_counts_even_when_the_client_has_gone() -> None:
    async def work() -> int:
        return 7

    async def main() -> int:
        connection = Connection()
        connection.gone.set()
        return await while_connected(connection.receive, work())

    assert asyncio.run(main()) == 7


def test_work_has_ended_when_its_caller_is_cancelled() -> None:
    async def main() -> list[str]:
        connection = Connection()
        told: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                told.append("ended")

        task = asyncio.create_task(while_connected(connection.receive, work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return told

    assert asyncio.run(main()) == ["ended"]
