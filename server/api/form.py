"""`multipart/form-data`: the parts of a body that is in memory, under its limit. Strict: what is odd is refused.

The search for each boundary is one call, so a body costs its length and nothing by the line; headers have a bound each,
and so has the number of parts.
"""

from dataclasses import dataclass
from email.message import Message

from server.errors import InvalidRequest, UnsupportedMediaType

_MAX_PARTS = 16
_MAX_HEADER_BYTES = 4096
"""Of one part."""

_MALFORMED = "invalid_form"


@dataclass(frozen=True, slots=True)
class FormPart:
    name: str
    filename: str | None
    data: bytes


def boundary_of(content_type: str) -> bytes:
    """The boundary that the Content-Type names.

    Raises:
        UnsupportedMediaType: it is no form, or names none.
    """
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or not boundary or len(boundary) > 70:
        raise UnsupportedMediaType("the Content-Type of the request must be multipart/form-data with a boundary")
    try:
        return boundary.encode("ascii")
    except UnicodeEncodeError as err:
        raise UnsupportedMediaType("the boundary of the form is not ASCII") from err


def read_form(body: bytes, boundary: bytes) -> dict[str, FormPart]:
    """The parts by their names.

    Raises:
        InvalidRequest: it is not a form of this boundary, a name is there twice, or the parts are too many.
    """
    delimiter = b"--" + boundary
    parts: dict[str, FormPart] = {}
    at = 0
    while True:
        if not body.startswith(delimiter, at):
            raise _malformed("does not begin with its boundary")
        at += len(delimiter)
        if body.startswith(b"--", at):
            return parts
        if not body.startswith(b"\r\n", at):
            raise _malformed("has a boundary that does not end its line")
        at += 2
        end_of_head = body.find(b"\r\n\r\n", at, at + _MAX_HEADER_BYTES)
        if end_of_head < 0:
            raise _malformed("has a part without an end to its headers")
        start = end_of_head + 4
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise _malformed("ends within a part")
        name, filename = _disposition(body[at:end_of_head])
        if name in parts:
            raise InvalidRequest(f"{name}: the form has this field twice", param=name)
        if len(parts) == _MAX_PARTS:
            raise _malformed(f"has more than {_MAX_PARTS} parts")
        parts[name] = FormPart(name, filename, body[start:end])
        at = end + 2


def _disposition(head: bytes) -> tuple[str, str | None]:
    """Name and file name of a part by its headers, of which nothing else is of use."""
    message = Message()
    for line in head.decode(errors="replace").split("\r\n"):
        header, colon, value = line.partition(":")
        if not colon or not header.strip() or "\n" in line or "\r" in line:
            raise _malformed("has a header that is none")
        if header.strip().lower() == "content-transfer-encoding" and value.strip().lower() not in ("binary", "8bit"):
            raise _malformed("has a part in a transfer encoding")
        message[header.strip()] = value.strip()
    name = message.get_param("name", header="content-disposition")
    if message.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise _malformed("has a part without a name")
    return name[:100], message.get_filename()


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the form {reason}", code=_MALFORMED)
