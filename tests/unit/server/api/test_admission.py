"""Permits: one for the whole life of a request, none while draining or without an engine."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from server.api.admission import Admission
from server.engine.supervisor import EngineState
from tests.support.api_server import HELLO, ApiServer, serve
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.server_process import wait_until


@pytest.mark.parametrize("stream", [False, True])
def test_full_house_refuses_and_says_when_to_come_back(gate: Gate, stream: bool) -> None:
    with serve(max_requests=2) as server, ThreadPoolExecutor(2) as pool:
        server.engine.answer = script(*say("Hel", finish_reason=None), gate, *say("lo"))
        running = [pool.submit(server.chat, stream=stream) for _ in range(2)]
        wait_until(lambda: server.admission.num_held == 2, 10, "both to run")
        with pytest.raises(openai.RateLimitError) as caught:
            server.client().chat.completions.create(model=MODEL.model_id, messages=[{"role": "user", "content": "x"}])
        assert caught.value.code == "too_many_requests"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
        assert server.metric("requests_rejected_total", reason="too_many_requests") == 1
        gate.open()
        assert [one.result().status_code for one in running] == [200, 200]
        wait_until(lambda: server.admission.num_held == 0, 10, "both to leave")
        assert server.chat().status_code == 200


def test_refusal_comes_before_the_body_is_read(gate: Gate) -> None:
    with serve(max_requests=1) as server, ThreadPoolExecutor(1) as pool:
        server.engine.answer = script(gate, *say("x"))
        running = pool.submit(server.chat)
        gate.wait_reached()
        assert server.chat(colour=1).status_code == 429
        gate.open()
        running.result()
        assert server.chat(colour=1).status_code == 400


def test_refused_requests_hold_nothing(server: ApiServer) -> None:
    for _ in range(3):
        assert server.chat(colour=1).status_code == 400
    assert server.admission.num_held == 0


@pytest.mark.parametrize("state", ["starting", "restarting", "failed", "stopped"])
def test_no_engine_no_answer(server: ApiServer, state: EngineState) -> None:
    server.engine.state = state
    response = server.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert server.engine.requests == []


def test_draining_lets_running_requests_finish_and_nobody_in(gate: Gate) -> None:
    with serve() as server, ThreadPoolExecutor(1) as pool:
        server.engine.answer = script(*say("Hel", finish_reason=None), gate, *say("lo."))
        running = pool.submit(server.chat, HELLO, stream=True)
        gate.wait_reached()
        draining = server.start_drain()
        wait_until(lambda: server.admission.is_draining, 10, "the drain")
        response = server.chat()
        assert response.status_code == 503
        assert "shutting down" in response.json()["error"]["message"]
        assert server.http.get("/health/ready").status_code == 503
        assert server.http.get("/health").json()["status"] == "draining"
        assert server.http.get("/health/live").status_code == 200
        assert not draining.done()
        gate.open()
        assert running.result().text.endswith("data: [DONE]\n\n")
        draining.result(10)


def test_draining_an_empty_house_is_done_at_once(server_alone: ApiServer) -> None:
    server_alone.start_drain().result(10)
    assert server_alone.chat().status_code == 503


@pytest.fixture
def server_alone() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


def test_permit_comes_back_when_its_block_fails(server: ApiServer) -> None:
    admission = Admission(server.engine, max_requests=1)
    with pytest.raises(ZeroDivisionError), admission.permit():
        raise ZeroDivisionError
    with admission.permit():
        assert admission.num_held == 1


def test_many_clients_at_once_are_all_answered() -> None:
    with serve(max_requests=64) as server:
        barrier = threading.Barrier(16)

        def ask(number: int) -> int:
            barrier.wait()
            return server.chat(stream=bool(number % 2)).status_code

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, range(16))) == [200] * 16
        wait_until(lambda: server.admission.num_held == 0, 10, "all to leave")
