import base64
import io

import pytest
from PIL import Image

from server.bench.pictures import PictureSize, data_url, draw_picture, parse_mix


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
@pytest.mark.parametrize("size", [(448, 448), (1600, 300), (1, 1), (7, 900)])
def test_pictures_have_their_size_and_format(size, file_format):
    url = data_url(draw_picture(*size, seed="s", file_format=file_format), file_format)
    head, _, data = url.partition(",")
    assert head == f"data:image/{file_format};base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == size
    assert image.format == file_format.upper()


def test_the_seed_decides_the_pixels():
    def pixels(seed):
        return Image.open(io.BytesIO(draw_picture(64, 48, seed=seed, file_format="png"))).tobytes()

    assert pixels("a") == pixels("a") != pixels("b")


def test_mix():
    assert parse_mix("448x448:3, 1344x1000") == (PictureSize(448, 448, 3.0), PictureSize(1344, 1000, 1.0))
    assert str(PictureSize(448, 336, 1.0)) == "448x336"


@pytest.mark.parametrize(
    "text", ["", "448", "448x", "0x448", "448x448:", "448x448:0", "448x448:0.0", "99999x1", "1x1;2x2"]
)
def test_what_is_no_mix_is_refused(text):
    with pytest.raises(ValueError, match="448x448:3"):
        parse_mix(text)
