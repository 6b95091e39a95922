"""Pictures of a stated mix of sizes, drawn from a seed, as `data:` URLs."""

import base64
import functools
import io
import random
import re
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from server.bench.prompts import WORDS

PictureFormat = Literal["png", "jpeg"]

_CELLS = 12
_MAX_SIDE = 20_000


@dataclass(frozen=True, slots=True)
class PictureSize:
    width: int
    """Pixels."""
    height: int
    weight: float
    """How often, relative to the other sizes of the mix."""

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_mix(text: str) -> tuple[PictureSize, ...]:
    """The sizes in `448x448:3,1344x1344`: three of four pictures are small.

    Raises:
        ValueError: a part is not WIDTHxHEIGHT or WIDTHxHEIGHT:WEIGHT.
    """
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)(?::(\d+(?:\.\d+)?))?", part.strip())
        size = match and PictureSize(int(match[1]), int(match[2]), float(match[3] or 1))
        if not size or not 0 < size.width <= _MAX_SIDE or not 0 < size.height <= _MAX_SIDE or not size.weight:
            raise ValueError(f"{part!r} is not a size of picture; write for example 448x448 or 448x448:3")
        sizes.append(size)
    return tuple(sizes)


def draw_picture(width: int, height: int, *, seed: str, file_format: PictureFormat) -> bytes:
    """A picture file: coarse random colours with lines of words on it, as a photographed note might have.

    Two seeds never give the same pixels for practical purposes: 144 random colours.
    """
    rng = random.Random(seed)
    cells = Image.frombytes("RGB", (_CELLS, _CELLS), rng.randbytes(_CELLS * _CELLS * 3))
    image = cells.resize((width, height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    size = max(8, min(width, height) // 16)
    font = _font(size)
    for top in range(size, height - size, size * 3):
        pen.text((size, top), " ".join(rng.choices(WORDS, k=4)), fill="white", font=font)
    buffer = io.BytesIO()
    if file_format == "png":
        # The fastest level: drawing must not become the load.
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; unpacking it takes longer than drawing a small picture."""
    return ImageFont.load_default(size)


def data_url(data: bytes, file_format: PictureFormat) -> str:
    return f"data:image/{file_format};base64,{base64.b64encode(data).decode()}"
