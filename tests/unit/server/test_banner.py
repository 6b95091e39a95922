"""What the operator reads at the start, and that the curl line works when pasted."""

import io
import json
import shlex
from dataclasses import replace

from PIL import Image

from server.api.images import read_image
from server.banner import DEMO_NOTE, banner
from server.engine.channel import Ready
from server.hub import demo_folder
from server.image import ImageLimits
from tests.support.fake_engine import MODEL

READY = Ready(
    device="cuda:0",
    dtype="bfloat16",
    weight_bytes=6_869_931_584,
    kv_bytes=300 * 2**20,
    num_kv_blocks=100,
    kv_block_tokens=16,
    num_crop_slots=4,
    load_s=12.34,
)
URL = "http://127.0.0.1:8000"


def curl(text: str) -> list[str]:
    return next(shlex.split(line) for line in text.splitlines() if line.startswith("curl "))


def test_figures() -> None:
    text = banner(MODEL, READY, url=URL, needs_key=False, is_demo=False)
    for part in (
        "openbmb/MiniCPM-V-2 (MiniCPM-V 2.0)",
        "cuda:0, bfloat16",
        "6.40 GiB, loaded in 12.3 s",
        "1600 tokens, 300.0 MiB",
        "4096 tokens",
        f"{URL}/v1",
    ):
        assert part in text
    assert DEMO_NOTE not in text


def test_curl_line_asks_about_a_picture_of_two_colours() -> None:
    arguments = curl(banner(MODEL, READY, url=URL, needs_key=False, is_demo=False))
    assert f"{URL}/v1/chat/completions" in arguments
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert body["model"] == MODEL.model_id
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    limits = ImageLimits(max_bytes=1000, max_pixels=10_000, max_side=100, max_aspect=2)
    picture = Image.open(io.BytesIO(read_image(url, limits, param="x").data)).convert("RGB")
    assert picture.size == (32, 32)
    assert [picture.getpixel(at) for at in ((0, 0), (15, 31), (16, 0), (31, 31))] == [
        *[(0xD0, 0x20, 0x20)] * 2,
        *[(0x20, 0x40, 0xD0)] * 2,
    ]


def test_curl_line_survives_any_model_id() -> None:
    model = replace(MODEL, model_id='it\'s $HOME `x` "y"')
    arguments = curl(banner(model, READY, url=URL, needs_key=False, is_demo=False))
    assert json.loads(arguments[arguments.index("-d") + 1])["model"] == model.model_id


def test_curl_line_shows_where_the_key_goes() -> None:
    arguments = curl(banner(MODEL, READY, url=URL, needs_key=True, is_demo=False))
    assert "Authorization: Bearer $MINICPMV_API_KEY" in arguments
    assert "Authorization" not in banner(MODEL, READY, url=URL, needs_key=False, is_demo=False)


def test_the_demo_is_called_untrained_as_long_as_it_is() -> None:
    assert DEMO_NOTE in banner(MODEL, READY, url=URL, needs_key=False, is_demo=True)
    assert "untrained" in (demo_folder() / "README.md").read_text(encoding="utf-8")
