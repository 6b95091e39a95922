"""Whole lives of the server over an engine process without a model: starts, signals, drains and failures."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.tokenizer import TokenizerError
from server import serve
from server.api.auth import KeyRing
from server.life import ServerLife
from server.listener import bind_socket
from server.metrics import Metrics
from server.settings import InvalidSettings, Settings
from tests.support.engines import FAKE_WORKER
from tests.support.fake_engine import FakeEngine, Gate
from tests.support.golden import OFFICIAL_TOKENIZER, TINY_V2
from tests.support.server_process import wait_until

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def small_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "build_engine", partial(serve.build_engine, worker_module=FAKE_WORKER))
    monkeypatch.setattr(serve, "configure_logging", lambda *_: None)


@pytest.fixture(autouse=True)
def restore_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def signal_self(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def live(visit: Callable[[httpx.Client], None], **options: Any) -> int:
    """Runs a server in this thread while `visit` runs in another, which must end it with a signal."""
    port = free_port()
    settings = Settings(model=str(TINY_V2), served_model_name="tiny", port=port).model_copy(update=options)
    failures: list[BaseException] = []

    def run_visit() -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                visit(client)
        except BaseException as err:  # carried to the test's own thread
            failures.append(err)
            signal_self()

    visitor = threading.Thread(target=run_visit)
    visitor.start()
    try:
        return serve.run_server(settings)
    finally:
        visitor.join(30)
        for failure in failures:
            raise failure


def get(client: httpx.Client, path: str) -> int | None:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


def wait_ready(client: httpx.Client) -> None:
    wait_until(lambda: get(client, "/health/ready") == 200, 30, "readiness")


def body(text: str, **options: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]} | options


def test_an_uneventful_life(capsys: pytest.CaptureFixture[str]) -> None:
    def visit(client: httpx.Client) -> None:
        wait_ready(client)
        answer = client.post(CHAT, json=body("echo abc")).json()
        assert answer["choices"][0]["message"]["content"] == "abc"
        signal_self()

    assert live(visit) == 0
    printed = capsys.readouterr().out
    assert "minicpmv" in printed.splitlines()[0]
    assert "http://127.0.0.1:" in printed.splitlines()[0]
    assert "tiny (MiniCPM-V 2.0)" in printed


def test_interrupt_is_as_good_as_terminate() -> None:
    def visit(client: httpx.Client) -> None:
        wait_ready(client)
        signal_self(signal.SIGINT)

    assert live(visit) == 0


def test_running_stream_finishes_while_draining() -> None:
    def visit(client: httpx.Client) -> None:
        wait_ready(client)
        with client.stream("POST", CHAT, json=body("echo abcdefgh", stream=True)) as response:
            signal_self()
            response.read()
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in response.text

    assert live(visit) == 0


def test_probes_are_answered_while_draining_and_then_the_stream_ends_with_an_error() -> None:
    def visit(client: httpx.Client) -> None:
        wait_ready(client)
        with client.stream("POST", CHAT, json=body("hold abc", stream=True)) as response:
            lines = response.iter_lines()
            while '"content":"' not in next(lines):
                pass
            signal_self()
            wait_until(lambda: get(client, "/health/ready") == 503, 10, "readiness to turn false")
            assert get(client, "/health/live") == 200
            refused = client.post(CHAT, json=body("echo abc"))
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            rest = list(lines)
        assert any('"code":"engine_unavailable"' in line for line in rest)
        assert rest[-2:] == ["data: [DONE]", ""]

    assert live(visit, drain_timeout_s=1.0) == 0


def test_engine_that_refuses_to_start_ends_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert live(lambda _: None, device="no-start") == 1
    assert "not to my taste" in capsys.readouterr().err


def test_warning_for_an_open_house(caplog: pytest.LogCaptureFixture) -> None:
    live(lambda _: None, device="no-start", host="0.0.0.0")
    assert "no API keys" in caplog.text
    caplog.clear()
    live(lambda _: None, device="no-start")
    assert "no API keys" not in caplog.text


class StartableFake(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.state = "starting"
        self.start_gate = Gate()
        self.has_stopped = False

    async def start(self) -> None:
        await self.start_gate.wait()
        self.state = "ready"

    async def stop(self) -> None:
        self.has_stopped = True


def run_life(engine: StartableFake, visit: Callable[[httpx.Client], None]) -> None:
    port = free_port()

    def run_visit() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            visit(client)

    with bind_socket("127.0.0.1", port) as listener:
        life = ServerLife(Settings(), listener, engine, Metrics(version="1"), KeyRing([]), announce=lambda: "up")
        visitor = threading.Thread(target=run_visit)
        visitor.start()
        asyncio.run(life.run())
        visitor.join(30)


def test_probes_are_answered_while_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    engine = StartableFake()
    seen: list[int | None] = []

    def visit(client: httpx.Client) -> None:
        wait_until(lambda: get(client, "/health/live") == 200, 10, "the listener")
        seen.extend(get(client, path) for path in ("/health/ready", "/v1/models"))
        seen.append(client.post(CHAT, json=body("hi")).status_code)
        engine.start_gate.open()
        wait_ready(client)
        signal_self()

    run_life(engine, visit)
    assert seen == [503, 200, 503]
    assert engine.has_stopped
    assert capsys.readouterr().out.splitlines()[-1] == "up"


def test_signal_while_the_model_is_loaded_ends_the_loading(capsys: pytest.CaptureFixture[str]) -> None:
    engine = StartableFake()

    def visit(client: httpx.Client) -> None:
        wait_until(lambda: get(client, "/health/live") == 200, 10, "the listener")
        signal_self()

    run_life(engine, visit)
    assert engine.has_stopped
    assert "up" not in capsys.readouterr().out.splitlines()


def test_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StartableFake()
    engine.start_gate.open()
    gate = Gate()
    engine.prepare_gate = gate
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)

    def visit(client: httpx.Client) -> None:
        wait_ready(client)
        asking = threading.Thread(target=partial(client.post, CHAT, json=body("hi") | {"model": engine.model.model_id}))
        asking.start()
        gate.wait_reached()
        signal_self()
        wait_until(lambda: get(client, "/health/ready") == 503, 10, "the drain")
        signal_self(signal.SIGINT)
        wait_until(lambda: bool(statuses), 10, "the exit")
        gate.open()
        asking.join(10)

    run_life(engine, visit)
    assert statuses == [128 + signal.SIGINT]


def test_longer_context_than_the_model_has_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="max_context_tokens: 5000 is more than the model's 4096"):
        serve.build_engine(Settings(max_context_tokens=5000), TINY_V2, "tiny", Metrics(version="0"))


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(OFFICIAL_TOKENIZER / name)
    (tmp_path / "config.json").symlink_to(TINY_V2 / "config.json")
    with pytest.raises(TokenizerError, match=r"122753 pieces, config\.json a vocabulary of 1499"):
        serve.build_engine(Settings(), tmp_path, "mixed", Metrics(version="0"))
