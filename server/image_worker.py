"""A process that decodes and cuts pictures of strangers: `python -m server.image_worker SOCKET MEMORY_BYTES`.

It has nothing to lose: no keys, no network, no other request's data but the picture before. It may take so much memory,
write no file, and be killed at any moment. `server.engine.picture_workers` has the other end.

    request   length of what follows as four bytes (big endian), JSON: size, plan, and `num_bytes` of the file; the file
    answer    length, JSON: seconds, or what is wrong with the picture; the crops' pixels, in the order of the plan
"""

import contextlib
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from model.slicing import SlicePlan, cut
from server.errors import InvalidImage
from server.image import decode_image
from server.request import ImageInput

LENGTH = struct.Struct(">I")
TOO_MUCH_MEMORY = "decoding the image takes more memory than the server allows"


def main(arguments: Sequence[str]) -> None:
    """Serve pictures until the other side closes the socket."""
    descriptor, memory_bytes = map(int, arguments)
    _limit_resources(memory_bytes)
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(ConnectionError, EOFError):
        send(connection, {"ready": True})
        while True:
            _serve_one(connection)


def _serve_one(connection: socket.socket) -> None:
    request = receive(connection)
    data = receive_bytes(connection, request["num_bytes"])
    source, grid, refine, one_slice = (None if size is None else (size[0], size[1]) for size in request["plan"])
    assert source is not None
    plan = SlicePlan(source, grid, refine, one_slice)
    began = time.perf_counter()
    try:
        decoded = decode_image(ImageInput(data, request["width"], request["height"]))
        after_decode = time.perf_counter()
        crops = cut(decoded, plan)
    except InvalidImage as err:
        send(connection, {"error": err.message})
        return
    except MemoryError:
        send(connection, {"error": TOO_MUCH_MEMORY})
        return
    send(connection, {"decode_s": after_decode - began, "slice_s": time.perf_counter() - after_decode})
    for crop in crops:
        connection.sendall(crop.data.cast("B"))


def _limit_resources(memory_bytes: int) -> None:
    """From here on: so much memory beyond what the process has already, no files, no dumps."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for limit, value in (
        (resource.RLIMIT_AS, used_bytes + memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(payload)) + payload)


def receive(connection: socket.socket) -> Any:
    """Raises EOFError when the other side is gone."""
    (size,) = LENGTH.unpack(receive_bytes(connection, LENGTH.size))
    return json.loads(receive_bytes(connection, size))


def receive_bytes(connection: socket.socket, num_bytes: int) -> bytes:
    """Raises EOFError when the other side is gone."""
    buffer = bytearray(num_bytes)
    receive_into(connection, memoryview(buffer))
    return bytes(buffer)


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fills the buffer. Raises EOFError when the other side is gone."""
    while view:
        num_received = connection.recv_into(view)
        if num_received == 0:
            raise EOFError
        view = view[num_received:]


if __name__ == "__main__":
    main(sys.argv[1:])
