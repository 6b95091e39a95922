"""`data:` URLs: what is accepted, and what is refused before it is decoded."""

import base64

import pytest

from server.api import images
from server.api.images import image_limits, is_remote, read_image
from server.errors import InvalidImage, InvalidRequest
from server.image import ImageLimits
from server.settings import Settings
from tests.support.pictures import data_url, draw_page, encode

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=10_000, max_side=500, max_aspect=10)
PNG = encode(draw_page(80, 60))
PARAM = "messages[0].content[0].image_url.url"


def read(url: str, limits: ImageLimits = LIMITS) -> bytes:
    return read_image(url, limits, param=PARAM).data


def refusal(url: str, limits: ImageLimits = LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(url, limits)
    assert caught.value.param == PARAM
    assert caught.value.message.startswith(PARAM)
    return caught.value


def test_settings_become_limits() -> None:
    settings = Settings(max_image_bytes=2000, max_image_pixels=3, max_image_side=4, max_image_aspect=5)
    assert image_limits(settings) == ImageLimits(max_bytes=2000, max_pixels=3, max_side=4, max_aspect=5)


@pytest.mark.parametrize("prefix", ["data:image/png", "data:image/jpeg", "DATA:IMAGE/PNG", "data:"])
def test_the_data_decide_what_a_picture_is(prefix: str) -> None:
    """Clients often label what they have not looked at."""
    assert read(f"{prefix};base64,{base64.b64encode(PNG).decode()}") == PNG


def test_size_is_read_from_the_header() -> None:
    picture = read_image(data_url(PNG), LIMITS, param=PARAM)
    assert (picture.width, picture.height) == (80, 60)


@pytest.mark.parametrize("tail", [b"", b"x", b"xy", b"xyz"])
def test_pieces_of_base64_join_without_a_seam(tail: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_PIECE_CHARS", 8)
    assert read(data_url(PNG + tail)) == PNG + tail


@pytest.mark.parametrize("url", ["https://example.com/a.png", "HTTP://example.com/a.png", "https:x"])
def test_remote_pictures_are_known_by_their_scheme(url: str) -> None:
    assert is_remote(url)


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "ftp://x/y", "httpx://x", "//x/y", "", " http://x/"])
def test_other_pictures_are_not_remote(url: str) -> None:
    assert not is_remote(url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd", "", "blob:x", "\\\\host\\share"])
def test_other_urls_are_refused(url: str) -> None:
    assert "only data: URLs, and" in refusal(url).message


@pytest.mark.parametrize(
    "url", ["data:image/png,abcd", "data:text/plain;base64,abcd", "data:image/png;base64", "data:image/svg xml;base64,"]
)
def test_other_data_urls_are_refused(url: str) -> None:
    assert "data:image/TYPE;base64,DATA" in refusal(url).message


@pytest.mark.parametrize(
    "text", ["", "abc", "ab=d", "ab==abcd", "a_-d", "ab\nc", "abcd=", "äbcd", "ab c", "====", "abcdabcd=abc"]
)
@pytest.mark.parametrize("piece_chars", [4, 2**18])
def test_broken_base64_is_refused(text: str, piece_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_PIECE_CHARS", piece_chars)
    err = refusal(f"data:image/png;base64,{text}")
    assert isinstance(err, InvalidImage)
    assert "not valid base64" in err.message


def test_bytes_that_are_no_picture() -> None:
    assert isinstance(refusal(data_url(b"GIF?")), InvalidImage)


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        (ImageLimits(max_bytes=100, max_pixels=10_000, max_side=500, max_aspect=10), "100"),
        (ImageLimits(max_bytes=100_000, max_pixels=4799, max_side=500, max_aspect=10), "4799"),
        (ImageLimits(max_bytes=100_000, max_pixels=10_000, max_side=79, max_aspect=10), "79"),
        (ImageLimits(max_bytes=100_000, max_pixels=10_000, max_side=500, max_aspect=1.25), "1.25"),
    ],
)
def test_each_limit_is_named_with_its_value(limits: ImageLimits, number: str) -> None:
    assert number in refusal(data_url(PNG), limits).message


def test_a_picture_of_exactly_the_limit_passes() -> None:
    limits = ImageLimits(max_bytes=len(PNG), max_pixels=4800, max_side=80, max_aspect=4 / 3)
    assert read(data_url(PNG), limits) == PNG


def test_large_data_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decode_base64", lambda *_: pytest.fail("decoded"))
    assert "100000" in refusal(data_url(b"x" * 100_004)).message
