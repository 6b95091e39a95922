"""What a client's connection does to its request: it brings a body, perhaps slowly, and may go away at any moment."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from server.errors import PayloadTooLarge, RequestTimeout, UnsupportedMediaType

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection, or reads so slowly that it counts as gone. There is nobody to answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """The result of `work`, which is cancelled, and has ended, before ClientGone is raised.

    Args:
        receive: of the ASGI connection; the body must have been read.
        work: what the client waits for.
        others: run beside the work until it ends. When one raises first, the work is cancelled and its error raised.

    Raises:
        ClientGone: the client went away first.
    """
    working = asyncio.create_task(work)
    beside = [asyncio.create_task(_leaving(receive)), *map(asyncio.create_task, others)]
    try:
        done, _ = await asyncio.wait((working, *beside), return_when=asyncio.FIRST_COMPLETED)
        if working not in done:
            await done.pop()
        return await working
    finally:
        for one in (working, *beside):
            one.cancel()
        await asyncio.gather(working, *beside, return_exceptions=True)


async def _leaving(receive: Receive) -> None:
    # Nothing else can follow a body.
    message = await receive()
    assert message["type"] == "http.disconnect"
    raise ClientGone


async def read_json_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytearray:
    """The whole body, of which no byte beyond the limit is kept.

    Raises:
        UnsupportedMediaType: it is not plain JSON by its headers.
        PayloadTooLarge: by Content-Length, or by what has arrived.
        RequestTimeout: it did not arrive in time.
        ClientGone: the client went away on the way.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type of the request must be application/json")
    return await read_body(request, max_bytes=max_bytes, timeout_s=timeout_s)


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytearray:
    """The whole body, of whatever type, of which no byte beyond the limit is kept. Raises as `read_json_body`."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("the request body must not be compressed")
    too_large = PayloadTooLarge(f"the request body is larger than the limit of {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise too_large
                more = message.get("more_body", False)
    except TimeoutError as err:
        raise RequestTimeout(f"the request body did not arrive within {timeout_s:g} seconds") from err
    return body
