"""The body of an answer, under a cap on what it is when decoded, and on what it takes to send it."""

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import aclosing

import httpcore2

from server.fetch.refusal import FetchRefused, Reason

_PIECE_BYTES = 256 * 1024
"""Decompressed in one call, in about a millisecond: the event loop waits for it."""
_FREE_PIECES = 1000
_MIN_MEAN_BYTES = 512
"""Of the pieces of a body, once there are many. Servers send kilobytes at a time; each piece costs its parsing, so a
body of single bytes would keep this process busy for minutes."""


class ByteBudget:
    """What all pictures of one request may still bring."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def take(self, num_bytes: int) -> None:
        """Raises FetchRefused when there is not so much left."""
        self._left -= num_bytes
        if self._left < 0:
            raise FetchRefused(
                Reason.REQUEST_SIZE,
                f"the remote pictures of the request have more than {self._max_bytes} bytes together, the limit",
            )


async def read_body(response: httpcore2.Response, *, max_bytes: int, budget: ByteBudget) -> list[bytes]:
    """The decoded body, in pieces.

    Args:
        response: with a status of 200.
        max_bytes: of the body, both as sent and decoded.
        budget: shared with the request's other pictures.

    Raises:
        FetchRefused: it is larger, or compressed otherwise than with gzip, or broken.
        httpcore2.NetworkError, httpcore2.ProtocolError: it ends too early, or is not HTTP.
    """
    too_large = FetchRefused(Reason.SIZE, f"the image file is larger than the limit of {max_bytes} bytes")
    declared = _header(response, b"content-length")
    # Only to refuse early; what arrives is counted whatever was declared.
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    gunzip = Gunzip() if _is_gzipped(response) else None
    pieces: list[bytes] = []
    num_sent = num_decoded = num_received = 0
    async with aclosing(response.aiter_stream()) as parts:
        async for data in parts:
            num_sent += len(data)
            num_received += 1
            if num_sent > max_bytes:
                raise too_large
            if num_received > _FREE_PIECES and num_sent < num_received * _MIN_MEAN_BYTES:
                raise FetchRefused(Reason.BROKEN, "the picture came in too many tiny pieces")
            for piece in gunzip.feed(data) if gunzip else (data,):
                num_decoded += len(piece)
                if num_decoded > max_bytes:
                    raise too_large
                budget.take(len(piece))
                pieces.append(piece)
                # What has arrived together is given out together, without a pause for anybody else.
                await asyncio.sleep(0)
    if gunzip:
        gunzip.check_ended()
    return pieces


class Gunzip:
    """Decompresses piece by piece, never more than the caller asks for."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decompresses to, in pieces of at most 256 KiB.

        Raises:
            FetchRefused: it is not gzip, or goes on behind its end.
        """
        while True:
            try:
                piece = self._zlib.decompress(data, _PIECE_BYTES)
            except zlib.error as err:
                raise _damaged() from err
            if self._zlib.unused_data:
                raise _damaged()
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail
            # A full piece may leave decoded bytes behind that need no more input.
            if not data and len(piece) < _PIECE_BYTES:
                return

    def check_ended(self) -> None:
        """Raises FetchRefused when something is missing."""
        if not self._zlib.eof:
            raise _damaged()


def _damaged() -> FetchRefused:
    return FetchRefused(Reason.BROKEN, "the answer of the host is damaged or incomplete")


def _is_gzipped(response: httpcore2.Response) -> bool:
    encoding = (_header(response, b"content-encoding") or b"identity").strip().lower()
    if encoding not in (b"identity", b"gzip", b"x-gzip"):
        raise FetchRefused(Reason.ENCODING, "the host sends the picture compressed in a way that is not accepted")
    return encoding != b"identity"


def _header(response: httpcore2.Response, name: bytes) -> bytes | None:
    """The values of a header; several are joined, as HTTP has it."""
    values = [value for key, value in response.headers if key.lower() == name]
    return b",".join(values) if values else None
