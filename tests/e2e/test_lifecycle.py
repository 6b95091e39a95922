"""A server's life and its engine's: clients that leave, an engine that dies, a drain, a bad start."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.conftest import COMMON
from tests.support.golden import TINY_V2
from tests.support.pictures import draw_page, question
from tests.support.server_process import ROOT, ServerProcess, wait_until

LONG = {"temperature": 0, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}


def is_idle(server: ServerProcess) -> bool:
    """No sequence waits or runs, and every KV block is free."""
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")
    return all(server.metric(f"minicpmv_{name}") == 0 for name in gauges)


@pytest.mark.parametrize("picture", [False, True], ids=["text", "picture"])
def test_client_that_leaves_a_stream_frees_its_place(server: ServerProcess, picture: bool) -> None:
    pictures = [draw_page(900, 900, "left")] if picture else []
    stream = server.client().chat.completions.create(
        model="tiny", messages=question("Tell me everything.", *pictures), stream=True, **LONG
    )
    for number, _ in enumerate(stream):
        if number == 3:
            break
    assert server.metric("minicpmv_num_requests_running") == 1
    stream.close()
    wait_until(lambda: is_idle(server), 20, "the blocks to come back")


def test_client_that_leaves_while_it_waits_for_a_whole_answer_frees_its_place(server: ServerProcess) -> None:
    body = {"messages": question("Tell me everything."), "model": "tiny", "max_tokens": 3000, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=1.0)
    wait_until(lambda: is_idle(server), 20, "the blocks to come back")


def test_clients_that_leave_before_their_first_token_free_their_places(chunked_server: ServerProcess) -> None:
    """The pictures are still being prepared or encoded when their clients go."""
    server = chunked_server

    def leave_early(number: int) -> None:
        body = {"messages": question("?", draw_page(1344, 1344, f"page {number}")), "model": "tiny", "stream": True}
        with contextlib.suppress(httpx.TimeoutException):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.15 + 0.1 * number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(leave_early, range(6)))
    wait_until(lambda: is_idle(server), 30, "the blocks to come back")
    completion = server.client().chat.completions.create(model="tiny", messages=question("Still there?"), max_tokens=4)
    assert completion.usage is not None
    assert completion.usage.completion_tokens >= 1


def test_killed_engine_comes_back() -> None:
    server = ServerProcess(*COMMON)
    try:
        client = server.client()
        stream = client.chat.completions.create(model="tiny", messages=question("Go on."), stream=True, **LONG)
        next(stream)
        seen: list[openai.APIStatusError] = []

        def ask_for_the_whole() -> None:
            try:
                client.chat.completions.create(model="tiny", messages=question("Go on."), **LONG)
            except openai.APIStatusError as err:
                seen.append(err)

        waiting = threading.Thread(target=ask_for_the_whole)
        waiting.start()
        wait_until(lambda: server.metric("minicpmv_num_requests_running") == 2, 20, "both to run")
        (engine,) = server.engine_pids()
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="engine"):
            for _ in stream:
                pass
        waiting.join(30)
        assert [err.status_code for err in seen] == [503]
        assert seen[0].response.headers["retry-after"].isdigit()
        wait_until(lambda: engine not in server.engine_pids(), 10, "the old engine to go")
        server.wait_ready()
        assert server.engine_pids() != [engine]
        answer = client.chat.completions.create(
            model="tiny", messages=question("Well?", draw_page(300, 200)), max_tokens=3
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 64
        assert server.metric("minicpmv_engine_restarts_total") == 1
    finally:
        assert server.stop() == 0


def test_readiness_is_false_while_the_engine_is_away() -> None:
    server = ServerProcess(*COMMON)
    try:
        (engine,) = server.engine_pids()
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: not server.is_ready(), 10, "readiness to turn false")
        assert server.get("/health/live").status_code == 200
        with pytest.raises(openai.APIStatusError) as caught:
            server.client().chat.completions.create(model="tiny", messages=question("Now?"))
        assert caught.value.status_code == 503
        server.wait_ready()
    finally:
        assert server.stop() == 0


def test_sigterm_lets_running_streams_finish() -> None:
    server = ServerProcess(*COMMON)
    try:
        client = server.client()
        stream = client.chat.completions.create(
            model="tiny",
            messages=question("Go on."),
            stream=True,
            temperature=0,
            max_tokens=300,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )
        next(stream)
        server.terminate()
        wait_until(lambda: not server.is_ready(), 10, "readiness to turn false")
        with pytest.raises((openai.APIStatusError, openai.APIConnectionError)):
            client.chat.completions.create(model="tiny", messages=question("One more?"))
        *_, last = stream
        assert last.usage is not None
        assert last.usage.completion_tokens == 300
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--port", "70000"], 2, "port"),
        (["--weights", "int3"], 2, "weights"),
        (["--model", "no/such/folder/here"], 1, "no/such/folder/here"),
    ],
)
def test_wrong_start_names_what_is_wrong(arguments: list[str], status: int, word: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server", "serve", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert result.returncode == status
    assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_broken_checkpoint_is_refused_with_the_list(tmp_path: Path) -> None:
    for file in TINY_V2.iterdir():
        if file.name != "model-00002-of-00002.safetensors":
            (tmp_path / file.name).symlink_to(file)
    result = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--model", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "model-00002-of-00002.safetensors" in result.stderr
    assert "Traceback" not in result.stderr
