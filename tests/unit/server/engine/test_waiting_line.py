"""What waits for its first token is bounded in requests and in tokens."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from server.engine.waiting_line import WaitingLine
from server.errors import TooManyRequests
from server.request import TokenEvent

EVENT = TokenEvent(choice=0, text="x", token_ids=(1,))


async def events(gate: asyncio.Event | None = None, *, num: int = 2) -> AsyncGenerator[TokenEvent, None]:
    if gate is not None:
        await gate.wait()
    for _ in range(num):
        yield EVENT


async def drain(stream: AsyncGenerator[TokenEvent, None]) -> int:
    return len([event async for event in stream])


async def fill(line: WaitingLine, *sizes: int) -> tuple[asyncio.Event, list[asyncio.Task[int]]]:
    """Requests with prompts of these sizes, which wait until the gate is opened."""
    gate = asyncio.Event()
    tasks = [asyncio.create_task(drain(line.through(size, events(gate)))) for size in sizes]
    await asyncio.sleep(0)
    line.check_invariants()
    return gate, tasks


def test_requests_are_counted_until_their_first_token() -> None:
    async def scenario() -> None:
        line = WaitingLine(max_requests=2, max_tokens=1000)
        gate, tasks = await fill(line, 10, 10)
        with pytest.raises(TooManyRequests, match="2 requests wait") as caught:
            line.check()
        assert caught.value.retry_after_s == 1
        with pytest.raises(TooManyRequests):
            await drain(line.through(10, events()))
        gate.set()
        assert await asyncio.gather(*tasks) == [2, 2]
        assert await drain(line.through(10, events())) == 2
        line.check_invariants()

    asyncio.run(scenario())


def test_tokens_are_counted_and_one_request_always_fits() -> None:
    async def scenario() -> None:
        line = WaitingLine(max_requests=9, max_tokens=100)
        gate, tasks = await fill(line, 4000)
        with pytest.raises(TooManyRequests, match="4000 prompt tokens wait"):
            await drain(line.through(1, events()))
        gate.set()
        await asyncio.gather(*tasks)
        gate, tasks = await fill(line, 60)
        line.check(40)
        with pytest.raises(TooManyRequests):
            line.check(41)
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_who_gives_up_or_fails_leaves_the_line() -> None:
    async def scenario() -> None:
        line = WaitingLine(max_requests=1, max_tokens=100)
        _, (task,) = await fill(line, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        line.check(100)
        assert await drain(line.through(1, events(num=0))) == 0
        stream = line.through(1, events())
        await anext(stream)
        line.check(100)  # it has its first token
        await stream.aclose()
        line.check_invariants()

    asyncio.run(scenario())
