import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from server.errors import InvalidImage
from server.image import ImageLimits, decode_image, inspect_image
from tests.support.pictures import draw_page, encode

LIMITS = ImageLimits(max_bytes=10**6, max_pixels=10**6, max_side=5000, max_aspect=400.0)


def decode(data, limits=LIMITS):
    return decode_image(inspect_image(data, limits))


def noise(width=40, height=30, channels=3):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
def test_every_accepted_format_decodes_to_rgb(file_format):
    picture = draw_page(60, 40)
    options = {"lossless": True} if file_format == "WEBP" else {}
    image_input = inspect_image(encode(picture, file_format, **options), LIMITS)
    decoded = decode_image(image_input)
    assert (image_input.width, image_input.height) == decoded.size == (60, 40)
    assert decoded.mode == "RGB"
    difference = np.abs(np.asarray(decoded, dtype=int) - np.asarray(picture, dtype=int))
    assert difference.mean() < (5 if file_format in ("JPEG", "GIF") else 0.01)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(draw_page(60, 40), file_format, exif=exif)
    image_input = inspect_image(data, LIMITS)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert (image_input.width, image_input.height) == upright.size
    assert upright.size == ((60, 40) if orientation < 5 else (40, 60))
    assert decode_image(image_input).tobytes() == upright.tobytes()


def test_orientation_behind_the_pixels_of_a_png_does_not_change_the_promised_size():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned, plain = encode(draw_page(60, 40), exif=exif), encode(draw_page(60, 40))
    start = turned.index(b"eXIf") - 4
    chunk = turned[start : start + 12 + struct.unpack(">I", turned[start : start + 4])[0]]
    end = plain.index(b"IEND") - 4
    assert decode(plain[:end] + chunk + plain[end:]).size == (60, 40)


def test_alpha_is_dropped_without_blending():
    pixels = noise(channels=4)
    decoded = decode(encode(Image.fromarray(pixels, "RGBA")))
    assert np.array_equal(np.asarray(decoded), pixels[:, :, :3])


def test_grey_is_repeated_and_its_alpha_dropped():
    grey = noise(channels=1)
    alpha = Image.new("L", (40, 30), 7)
    for picture in (Image.fromarray(grey), Image.merge("LA", (Image.fromarray(grey), alpha))):
        assert np.array_equal(np.asarray(decode(encode(picture))), np.repeat(grey[:, :, None], 3, axis=2))


def test_one_bit_becomes_black_and_white():
    bits = Image.fromarray(noise(channels=1) > 127)
    assert bits.mode == "1"
    assert set(np.asarray(decode(encode(bits))).flatten().tolist()) == {0, 255}


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 250, 10))])
def test_palettes_are_looked_up_whatever_is_transparent(transparency):
    picture = draw_page(60, 40).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    decoded = decode(encode(picture, "PNG", **options))
    assert decoded.tobytes() == picture.convert("RGB").tobytes()


def test_sixteen_bit_grey_keeps_its_high_byte():
    values = np.array([[0, 255, 256, 0x1234, 0x80FF, 0xFFFF]], dtype=np.uint16)
    decoded = decode(encode(Image.fromarray(values)))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 1, 0x12, 0x80, 255]


def test_sixteen_bit_grey_is_turned_upright_too():
    values = np.array([[0x0100, 0x0200, 0x0300]], dtype=np.uint16)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    decoded = decode(encode(Image.fromarray(values), exif=exif))
    assert np.asarray(decoded)[:, 0, 0].tolist() == [1, 2, 3]


def test_cmyk_jpeg_is_converted():
    picture = draw_page(60, 40).convert("CMYK")
    data = encode(picture, "JPEG", quality=95)
    assert decode(data).tobytes() == Image.open(BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(file_format):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert set(decode(data).get_flattened_data()) == {(255, 0, 0)}


def test_one_pixel():
    assert decode(encode(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("file_format", ["TIFF", "PPM", "ICO", "TGA", "JPEG2000"])
def test_formats_not_on_the_list_are_refused(file_format):
    with pytest.raises(InvalidImage, match="not a readable JPEG, PNG, WebP, GIF or BMP file"):
        inspect_image(encode(draw_page(64, 64), file_format), LIMITS)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff\xe0", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InvalidImage, match="not a readable"):
        inspect_image(data, LIMITS)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_truncated_files_are_refused_with_a_fixed_text(file_format):
    data = encode(Image.fromarray(noise(200, 150)), file_format)
    with pytest.raises(InvalidImage) as caught:
        decode(data[: len(data) // 2])
    assert caught.value.message in (
        "the image data is truncated or damaged",
        "the image is not a readable JPEG, PNG, WebP, GIF or BMP file",
    )
    assert caught.value.status == 400


def test_a_header_without_pixels_passes_inspection_and_fails_decoding():
    image_input = inspect_image(png_header(100, 50), LIMITS)
    assert (image_input.width, image_input.height) == (100, 50)
    with pytest.raises(InvalidImage, match="truncated or damaged"):
        decode_image(image_input)


def test_a_picture_that_is_not_the_size_that_was_inspected_is_refused():
    image_input = inspect_image(png_header(100, 50), LIMITS)
    other = type(image_input)(encode(draw_page(60, 40)), image_input.width, image_input.height)
    with pytest.raises(InvalidImage, match="truncated or damaged"):
        decode_image(other)


def test_each_limit_is_named_with_the_value():
    def refusal(width, height, **limits):
        whole = {"max_bytes": 10**6, "max_pixels": 10**9, "max_side": 10**6, "max_aspect": 10**6} | limits
        with pytest.raises(InvalidImage) as caught:
            inspect_image(png_header(width, height), ImageLimits(**whole))
        return caught.value.message

    num_bytes = len(png_header(1, 1))
    assert (
        refusal(1, 1, max_bytes=num_bytes - 1) == f"the image file has {num_bytes} bytes; the limit is {num_bytes - 1}"
    )
    assert refusal(30, 20, max_pixels=599) == "the image of 30 x 20 pixels has 600 pixels; the limit is 599"
    assert refusal(30, 20, max_side=29) == "the image of 30 x 20 pixels has a side of 30; the limit is 29"
    assert refusal(20, 30, max_aspect=1.4) == "the image of 20 x 30 pixels has an aspect ratio of 1.5; the limit is 1.4"


def test_a_picture_exactly_at_every_limit_is_accepted():
    data = png_header(30, 20)
    inspect_image(data, ImageLimits(max_bytes=len(data), max_pixels=600, max_side=30, max_aspect=1.5))


def test_sides_are_checked_as_they_stand_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    with pytest.raises(InvalidImage, match="40 x 60 pixels has a side of 60"):
        inspect_image(encode(draw_page(60, 40), exif=exif), ImageLimits(10**6, 10**6, 59, 400.0))


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_from_the_header(size):
    with pytest.raises(InvalidImage, match=r"more pixels than the limit of 1000000|not a readable"):
        inspect_image(png_header(*size), LIMITS)


@pytest.mark.parametrize("data", [png_header(0, 5), png_header(5, 0)])
def test_no_picture_is_empty(data):
    with pytest.raises(InvalidImage, match="not a readable"):
        inspect_image(data, LIMITS)


def test_want_of_memory_is_not_blamed_on_the_picture(monkeypatch):
    image_input = inspect_image(encode(draw_page(60, 40)), LIMITS)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        inspect_image(image_input.data, LIMITS)
    with pytest.raises(MemoryError):
        decode_image(image_input)


def test_no_error_tells_of_the_decoder():
    for data in (b"\x89PNG\r\n\x1a\n", png_header(100, 50), b"BM" + b"\xff" * 60):
        with pytest.raises(InvalidImage) as caught:
            decode(data)
        assert "0x" not in caught.value.message
        assert "PIL" not in caught.value.message
