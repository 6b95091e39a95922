"""`data:` URL -> accepted picture: the scheme, the size, the base64 text and the file's header are checked here."""

import binascii
import re
from dataclasses import replace

from server.errors import InvalidImage, InvalidRequest
from server.image import ImageLimits, inspect_image
from server.request import ImageInput
from server.settings import Settings

_DATA_URL = re.compile(r"data:(image/[\w.+-]+)?;base64,", re.IGNORECASE)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,30}):")

_PIECE_CHARS = 2**18
"""Of base64 decoded in one call. The interpreter lock is held for each call, and the event loop waits for it."""


def image_limits(settings: Settings) -> ImageLimits:
    """What one picture may be, as the operator set it."""
    return ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_side=settings.max_image_side,
        max_aspect=settings.max_image_aspect,
    )


def is_remote(url: str) -> bool:
    """Whether the picture is elsewhere: `server.api.remote_images` is for such URLs, this module for all others."""
    scheme = _SCHEME.match(url)
    return scheme is not None and scheme[1].lower() in ("http", "https")


def read_image(url: str, limits: ImageLimits, *, param: str) -> ImageInput:
    """The picture of a `data:` URL. Takes milliseconds a megabyte: run it off the event loop.

    Args:
        url: `data:image/...;base64,...`.
        limits: what is accepted.
        param: path of the URL's field, for error messages.

    Raises:
        InvalidRequest: another kind of URL.
        InvalidImage: the picture exceeds a limit, or is no picture.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise _wrong_url(url, param)
    num_chars = len(url) - match.end()
    # Four characters stand for three bytes; the last group may stand for one.
    if num_chars // 4 * 3 - 2 > limits.max_bytes:
        raise InvalidImage(
            f"{param}: the image file has about {num_chars // 4 * 3} bytes; the limit is {limits.max_bytes}",
            param=param,
        )
    try:
        data = _decode_base64(url, match.end())
    except ValueError as err:  # binascii.Error is one, and so are characters outside ASCII
        raise InvalidImage(f"{param}: the data of the URL is not valid base64", param=param) from err
    try:
        return replace(inspect_image(data, limits), param=param)
    except InvalidImage as err:
        raise err.at(param) from err


def _decode_base64(url: str, start: int) -> bytes:
    if start == len(url) or (len(url) - start) % 4:
        raise ValueError("not groups of four characters")
    pieces = []
    for at in range(start, len(url), _PIECE_CHARS):
        piece = url[at : at + _PIECE_CHARS]
        # Padding elsewhere than at the end would pass unseen at the end of a piece.
        if piece.endswith("=") and at + _PIECE_CHARS < len(url):
            raise ValueError("padding before the end")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(pieces)


def _wrong_url(url: str, param: str) -> InvalidRequest:
    scheme = _SCHEME.match(url)
    name = scheme[1].lower() if scheme else None
    if name == "data":
        reason = "a data: URL must have the form data:image/TYPE;base64,DATA"
    else:
        reason = "only data: URLs, and where the server allows it https: and http: URLs, are accepted"
    return InvalidRequest(f"{param}: {reason}", param=param)
