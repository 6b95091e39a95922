"""A server that computes nothing: what is measured against it is the client's own cost.

It speaks just enough of HTTP and of the API for this package's client, on a thread of its own so that the time of the
client's thread can be told apart.
"""

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import orjson

_MODEL = "dummy"
_PACE_S = 0.001
"""Between two tokens of a stream. Without it the client would find many of them at each read, which costs it less than
those of a real server, that are apart in time."""


class DummyServer:
    """Listens on a free port of the loopback address while the `with` block lasts."""

    def __enter__(self) -> "DummyServer":
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="bench-dummy", daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._started.result()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._told_to_stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told_to_stop = asyncio.Event()
        server = await asyncio.start_server(self._answer_all, "127.0.0.1", 0)
        self._started.set_result(server.sockets[0].getsockname()[1])
        await self._told_to_stop.wait()
        server.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
                if head.startswith(b"GET "):
                    writer.write(_json_answer({"object": "list", "data": [{"id": _MODEL, "object": "model"}]}))
                else:
                    await _stream(writer, orjson.loads(body)["max_tokens"])
        writer.close()


async def _stream(writer: asyncio.StreamWriter, num_tokens: int) -> None:
    """Each token is a write of its own."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(_event(_chunk({"role": "assistant", "content": ""})))
    for _ in range(num_tokens):
        writer.write(_event(_chunk({"content": " word"})))
        await writer.drain()
        await asyncio.sleep(_PACE_S)
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}
    writer.write(_event(_chunk({}, finish_reason="length")) + _event({"choices": [], "usage": usage}))
    writer.write(_http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _chunk(delta: dict[str, str], *, finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": _MODEL}
    return head | {"choices": [choice], "usage": None}


def _event(data: dict[str, Any]) -> bytes:
    return _http_chunk(b"data: " + orjson.dumps(data) + b"\n\n")


def _http_chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _json_answer(data: dict[str, Any]) -> bytes:
    body = orjson.dumps(data)
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
