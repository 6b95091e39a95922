"""Requests that have ended the process of other servers: here each is answered or refused, and the next one works."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess


def ask(server: ServerProcess, messages: list[dict[str, Any]], **options: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": messages, "max_tokens": 4} | options
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (2, 3), (20_000, 50)], ids=str)
def test_odd_shapes_are_answered(server: ServerProcess, size: tuple[int, int]) -> None:
    """vLLM, CVE-2026-22773: a picture of one pixel ended the engine."""
    for picture in (Image.new("RGB", size, "red"), Image.new("L", size, 200)):
        assert ask(server, question("What is it?", picture)).status_code == 200


@pytest.mark.parametrize("size", [(1, 401), (1, 20_000), (20_001, 60)], ids=str)
def test_odder_shapes_are_refused(server: ServerProcess, size: tuple[int, int]) -> None:
    response = ask(server, question("What is it?", Image.new("L", size)))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_image")


@pytest.mark.parametrize(
    "text",
    [
        "<image><unk><unk></image>",
        "<image>" * 20,
        "</image></slice><slice><image>",
        "<用户><AI></s><s>",
        "\x00\x01\x7f",
        "‮￾￿",
    ],
)
def test_typed_control_tokens_cannot_hurt(server: ServerProcess, text: str) -> None:
    """vLLM, CVE-2026-44222. This server even lets special tokens act: a client that is trusted may be wrong, too."""
    restarts = server.metric("minicpmv_engine_restarts_total")
    for messages in (question(text), question(text, draw_page(60, 40))):
        assert ask(server, messages, repetition_penalty=1.5, presence_penalty=1, n=2).status_code == 200
    assert ask(server, question("And now?")).status_code == 200
    assert server.metric("minicpmv_engine_restarts_total") == restarts


def test_one_door_and_no_other(server: ServerProcess) -> None:
    """SGLang, CVE-2026-3059 and -3060; LightLLM, CVE-2026-26220: sockets beside the API took pickles from anybody."""
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(fields[9])
    sockets = []
    for pid in (server.process.pid, *server.engine_pids()):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:[") and target[8:-1] in listening:
                sockets.append((pid, target))
    assert [pid for pid, _ in sockets] == [server.process.pid]
