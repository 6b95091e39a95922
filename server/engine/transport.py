"""The two ends of the socket pair: asyncio in the API process, two threads in the engine.

The engine's step loop must never wait for the API process, so it only touches queues: one thread fills the inbox,
another sends what the loop publishes.
"""

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from typing import Self

from server.engine.channel import (
    HEADER_BYTES,
    EngineConfig,
    FromEngine,
    ToEngine,
    decode_config,
    decode_from_engine,
    decode_to_engine,
    encode_frame,
    payload_size,
)


class ApiEnd:
    """The API process's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def attach(cls, end: socket.socket) -> Self:
        """Takes over the socket."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: EngineConfig | ToEngine) -> None:
        """Queues a message and returns at once; does nothing once the engine is gone.

        Without flow control on purpose: admission bounds how many requests there are, so how much can pile up, and
        an abort must get out also while its task is being cancelled.
        """
        if not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def receive(self) -> FromEngine | None:
        """The next message; None when the engine has closed its end.

        Raises:
            ChannelError: the engine sent something else than a message.
        """
        try:
            size = payload_size(await self._reader.readexactly(HEADER_BYTES))
            return decode_from_engine(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # the engine was first
            await self._writer.wait_closed()


class EngineEnd:
    """The engine process's end. `inbox` and `publish` are what the step loop sees."""

    def __init__(self, end: socket.socket, on_eof: Callable[[], None]) -> None:
        """`on_eof` is called from the reading thread when the API process is gone."""
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[FromEngine | None] = queue.SimpleQueue()
        self._socket = end
        self._on_eof = on_eof
        self._reader = threading.Thread(target=self._read, name="channel-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="channel-writer", daemon=True)

    def receive_config(self) -> EngineConfig | None:
        """The first frame, before `start`; None when the API process is gone already."""
        payload = self._receive_frame()
        return None if payload is None else decode_config(payload)

    def start(self) -> None:
        self._reader.start()
        self._writer.start()

    def publish(self, message: FromEngine) -> None:
        self._outbox.put(message)

    def flush(self) -> None:
        """Returns when everything published so far has been handed to the socket; nothing can be sent after."""
        self._outbox.put(None)
        self._writer.join()

    def _read(self) -> None:
        while (payload := self._receive_frame()) is not None:
            self.inbox.put(decode_to_engine(payload))
        self._on_eof()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._socket.sendall(encode_frame(message))
            except ConnectionError:
                return  # the reading thread sees the end too and reports it

    def _receive_frame(self) -> bytes | None:
        header = self._receive(HEADER_BYTES)
        return None if header is None else self._receive(payload_size(header))

    def _receive(self, num_bytes: int) -> bytes | None:
        """Exactly that many bytes, or None at the end of the stream."""
        received = bytearray()
        while len(received) < num_bytes:
            try:
                chunk = self._socket.recv(num_bytes - len(received))
            except ConnectionError:
                return None
            if not chunk:
                return None
            received += chunk
        return bytes(received)
