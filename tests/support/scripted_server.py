"""A server that answers as a test says, byte for byte, on the test's own event loop or on a thread."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import orjson

from server.bench.http import parse_url
from server.bench.target import Target, TargetSpec

MODELS = {"object": "list", "data": [{"id": "scripted", "object": "model"}]}


@dataclass(frozen=True)
class Asked:
    path: str
    head: str
    body: Any
    connection: int
    """1 for the first connection, and so on."""


Script = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def json_answer(body: Any, status: str = "200 OK") -> bytes:
    data = orjson.dumps(body)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def event(body: Any) -> bytes:
    return b"data: " + (body if isinstance(body, bytes) else orjson.dumps(body)) + b"\n\n"


def token(text: str = " word", **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None} | fields]})


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> bytes:
    counts: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    if cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return event({"choices": [], "usage": counts})


FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
DONE = event(b"[DONE]")
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(*pieces: bytes, ends: bool = True) -> bytes:
    framed = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return framed + (b"0\r\n\r\n" if ends else b"")


def whole_stream(num_tokens: int, prompt_tokens: int = 10) -> bytes:
    events = [token() for _ in range(num_tokens)]
    return STREAM_HEAD + chunked(*events, FINISH, usage(prompt_tokens, num_tokens), DONE)


class ScriptedServer:
    """Every GET is answered with the list of models; every POST runs the script."""

    def __init__(self, script: Script, get_statuses: Sequence[str] = ()) -> None:
        """
        Args:
            get_statuses: of the first GETs, in their order; later ones succeed.
        """
        self._script = script
        self._get_statuses = iter(get_statuses)
        self._num_connections = 0
        self._connections: list[asyncio.Task[None]] = []
        self.asked: list[Asked] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The server's URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections)

    @contextlib.contextmanager
    def on_a_thread(self) -> Iterator[str]:
        """The server's URL; for tests of code that runs a loop of its own."""
        started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def serve() -> None:
            stop = asyncio.Event()
            async with self.running() as url:
                started.set_result((url, asyncio.get_running_loop(), stop))
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        url, loop, stop = started.result()
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        connection = self._num_connections
        task = asyncio.current_task()
        assert task is not None
        self._connections.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [line[15:] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
                body = await reader.readexactly(int(lengths[0])) if lengths else b""
                asked = Asked(head.split()[1], head, orjson.loads(body) if body else None, connection)
                self.asked.append(asked)
                if head.startswith("GET "):
                    writer.write(json_answer(MODELS, next(self._get_statuses, "200 OK")))
                else:
                    await self._script(asked, writer)
        writer.close()


@contextlib.asynccontextmanager
async def scripted_target(script: Script, **options: Any) -> AsyncIterator[tuple[Target, ScriptedServer]]:
    """A target that has been opened, and its server."""
    server = ScriptedServer(script)
    async with server.running() as url:
        spec = TargetSpec(options.pop("name", "scripted"), url, parse_url(url), options.pop("extra", {}))
        target = Target(spec, api_key=options.pop("api_key", None), timeout_s=options.pop("timeout_s", 10.0))
        await target.open(options.pop("fields", {}))
        try:
            yield target, server
        finally:
            target.http.close()
