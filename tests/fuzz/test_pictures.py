"""Picture files that hypothesis bends: each is decoded to the size that its header promised, or refused."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.errors import InvalidImage
from server.image import ImageLimits, decode_image, inspect_image
from tests.support.pictures import draw_page, encode

BOUNDED = settings(max_examples=200, deadline=None, derandomize=True)
# Small, so that a header that lies about its size costs little.
LIMITS = ImageLimits(max_bytes=10**6, max_pixels=10**6, max_side=20_000, max_aspect=400)
PAGE = draw_page(61, 43)


@cache
def seeds() -> tuple[bytes, ...]:
    frames = [PAGE, PAGE.rotate(180)]
    exif = Image.Exif()
    exif[274] = 6
    return (
        encode(PAGE, "JPEG"),
        encode(PAGE, "JPEG", progressive=True, exif=exif),
        encode(PAGE.convert("CMYK"), "JPEG"),
        encode(PAGE),
        encode(PAGE.convert("P")),
        encode(PAGE.convert("LA")),
        encode(PAGE.convert("1")),
        encode(Image.effect_noise((61, 43), 50).convert("I;16")),
        encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encode(PAGE, "GIF", save_all=True, append_images=frames[1:]),
        encode(PAGE, "WEBP"),
        encode(PAGE, "WEBP", lossless=True, save_all=True, append_images=frames[1:]),
        encode(PAGE, "BMP"),
        encode(Image.new("L", (1, 1))),
        encode(Image.new("L", (50, 20_000))),
    )


def check(data: bytes) -> None:
    try:
        picture = inspect_image(data, LIMITS)
        decoded = decode_image(picture)
    except InvalidImage:
        return
    assert decoded.mode == "RGB"
    assert decoded.size == (picture.width, picture.height)
    assert decoded.width * decoded.height <= LIMITS.max_pixels


def test_the_seeds_are_pictures() -> None:
    for data in seeds():
        decode_image(inspect_image(data, LIMITS))


@BOUNDED
@given(
    seed=st.integers(0, 14),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
)
def test_bytes_that_are_changed(seed: int, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(seeds()[seed])
    for place, new in changes:
        # Most of what a decoder decides stands in front.
        at = int(place**3 * (len(data) - 1))
        data[at : at + len(new)] = new
    check(bytes(data))


@BOUNDED
@given(seed=st.integers(0, 14), cut=st.floats(0, 1), tail=st.binary(max_size=20))
def test_files_that_end_early_or_go_on(seed: int, cut: float, tail: bytes) -> None:
    data = seeds()[seed]
    check(data[: int(cut * len(data))] + tail)


@BOUNDED
@given(first=st.integers(0, 14), second=st.integers(0, 14), at=st.floats(0, 1))
def test_files_of_two_halves(first: int, second: int, at: float) -> None:
    one, other = seeds()[first], seeds()[second]
    check(one[: int(at * len(one))] + other[int(at * len(other)) :])


@pytest.mark.parametrize(
    "magic", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP", b"BM"]
)
@BOUNDED
@given(rest=st.binary(max_size=100))
def test_anything_behind_the_right_beginning(magic: bytes, rest: bytes) -> None:
    check(magic + rest)
