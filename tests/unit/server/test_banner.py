"""What the operator reads at the start, and that the curl line works when pasted."""

import io
import json
import shlex
from dataclasses import replace

from msgspec import structs
from PIL import Image

from server.api.images import read_image
from server.banner import banner
from server.demonstration import Accuracy, Demonstration
from server.engine.channel import Ready
from server.image import ImageLimits
from tests.support.fake_engine import MODEL

READY = Ready(
    device="cuda:0",
    dtype="bf16",
    weights="int8",
    kv="int8",
    weight_bytes=6_869_931_584,
    kv_bytes=300 * 2**20,
    memory_budget_bytes=8 * 2**30,
    memory=[("workspace", 300 * 2**20), ("graphs", 0)],
    num_kv_blocks=100,
    kv_block_tokens=16,
    num_crop_slots=4,
    num_host_slots=9,
    load_s=12.34,
    kernels=None,
)
URL = "http://127.0.0.1:8000"


def curl(text: str) -> list[str]:
    return next(shlex.split(line) for line in text.splitlines() if line.startswith("curl "))


def test_figures() -> None:
    text = banner(MODEL, READY, url=URL, needs_key=False)
    for part in (
        "openbmb/MiniCPM-V-2 (MiniCPM-V 2.0)",
        "cuda:0, computing in bf16",
        "int8, 6.40 GiB, loaded in 12.3 s",
        "int8, 1600 tokens, 300.0 MiB",
        "8.00 GiB at the most",
        " 300.0 MiB  workspace",
        "4096 tokens",
        f"{URL}/v1",
    ):
        assert part in text
    assert "graphs" not in text  # takes nothing
    assert "Measured" not in text


def test_a_cpu_says_which_kernels_run() -> None:
    line = "native kernels: none, torch's own are used instead: they were not built"
    assert line in banner(MODEL, structs.replace(READY, kernels=line), url=URL, needs_key=False)
    assert "kernels" not in banner(MODEL, READY, url=URL, needs_key=False)


def test_curl_line_asks_about_a_red_circle() -> None:
    arguments = curl(banner(MODEL, READY, url=URL, needs_key=False))
    assert f"{URL}/v1/chat/completions" in arguments
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert body["model"] == MODEL.model_id
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    limits = ImageLimits(max_bytes=1000, max_pixels=10_000, max_side=100, max_aspect=2)
    picture = Image.open(io.BytesIO(read_image(url, limits, param="x").data)).convert("RGB")
    assert picture.size == (96, 96)
    assert [picture.getpixel(at) for at in ((0, 0), (48, 30), (48, 48), (95, 95))] == [
        (0xFF, 0xFF, 0xFF),
        *[(0xD8, 0x20, 0x24)] * 2,
        (0xFF, 0xFF, 0xFF),
    ]


def test_curl_line_survives_any_model_id() -> None:
    model = replace(MODEL, model_id='it\'s $HOME `x` "y"')
    arguments = curl(banner(model, READY, url=URL, needs_key=False))
    assert json.loads(arguments[arguments.index("-d") + 1])["model"] == model.model_id


def test_curl_line_shows_where_the_key_goes() -> None:
    arguments = curl(banner(MODEL, READY, url=URL, needs_key=True))
    assert "Authorization: Bearer $MINICPMV_API_KEY" in arguments
    assert "Authorization" not in banner(MODEL, READY, url=URL, needs_key=False)


def test_the_demo_says_what_it_is_and_how_well_it_does() -> None:
    demo = Demonstration("A demonstration.", ("read", "count"), (Accuracy("counting", "right answers", 0.93, 0.911),))
    text = banner(replace(MODEL, demonstration=demo), READY, url=URL, needs_key=False)
    assert "A demonstration. It was trained to read, count." in " ".join(text.split())
    assert "counting 93% in English and 91% in Chinese (right answers)" in " ".join(text.split())
