"""Pictures for tests: drawn on the spot, and the message parts that carry them."""

import base64
import io
from typing import Any

from PIL import Image, ImageDraw, ImageFont


def draw_page(width: int, height: int, text: str = "TOTAL 12.50", background: str = "white") -> Image.Image:
    """A page with lines of text and a few shapes, different for each size, text and background."""
    image = Image.new("RGB", (width, height), background)
    pen = ImageDraw.Draw(image)
    size = max(12, min(width, height) // 12)
    font = ImageFont.load_default(size)
    for line, top in enumerate(range(size, height - size, size * 2)):
        pen.text((size, top), f"{line + 1}. {text}", fill="black", font=font)
    pen.ellipse((width * 0.6, height * 0.6, width * 0.9, height * 0.9), outline="red", width=3)
    return image


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(image: Image.Image | bytes, mime: str = "image/png") -> dict[str, Any]:
    data = image if isinstance(image, bytes) else encode(image)
    return {"type": "image_url", "image_url": {"url": data_url(data, mime)}}


def question(text: str, *images: Image.Image | bytes) -> list[dict[str, Any]]:
    """One user message: the pictures, then the text."""
    parts = [image_part(image) for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
