"""Pictures sent once to a real server, and batches that start a server of their own."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.__main__ import main
from tests.e2e.conftest import COMMON
from tests.support.golden import TINY_V2
from tests.support.pictures import draw_page, encode, question
from tests.support.server_process import ROOT, ServerProcess, wait_until


def test_a_stored_picture_is_the_picture(tmp_path: Path) -> None:
    server = ServerProcess(*COMMON, "--file-memory", "1MiB")
    try:
        client = server.client()
        page = draw_page(900, 400)
        file = client.files.create(file=("page.png", encode(page)), purpose="vision")
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0}
        sent = client.chat.completions.create(messages=question("What is it?", page), **asked)  # type: ignore[arg-type]
        part = {"type": "file", "file": {"file_id": file.id}}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
        stored = client.chat.completions.create(messages=messages, **asked)  # type: ignore[arg-type]
        assert stored.choices[0].message.content == sent.choices[0].message.content
        assert stored.usage.prompt_tokens == sent.usage.prompt_tokens
        assert server.metric("minicpmv_image_file_hits_total") >= 1

        body = asked | {"messages": messages}
        (tmp_path / "in.jsonl").write_text(
            "".join(
                json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
                for n in range(4)
            )
        )
        assert main(["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--url", server.url]) == 0
        for line in (tmp_path / "out.jsonl").read_text().splitlines():
            choice = json.loads(line)["response"]["body"]["choices"][0]
            assert choice["message"]["content"] == sent.choices[0].message.content
    finally:
        assert server.stop() == 0


def test_a_batch_with_its_own_server_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "prompt": "Once", "max_tokens": 40, "ignore_eos": True, "seed": number},
        }
        for number in range(30)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "server", "batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    command += ["--concurrency", "2", "--", "--model", str(TINY_V2), "--served-model-name", "tiny", *COMMON]
    output = tmp_path / "out.jsonl"
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    wait_until(lambda: output.exists() and output.stat().st_size > 0, 120, "the first answer")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert first.returncode in (0, 130)
    before = output.read_text().splitlines()
    assert before
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert second.returncode == 0, second.stderr
    after = output.read_text().splitlines()
    assert set(before) <= set(after)
    assert [json.loads(line)["custom_id"] for line in after] == [line["custom_id"] for line in lines]
    assert f"{30 - len(before)} requests asked now" in second.stderr
