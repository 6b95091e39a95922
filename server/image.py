"""One picture file: checked by its header, later decoded to upright RGB. No torch, no event loop.

Checking and decoding are apart because refusing must be cheap: size, aspect and context are settled from the header,
and only a request that will be answered has its pixels decoded.
"""

import logging
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageFile

from server.errors import InvalidImage
from server.request import ImageInput

logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""An allow-list: other plugins of Pillow decode formats nobody sends and bring their own faults."""

# EXIF orientation -> what turns the stored picture upright; 1 is upright, unknown values count as 1.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAP = frozenset({5, 6, 7, 8})

_UNREADABLE = "the image is not a readable JPEG, PNG, WebP, GIF or BMP file"
_DAMAGED = "the image data is truncated or damaged"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one picture may be. A picture exactly at a limit is accepted."""

    max_bytes: int
    """Of the encoded file."""
    max_pixels: int
    """Width x height. At most 178,956,970, where Pillow's own guard against decompression bombs stands."""
    max_side: int
    """Pixels of the longer side."""
    max_aspect: float
    """Longer side over shorter side; a thin picture becomes a very long crop."""


def inspect_image(data: bytes, limits: ImageLimits) -> ImageInput:
    """The picture with its upright size, read from the header alone; no pixel is decoded.

    Args:
        data: a whole JPEG, PNG, WebP, GIF or BMP file.
        limits: what is accepted.

    Raises:
        InvalidImage: another format, a damaged header, or a limit exceeded (the message names limit and value).
    """
    if len(data) > limits.max_bytes:
        raise InvalidImage(f"the image file has {len(data)} bytes; the limit is {limits.max_bytes}")
    try:
        image = _open(data)
        width, height = image.size
        if _orientation(image) in _SIDES_SWAP:
            width, height = height, width
    except MemoryError:
        raise  # the server's trouble, not the picture's
    except Image.DecompressionBombError as err:
        raise InvalidImage(f"the image has more pixels than the limit of {limits.max_pixels}") from err
    except Exception as err:  # Pillow's plugins raise almost anything on hostile files; the text may hold addresses
        raise InvalidImage(_UNREADABLE) from err
    _check_size(width, height, limits)
    return ImageInput(data=data, width=width, height=height)


def decode_image(image_input: ImageInput) -> Image.Image:
    """The first frame as an upright picture in mode RGB, of exactly the size that `inspect_image` promised.

    Alpha is dropped without blending, palettes are looked up, grey is repeated three times, as the model was trained
    (Pillow's `convert("RGB")`). Of 16-bit grey the high byte is kept, as Pillow does for 16-bit colour; `convert`
    alone would clip nearly every value to white.

    Raises:
        InvalidImage: the data is truncated or damaged.
    """
    try:
        opened = _open(image_input.data)
        # Before load(), like the inspection: a PNG may name another orientation behind its pixels.
        turn = _UPRIGHT.get(_orientation(opened))
        opened.load()
        # A transparent colour is only a note beside the pixels, but convert() would translate it, with warnings.
        opened.info.pop("transparency", None)
        image: Image.Image = opened
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        # Turned before the conversion, when palettes and grey still take a third of the memory.
        if turn is not None:
            image = image.transpose(turn)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as err:
        logger.info("a picture could not be decoded: %s", type(err).__name__)
        raise InvalidImage(_DAMAGED) from err
    if rgb.size != (image_input.width, image_input.height):
        raise InvalidImage(_DAMAGED)
    return rgb


def _open(data: bytes) -> ImageFile.ImageFile:
    return Image.open(BytesIO(data), formats=_FORMATS)


def _orientation(image: ImageFile.ImageFile) -> int:
    # The base class's method: PngImageFile's own decodes all pixels to look for EXIF data behind them.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) else 1


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    size = f"the image of {width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise InvalidImage(f"{size} has {width * height} pixels; the limit is {limits.max_pixels}")
    longer, shorter = max(width, height), min(width, height)
    if longer > limits.max_side:
        raise InvalidImage(f"{size} has a side of {longer}; the limit is {limits.max_side}")
    if longer > limits.max_aspect * shorter:
        raise InvalidImage(f"{size} has an aspect ratio of {longer / shorter:.1f}; the limit is {limits.max_aspect:g}")
