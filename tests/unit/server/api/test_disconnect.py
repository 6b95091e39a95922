"""A client that leaves ends its request at whatever stage it is, and its place is free again."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import orjson
import pytest

from tests.support.api_server import CHAT, HELLO, ApiServer, serve
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.server_process import wait_until


@contextmanager
def connection(server: ApiServer, *, stream: bool) -> Iterator[socket.socket]:
    """A connection that has sent a whole request and not read anything."""
    url = httpx.URL(server.url)
    body = orjson.dumps({"model": MODEL.model_id, "messages": HELLO, "stream": stream})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port), timeout=10) as opened:
        opened.sendall(head.encode() + body)
        yield opened


def wait_idle(server: ApiServer) -> None:
    wait_until(lambda: server.admission.num_held == 0, 10, "the place to become free")
    assert server.engine.num_streams_open == 0


@pytest.mark.parametrize("stream", [False, True])
def test_while_preparing(server: ApiServer, gate: Gate, stream: bool) -> None:
    server.engine.prepare_gate = gate
    with connection(server, stream=stream):
        gate.wait_reached()
        assert server.admission.num_held == 1
    wait_idle(server)
    assert server.engine.num_prepares_cancelled == 1


@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_token(server: ApiServer, gate: Gate, stream: bool) -> None:
    aborted = server.metric("requests_finished_total", outcome="aborted")
    server.engine.answer = script(gate)
    with connection(server, stream=stream):
        gate.wait_reached()
        assert server.engine.num_streams_open == 1
    wait_idle(server)
    assert server.engine.num_aborted == 1
    assert server.metric("requests_finished_total", outcome="aborted") == aborted + 1


@pytest.mark.parametrize("stream", [False, True])
def test_between_two_tokens(server: ApiServer, gate: Gate, stream: bool) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), gate)
    with connection(server, stream=stream):
        gate.wait_reached()
    wait_idle(server)
    assert server.engine.num_aborted == 1


def test_in_the_middle_of_its_body(server: ApiServer) -> None:
    url = httpx.URL(server.url)
    before = server.metric("http_requests_total", route=CHAT, method="POST", code="499")
    with socket.create_connection((url.host, url.port), timeout=10) as opened:
        opened.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        wait_until(lambda: server.admission.num_held == 1, 10, "the request to arrive")
    wait_idle(server)
    wait_until(
        lambda: server.metric("http_requests_total", route=CHAT, method="POST", code="499") == before + 1,
        10,
        "its count",
    )


def test_client_that_closes_its_stream(server: ApiServer, gate: Gate) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), gate)
    stream = server.client().chat.completions.create(
        model=MODEL.model_id, messages=[{"role": "user", "content": "x"}], stream=True
    )
    next(stream)
    stream.close()
    wait_idle(server)
    assert server.engine.num_aborted == 1


def test_client_that_does_not_read_counts_as_gone() -> None:
    """Its buffers fill, then the stream waits; in the end the place goes to somebody else."""
    with serve(client_timeout_s=0.3) as server:
        server.engine.answer = script(*say(*["x" * 100_000] * 200))
        with connection(server, stream=True):
            wait_until(lambda: server.engine.num_aborted == 1, 10, "the stream to be given up")
            wait_idle(server)
        assert server.metric("requests_finished_total", outcome="aborted") == 1


def test_finished_answers_are_no_aborts(server: ApiServer) -> None:
    server.chat()
    server.chat(stream=True)
    assert server.engine.num_aborted == 0
