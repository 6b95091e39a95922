"""What the operator reads when the server is up: what runs, what it took, and a first question to paste."""

import base64
import json
from io import BytesIO

from PIL import Image

from server.engine.channel import Ready
from server.request import ModelInfo

DEMO_NOTE = (
    "Note: the bundled demo checkpoint is untrained. Its answers are meaningless text; serve --model for real ones."
)


def banner(model: ModelInfo, ready: Ready, *, url: str, needs_key: bool, is_demo: bool) -> str:
    """Some lines of text for the terminal.

    Args:
        model: what is served, with its final context.
        ready: what the engine said of itself.
        url: of the server, without a path.
        needs_key: the curl line shows where a key goes.
        is_demo: adds the note that the demo is no trained model.
    """
    rows = [
        ("model", f"{model.model_id} (MiniCPM-V {model.release})"),
        ("device", f"{ready.device}, {ready.dtype}"),
        ("weights", f"{_size(ready.weight_bytes)}, loaded in {ready.load_s:.1f} s"),
        ("KV cache", f"{ready.num_kv_blocks * ready.kv_block_tokens} tokens, {_size(ready.kv_bytes)}"),
        ("context", f"{model.max_context_tokens} tokens, prompt and answer"),
        ("API", f"{url}/v1"),
    ]
    lines = ["", *(f"  {name:<9} {value}" for name, value in rows), ""]
    if is_demo:
        lines += [f"  {DEMO_NOTE}", ""]
    lines += ["  Ask about a small picture:", "", _curl(model.model_id, url, needs_key=needs_key), ""]
    return "\n".join(lines)


def _curl(model_id: str, url: str, *, needs_key: bool) -> str:
    picture = base64.b64encode(_two_halves_png()).decode()
    body = {
        "model": model_id,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "text", "text": "Which colours do you see?"},
                ],
            }
        ],
        "max_tokens": 64,
    }
    key = ' -H "Authorization: Bearer $MINICPMV_API_KEY"' if needs_key else ""
    # A quote within a shell's quotes: a model id may be the name of any folder.
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{text}'"


def _two_halves_png() -> bytes:
    """A picture of 32 x 32 pixels, red on the left and blue on the right, in a hundred bytes: a bit a pixel."""
    image = Image.new("P", (32, 32))
    image.putpalette(b"\xd0\x20\x20\x20\x40\xd0")
    image.paste(1, (16, 0, 32, 32))
    buffer = BytesIO()
    image.save(buffer, "PNG", bits=1)
    return buffer.getvalue()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
