"""What a body may be before anybody looks into it, and each limit with its setting."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.api_server import CHAT, ApiServer, serve
from tests.support.fake_engine import MODEL
from tests.support.pictures import draw_page, encode, image_part, question


def body_of(size: int) -> bytes:
    """A valid request of exactly this many bytes."""
    request: dict[str, Any] = {"model": MODEL.model_id, "messages": [{"role": "user", "content": ""}]}
    request["messages"][0]["content"] = "x" * (size - len(json.dumps(request)))
    return json.dumps(request).encode()


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture(scope="module")
def small() -> Iterator[ApiServer]:
    with serve(max_body_bytes=2000) as running:
        yield running


def post(server: ApiServer, content: Any, **headers: str) -> httpx.Response:
    return server.http.post(CHAT, content=content, headers={"content-type": "application/json"} | headers)


def in_pieces(body: bytes, size: int = 100) -> Iterator[bytes]:
    """Makes the client send chunks, without a Content-Length."""
    for at in range(0, len(body), size):
        yield body[at : at + size]


def test_body_of_the_limit_passes(small: ApiServer) -> None:
    assert post(small, body_of(2000)).status_code == 200
    assert post(small, in_pieces(body_of(2000))).status_code == 200


def test_body_beyond_the_limit_is_refused(small: ApiServer) -> None:
    assert code(post(small, body_of(2001))) == (413, "payload_too_large")
    assert "2000 bytes" in post(small, body_of(2001)).json()["error"]["message"]


def test_chunked_body_is_measured_while_it_comes(small: ApiServer) -> None:
    """The refusal comes although the body has no end."""
    address = (httpx.URL(small.url).host, httpx.URL(small.url).port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(3):
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_declared_length_is_believed_at_once(small: ApiServer) -> None:
    address = (httpx.URL(small.url).host, httpx.URL(small.url).port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 99999999\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"]
)
def test_other_media_types_are_refused(small: ApiServer, media_type: str) -> None:
    assert code(post(small, body_of(100), **{"content-type": media_type})) == (415, "unsupported_media_type")


def test_missing_media_type_is_refused(small: ApiServer) -> None:
    response = small.http.post(CHAT, content=body_of(100))
    assert code(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_json(small: ApiServer, media_type: str) -> None:
    assert post(small, body_of(100), **{"content-type": media_type}).status_code == 200


def test_compressed_body_is_refused(small: ApiServer) -> None:
    assert code(post(small, body_of(100), **{"content-encoding": "gzip"})) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_body_that_is_no_request(small: ApiServer, content: bytes) -> None:
    response = post(small, content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_body_that_does_not_come_is_given_up() -> None:
    with serve(client_timeout_s=0.2) as server:
        address = (httpx.URL(server.url).host, httpx.URL(server.url).port)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                "Content-Length: 1000\r\n\r\n{".encode()
            )
            answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in answer
        assert server.admission.num_held == 0


PICTURE = draw_page(60, 40)
TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("setting", "request_fields", "error_code"),
    [
        ({"max_messages": 2}, {"messages": [TURN] * 3}, "limit_exceeded"),
        (
            {"max_parts": 2},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 3}]},
            "limit_exceeded",
        ),
        ({"max_choices": 2}, {"n": 3}, "limit_exceeded"),
        ({"max_stop_strings": 0}, {"stop": "x"}, "limit_exceeded"),
        ({"max_images": 1}, {"messages": question("?", PICTURE, PICTURE)}, "limit_exceeded"),
        (
            {"max_image_bytes": 1024},
            {"messages": [{"role": "user", "content": [image_part(b"x" * 1025)]}]},
            "invalid_image",
        ),
        ({"max_image_pixels": 2399}, {"messages": question("?", PICTURE)}, "invalid_image"),
        ({"max_image_side": 59}, {"messages": question("?", PICTURE)}, "invalid_image"),
        ({"max_image_aspect": 1.4}, {"messages": question("?", PICTURE)}, "invalid_image"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_each_limit_with_its_setting(setting: dict[str, Any], request_fields: dict[str, Any], error_code: str) -> None:
    with serve(**setting) as server:
        assert code(server.chat(**request_fields)) == (400, error_code)
        assert server.engine.requests == []
        assert server.chat().status_code == 200


def test_large_picture_reaches_the_engine_unchanged(server: ApiServer) -> None:
    data = encode(draw_page(900, 900))
    assert server.chat(question("?", data)).status_code == 200
    (image,) = server.engine.requests[0].messages[0].images
    assert image.data == data
