"""What the operator reads when the server is up: what runs, what it took, and a first question to paste."""

import base64
import json
import textwrap
from io import BytesIO

from PIL import Image, ImageDraw

from server.engine.channel import Ready
from server.request import ModelInfo

_WIDTH = 100


def banner(model: ModelInfo, ready: Ready, *, url: str, needs_key: bool) -> str:
    """Some lines of text for the terminal.

    Args:
        model: what is served, with its final context.
        ready: what the engine said of itself.
        url: of the server, without a path.
        needs_key: the curl line shows where a key goes.
    """
    rows = [
        ("model", f"{model.model_id} (MiniCPM-V {model.release})"),
        ("device", f"{ready.device}, computing in {ready.dtype}"),
        *((("", ready.kernels),) if ready.kernels is not None else ()),
        ("weights", f"{ready.weights}, {_size(ready.weight_bytes)}, loaded in {ready.load_s:.1f} s"),
        ("KV cache", f"{ready.kv}, {ready.num_kv_blocks * ready.kv_block_tokens} tokens, {_size(ready.kv_bytes)}"),
        ("memory", f"{_size(ready.memory_budget_bytes)} at the most"),
        *(("", f"{_size(num_bytes):>10}  {name}") for name, num_bytes in ready.memory if num_bytes),
        ("context", f"{model.max_context_tokens} tokens, prompt and answer"),
        ("API", f"{url}/v1"),
    ]
    lines = ["", *(f"  {name:<9} {value}" for name, value in rows), ""]
    if model.demonstration is not None:
        note = textwrap.wrap(model.demonstration.summary(), _WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += [*note, ""]
    lines += ["  Ask about a small picture:", "", _curl(model.model_id, url, needs_key=needs_key), ""]
    return "\n".join(lines)


def _curl(model_id: str, url: str, *, needs_key: bool) -> str:
    picture = base64.b64encode(_red_circle_png()).decode()
    body = {
        "model": model_id,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "text", "text": "Describe the picture."},
                ],
            }
        ],
        "max_tokens": 64,
    }
    key = ' -H "Authorization: Bearer $MINICPMV_API_KEY"' if needs_key else ""
    # A quote within a shell's quotes: a model id may be the name of any folder.
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{text}'"


def _red_circle_png() -> bytes:
    """A picture of 96 x 96 pixels, a red circle on white, in two hundred bytes: a bit a pixel."""
    image = Image.new("P", (96, 96))
    image.putpalette(b"\xff\xff\xff\xd8\x20\x24")
    ImageDraw.Draw(image).ellipse((24, 24, 72, 72), fill=1)
    buffer = BytesIO()
    image.save(buffer, "PNG", bits=1)
    return buffer.getvalue()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
