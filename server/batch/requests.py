"""The input of a batch: OpenAI's JSONL, looked through once as a whole and read again line by line when it is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_MAX_COMPLAINTS = 10


class InputError(Exception):
    """The file cannot be read, or lines of it are wrong; the message names them, each in a line of its own."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Where a request stands. Bodies may have pictures, so they are not kept."""

    custom_id: str
    route: str
    offset: int
    """In bytes from the beginning of the file."""
    num_bytes: int


def index_requests(path: Path) -> list[BatchRequest]:
    """All requests of the file, in their order.

    Raises:
        InputError: a line is wrong. Nothing has been asked by then, and the file is easily put right.
    """
    found: dict[str, BatchRequest] = {}
    complaints = []
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        request = _read(line, offset)
                        if request.custom_id in found:
                            raise ValueError(f"custom_id {request.custom_id!r} is there twice")
                        found[request.custom_id] = request
                    except ValueError as err:
                        complaints.append(f"{path}, line {number}: {err}")
                offset += len(line)
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    if complaints:
        more = len(complaints) - _MAX_COMPLAINTS
        rest = [f"and {more} more"] if more > 0 else []
        raise InputError("\n".join([*complaints[:_MAX_COMPLAINTS], *rest]))
    if not found:
        raise InputError(f"{path} holds no request")
    return list(found.values())


def read_body(file: BinaryIO, request: BatchRequest) -> bytes:
    """The request's body as JSON."""
    file.seek(request.offset)
    return orjson.dumps(orjson.loads(file.read(request.num_bytes))["body"])


def _read(line: bytes, offset: int) -> BatchRequest:
    """Raises ValueError, which says what is wrong with the line."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as err:
        raise ValueError(f"is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise ValueError("is not an object")
    custom_id, route = value.get("custom_id"), value.get("url")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError("has no custom_id")
    if value.get("method") != "POST":
        raise ValueError("has another method than POST")
    if route not in ROUTES:
        raise ValueError(f"has a url that is none of {', '.join(ROUTES)}")
    body = value.get("body")
    if not isinstance(body, dict):
        raise ValueError("has no body, or one that is not an object")
    if body.get("stream"):
        raise ValueError("asks for a stream, which a batch cannot have")
    return BatchRequest(custom_id, route, offset, len(line))
