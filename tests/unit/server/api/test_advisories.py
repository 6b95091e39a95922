"""What has brought down or opened other servers of this kind, tried here: docs/advisories.md has the list.

Most of it is held by the tests of the module concerned, which that page names; here is what had no test of its own.
"""

import ast
import hmac
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.api.auth import load_keys
from server.image import ImageLimits, decode_image, inspect_image
from server.settings import Settings
from tests.support.api_server import HELLO, ApiServer, serve
from tests.support.fake_engine import FakeEngine
from tests.support.pictures import draw_page, image_part

ROOT = Path(__file__).resolve().parents[4]
PAGE = ROOT / "docs" / "advisories.md"
LIMITS = ImageLimits(max_bytes=10**8, max_pixels=10**8, max_side=20_000, max_aspect=400)
SOURCES = [
    path for folder in ("server", "model") for path in sorted((ROOT / folder).rglob("*.py")) if "demo" not in path.parts
]
"""The training of the demo is no part of a server."""


def test_each_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^ *def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize(
    "text",
    [
        "![picture](http://127.0.0.1:{port}/health)",
        "<img src='http://127.0.0.1:{port}/x.png'>",
        "http://127.0.0.1:{port}/x.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_a_picture_named_in_a_text_is_text(text: str) -> None:
    """TGI, CVE-2026-0599: links in Markdown were fetched."""
    with serve(remote_images="open") as server:
        assert server.chat([{"role": "user", "content": text}]).status_code == 200
        (message,) = server.engine.requests[0].messages
        assert (message.images, message.text) == ((), text)
        assert server.metric("image_fetch_failures_total", reason="address") == 0
        assert server.metric("image_fetch_seconds_count") == 0


@pytest.mark.parametrize(
    "field",
    [
        {"prompt_embeds": "AAAA"},
        {"chat_template": "{{ 7 * 7 }}"},
        {"chat_template_kwargs": {"tokenize": False}},
        {"mm_processor_kwargs": {"max_pixels": 1}},
        {"documents": [{}]},
        {"add_special_tokens": True},
        {"logits_processors": ["os.system"]},
        {"vllm_xargs": {"x": 1}},
        {"custom_logit_processor": "AAAA"},
        {"__class__": {}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_no_tensors_templates_or_code_from_a_request(server: ApiServer, field: dict[str, Any]) -> None:
    """vLLM, CVE-2025-62164 and GHSA-69j4-grxj-j64p; SGLang, CVE-2026-5760."""
    response = server.chat(**field)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(field))
    assert server.engine.requests == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "image_pil", "image_pil": "AAAA"},
        {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,AAAA"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
        {**image_part(draw_page(8, 8)), "uuid": "somebody-else's"},
    ],
    ids=lambda part: "uuid" if "uuid" in part else str(part["type"]),
)
def test_other_kinds_of_parts_and_a_clients_own_hash_are_refused(server: ApiServer, part: dict[str, Any]) -> None:
    """vLLM, CVE-2026-34755 (frames of a video in one URL) and CVE-2026-105754 (a cache keyed by the client)."""
    response = server.chat([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}])
    assert response.status_code == 400
    assert server.engine.requests == []


def test_of_a_file_of_a_thousand_frames_one_is_decoded() -> None:
    """vLLM, CVE-2026-34755: a file of frames costs what its header says of one."""
    frames = [Image.new("L", (64, 48), level % 256) for level in range(1000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    picture = inspect_image(buffer.getvalue(), LIMITS)
    assert (picture.width, picture.height) == (64, 48)
    assert decode_image(picture).getpixel((0, 0)) == (0, 0, 0)


def test_a_key_is_compared_with_every_entry_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM, CVE-2025-59425: a plain comparison tells how much of a key was right."""
    keys = load_keys(Settings(api_keys=("one", "two", "three")))  # type: ignore[arg-type]  # str, as users write
    compared: list[bytes] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (b"one", b"three", b"none of them"):
        compared.clear()
        keys.accepts(key)
        assert len(compared) == 3
        assert {len(digest) for digest in compared} == {32}


def test_nothing_here_unpickles_evaluates_or_renders_templates() -> None:
    """SGLang, CVE-2026-3059 and -3060; LightLLM, CVE-2026-26220; vLLM, CVE-2025-66448."""
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jinja2", "runpy", "zmq"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module).partition(".")[0]]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "torch.load"):
                names = ["pickle"]
            elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                names = [] if ast.unparse(node.value) == "False" else ["pickle"]
            found += [f"{path.relative_to(ROOT)}: {name}" for name in names if name in modules]
    assert found == []


def test_the_guard_of_pillow_stays_on() -> None:
    """SGLang, CVE-2026-109229: MAX_IMAGE_PIXELS was switched off for the whole process."""
    look = (
        "import server.serve\n"
        "from PIL import Image, ImageFile\n"
        "assert Image.MAX_IMAGE_PIXELS and Image.MAX_IMAGE_PIXELS <= 178_956_970 // 2 + 1, Image.MAX_IMAGE_PIXELS\n"
        "assert not ImageFile.LOAD_TRUNCATED_IMAGES\n"
    )
    subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True)


def test_an_answer_to_one_bad_request_after_another_leaves_the_next_one_alone() -> None:
    """vLLM, CVE-2026-9540 and CVE-2026-105756: nothing of a refused request stays behind."""
    with serve(FakeEngine(), max_requests=2) as server:
        bad: list[Any] = [
            [{"role": "user", "content": [image_part(b"not a picture")]}],
            [{"role": "nobody", "content": "x"}],
            "not even a list",
        ]
        for messages in bad * 3:
            assert server.chat(messages).status_code == 400
        assert server.admission.num_held == 0
        assert server.chat(HELLO).status_code == 200
