"""The answers to several prompts as one stream of events."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from server.request import TokenEvent


async def merged(
    streams: Sequence[AsyncGenerator[TokenEvent, None]], *, num_choices: int
) -> AsyncGenerator[TokenEvent, None]:
    """The events of all streams as they come. Closes the streams, also when it is closed early or one of them fails.

    Args:
        num_choices: of each stream; choice i of stream s becomes choice s * num_choices + i.

    Raises:
        Exception: what the first stream to fail raised.
    """
    # One place: a slow reader holds every stream back, and what piles up meanwhile leaves as one event a choice.
    arrived: asyncio.Queue[TokenEvent | Exception | None] = asyncio.Queue(1)

    async def pass_on(number: int, stream: AsyncGenerator[TokenEvent, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    await arrived.put(replace(event, choice=number * num_choices + event.choice))
        except Exception as err:  # it is raised where the events are read
            await arrived.put(err)
        else:
            await arrived.put(None)

    passing = [asyncio.create_task(pass_on(number, stream)) for number, stream in enumerate(streams)]
    num_open = len(streams)
    try:
        while num_open:
            event = await arrived.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                num_open -= 1
            else:
                yield event
    finally:
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
        # A task that was cancelled before its first step has not opened its stream, and so has not closed it either.
        for stream in streams:
            await stream.aclose()
