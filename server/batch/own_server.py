"""A server for the time of one batch: a process of its own on a free port of this machine, with a key of its own."""

import asyncio
import re
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import orjson

_LISTENS = re.compile(rb"listens on (http://\S+)")
_STOP_S = 60.0


class ServerError(Exception):
    """The server did not start; it has said why on standard error."""


@asynccontextmanager
async def own_server(arguments: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[tuple[str, str]]:
    """URL and key of a server that is ready, for the time of the block.

    Args:
        arguments: flags of `minicpmv serve`.
        environment: of this process, with the settings that are in it.

    Raises:
        ServerError: it ended before it was ready.
    """
    key = secrets.token_urlsafe(32)
    settings = {
        "MINICPMV_HOST": "127.0.0.1",
        "MINICPMV_PORT": "0",
        # Others on this machine could reach the port.
        "MINICPMV_API_KEYS": orjson.dumps([key]).decode(),
        "MINICPMV_LOG_LEVEL": environment.get("MINICPMV_LOG_LEVEL", "warning"),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "serve", *arguments),
        env=dict(environment) | settings | {"PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # An interruption at the terminal reaches this process alone, which ends the other when it is done.
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        # A few kilobytes in all, which the pipe holds: nobody has to read on.
        yield await _wait_ready(process.stdout), key
    finally:
        await _stop(process)


async def _wait_ready(output: asyncio.StreamReader) -> str:
    url = None
    async for line in output:
        if found := _LISTENS.search(line):
            url = found[1].decode()
        elif url is not None:
            # The next thing that it prints is how it is to be used.
            return url
    raise ServerError("the server ended before it was ready")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
