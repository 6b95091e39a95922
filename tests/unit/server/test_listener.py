"""The socket, and what uvicorn would let through: headers without an end, headers that never come."""

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from server.listener import CannotListen, bind_socket, url_of
from server.settings import Settings
from tests.support.api_server import HELLO, ApiServer, serve
from tests.support.fake_engine import MODEL, say, script
from tests.support.server_process import wait_until

MAX_HEADER_BYTES = Settings().max_header_bytes


def connect(server: ApiServer) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port), timeout=10)


def receive(connection: socket.socket, end: bytes) -> bytes:
    """What comes, up to and including the end."""
    received = b""
    while not received.endswith(end):
        received += connection.recv(1000)
    return received


@pytest.fixture(scope="module")
def impatient() -> Iterator[ApiServer]:
    with serve(client_timeout_s=0.2) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://")],
)
def test_free_port_is_shown_as_a_url(host: str, expected: str) -> None:
    with bind_socket(host, 0) as bound:
        url = url_of(bound)
        assert url.startswith(expected)
        assert int(url.rpartition(":")[2]) > 0


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_addresses_stand_in_brackets(host: str) -> None:
    try:
        bound = bind_socket(host, 0)
    except CannotListen:
        pytest.skip("IPv6 is switched off")
    with bound:
        assert url_of(bound).startswith("http://[::1]:")


def test_taken_port_is_named() -> None:
    with bind_socket("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1 port {port}"):
            bind_socket("127.0.0.1", port)


def test_unknown_host_is_named() -> None:
    with pytest.raises(CannotListen, match="no-such-host"):
        bind_socket("no-such-host.invalid", 0)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_come_close_the_connection(impatient: ApiServer, sent: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""


def test_second_request_on_a_connection_has_its_own_deadline(impatient: ApiServer) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(connection, b"}").startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /health/live HT")
        assert connection.recv(100) == b""


def test_headers_without_an_end_are_refused(server_alone: ApiServer) -> None:
    with connect(server_alone) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ")
        answer = b""
        with pytest.raises(OSError):  # noqa: PT011, PT012 - reset or broken pipe, once the answer is out
            for _ in range(100):
                connection.sendall(b"x" * (MAX_HEADER_BYTES // 4))
                time.sleep(0.005)
    with connect(server_alone) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * MAX_HEADER_BYTES)
        answer = connection.recv(1000)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert str(MAX_HEADER_BYTES) in json.loads(body)["error"]["message"]


def test_large_body_behind_small_headers_is_no_header(server_alone: ApiServer) -> None:
    text = "x" * (4 * MAX_HEADER_BYTES)
    assert server_alone.chat([{"role": "user", "content": text}]).status_code == 200


def test_what_is_no_http_gets_an_error_object(server_alone: ApiServer) -> None:
    with connect(server_alone) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        head, _, body = connection.recv(1000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.fixture(scope="module")
def server_alone() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


def test_connections_are_counted() -> None:
    with serve(max_connections=2) as server:
        with connect(server), connect(server), connect(server) as third:
            head, _, body = receive(third, b"}}").partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: " in head
            assert "2 connections" in json.loads(body)["error"]["message"]
            assert third.recv(10) == b""
        wait_until(lambda: server.http.get("/health").status_code == 200, 10, "a place")


def test_headers_have_a_limit_of_their_own() -> None:
    with serve(max_header_bytes=2000) as server:
        assert server.http.get("/health", headers={"x-long": "x" * 1000}).status_code == 200
        assert server.http.get("/health", headers={"x-long": "x" * 4000}).status_code == 400


def test_a_body_that_nobody_reads_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.listener._BODY_GRACE_S", 0)
    with serve(client_timeout_s=0.3) as server, connect(server) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert receive(connection, b"}}").startswith(b"HTTP/1.1 404 ")
        assert connection.recv(100) == b""


def test_a_whole_answer_that_is_not_read_does_not_stay_for_ever() -> None:
    """The answer is larger than what the sockets hold: closing alone would wait for the client."""
    with serve(client_timeout_s=0.3) as server:
        server.engine.answer = script(*say("x" * 2**25))
        with connect(server) as connection:
            body = json.dumps({"model": MODEL.model_id, "messages": HELLO}).encode()
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                + b"Content-Length: %d\r\n\r\n" % len(body)
                + body
            )
            wait_until(lambda: server.metric("requests_finished_total", outcome="completed") == 1, 10, "the answer")
            wait_until(lambda: not server.connections, 20, "the connection to be given up")
