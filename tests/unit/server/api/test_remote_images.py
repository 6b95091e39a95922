"""Pictures by URL, from the request to the engine's door: a hostile host on loopback, asked by the real server."""

import asyncio
import gzip
import logging
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import orjson
import pytest

from server.fetch.network import public_tls
from tests.support.api_server import CHAT, ApiServer, serve
from tests.support.fake_engine import MODEL, Gate
from tests.support.picture_host import (
    Names,
    PictureHost,
    Script,
    answer,
    drip,
    endless,
    loopback,
    names_of_the_host,
    picture_host,
    redirect,
    silence,
    trusting_tls,
)
from tests.support.pictures import data_url, draw_page, encode
from tests.support.server_process import wait_until

PNG = encode(draw_page(80, 60))
OTHER = encode(draw_page(60, 80))
MAX_BYTES = 20_000
"""Of a picture, on the server of most tests."""
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NO_LENGTH = b"HTTP/1.1 200 OK\r\n\r\n"
EMPTY_DEFLATE_BLOCK = b"\x00\x00\x00\xff\xff"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def reset(start: bytes) -> Script:
    """A part of an answer, then a connection that breaks rather than ends."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return play


def gzip_bomb() -> bytes:
    """A few kilobytes that become many megabytes."""
    return gzip.compress(b"\x00" * 8 * 2**20)


def open_server(
    *hosts: PictureHost,
    names: Names | None = None,
    tls: Callable[[], ssl.SSLContext] = public_tls,
    remote_image_timeout_s: float = 60,
    **options: Any,
) -> AbstractContextManager[ApiServer]:
    """A server that may fetch from these hosts alone, and waits for them longer than any of them needs."""
    return serve(
        network=loopback(*hosts, names=names, tls=tls),
        remote_images="open",
        remote_image_timeout_s=remote_image_timeout_s,
        **options,
    )


@pytest.fixture(scope="module")
def host() -> Iterator[PictureHost]:
    with picture_host() as running:
        yield running


@pytest.fixture(autouse=True)
def empty_host(host: PictureHost) -> Iterator[None]:
    host.answers.clear()
    host.heads.clear()
    yield
    wait_until(lambda: host.num_open == 0, 10, "all connections to be closed")


@pytest.fixture(scope="module")
def shared_open_server(host: PictureHost) -> Iterator[ApiServer]:
    with open_server(host, max_image_bytes=MAX_BYTES, max_body_bytes=2 * MAX_BYTES) as server:
        yield server


@pytest.fixture
def server(shared_open_server: ApiServer) -> Iterator[ApiServer]:
    shared_open_server.engine.reset()
    yield shared_open_server
    wait_until(lambda: shared_open_server.admission.num_held == 0, 10, "all requests to leave")


@pytest.fixture(scope="module")
def impatient_server(host: PictureHost) -> Iterator[ApiServer]:
    with open_server(host, remote_image_timeout_s=0.3) as server:
        yield server


def messages(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]


def ask(server: ApiServer, *urls: str, **options: Any) -> httpx.Response:
    return server.chat(messages(*urls), **options)


def refusal(server: ApiServer, *urls: str, param: int = 0, status: int = 400, **options: Any) -> tuple[str, str]:
    """Code and message of the error, which never has an address or a path in it."""
    response = ask(server, *urls, **options)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    field = f"messages[0].content[{param}].image_url.url"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    message = error["message"].removeprefix(f"{field}: ")
    assert message != error["message"]
    assert not re.search(r"\d+\.\d+\.\d+|127|::|/x|\.example|secret", message)
    assert server.engine.requests == []
    return error["code"], message


def pictures_of(server: ApiServer) -> list[bytes]:
    """What came to the engine's door with the last request."""
    return [image.data for message in server.engine.requests[-1].messages for image in message.images]


# What works


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_comes(server: ApiServer, host: PictureHost, stream: bool) -> None:
    host.answers["/x.png"] = answer(PNG, Content_Type="text/plain")
    before = server.metric("image_fetch_seconds_count")
    response = ask(server, host.url("/x.png?size=2"), stream=stream)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert pictures_of(server) == [PNG]
    image = server.engine.requests[-1].messages[0].images[0]
    assert (image.width, image.height, image.param) == (80, 60, "messages[0].content[0].image_url.url")
    assert server.metric("image_fetch_seconds_count") == before + 1


def test_the_host_learns_nothing_of_the_client(server: ApiServer, host: PictureHost) -> None:
    host.answers["/1"] = answer(status="302 Found", Location="/2", Set_Cookie="a=b")
    host.answers["/2"] = answer(PNG)
    headers = {"Authorization": "Bearer secret", "Cookie": "c=d", "Referer": "http://x/"}
    body = {"model": MODEL.model_id, "messages": messages(host.url("/1?q=1"))}
    assert server.http.post(CHAT, json=body, headers=headers).status_code == 200
    assert host.paths == ["/1?q=1", "/2"]
    for head in host.heads:
        names = [line.partition(":")[0] for line in head.split("\r\n")[1:] if line]
        assert names == ["Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"]
        assert f"Host: pictures.example:{host.port}\r\n" in head


def test_pictures_stand_where_their_parts_stand(server: ApiServer, host: PictureHost) -> None:
    host.answers |= {"/a": answer(PNG), "/b": answer(OTHER)}
    local = encode(draw_page(50, 50))
    assert ask(server, host.url("/b"), data_url(local), host.url("/a")).status_code == 200
    assert pictures_of(server) == [OTHER, local, PNG]


def test_the_pictures_of_a_request_are_fetched_at_the_same_time(server: ApiServer, host: PictureHost) -> None:
    all_asked = asyncio.Event()

    async def when_all_have_asked(writer: asyncio.StreamWriter) -> None:
        if len(host.heads) == 3:
            all_asked.set()
        await all_asked.wait()
        writer.write(answer(PNG))
        await writer.drain()

    host.answers |= dict.fromkeys(("/a", "/b", "/c"), when_all_have_asked)
    assert ask(server, *map(host.url, ("/a", "/b", "/c"))).status_code == 200


def test_a_url_that_is_there_twice_is_fetched_once(server: ApiServer, host: PictureHost) -> None:
    host.answers["/x"] = answer(PNG)
    spellings = [host.url("/x"), host.url("/x", name="PICTURES.example."), f"{host.url('/x')}#part"]
    assert ask(server, *spellings).status_code == 200
    assert host.paths == ["/x"]
    images = server.engine.requests[-1].messages[0].images
    assert [image.param for image in images] == [f"messages[0].content[{n}].image_url.url" for n in range(3)]


@pytest.mark.parametrize("encoding", ["gzip", "X-GZip", "identity"])
def test_bodies_that_are_compressed_unasked(server: ApiServer, host: PictureHost, encoding: str) -> None:
    body = PNG if encoding == "identity" else gzip.compress(PNG)
    host.answers["/x"] = answer(body, Content_Encoding=encoding)
    assert ask(server, host.url("/x")).status_code == 200
    assert pictures_of(server) == [PNG]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed(server: ApiServer, host: PictureHost, status: str) -> None:
    host.answers["/deep/1"] = redirect("2?a=b", status)
    host.answers["/deep/2"] = redirect(host.url("/3", name="other.example"), status)
    host.answers["/3"] = redirect(f"//pictures.example:{host.port}/4", status)
    host.answers["/4"] = answer(PNG)
    assert ask(server, host.url("/deep/1")).status_code == 200
    assert host.paths == ["/deep/1", "/deep/2?a=b", "/3", "/4"]


# What hosts may do


HOSTILE: dict[str, tuple[bytes | Script, str, str, str]] = {
    # name: (answer, reason, code, words of the message)
    "not found": (answer(b"no", status="404 Not Found"), "status", "failed_to_download_image", "status 404"),
    "failure": (answer(PNG, status="500 Oops"), "status", "failed_to_download_image", "status 500"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "status", "failed_to_download_image", "status 204"),
    "part": (answer(PNG, status="206 Partial"), "status", "failed_to_download_image", "status 206"),
    "other protocol": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "a page": (answer(b"<html>x</html>", Content_Type="image/png"), "image", "invalid_image", "not a readable"),
    "nothing": (answer(), "image", "invalid_image", "not a readable"),
    "half a head of a picture": (answer(PNG[:20]), "image", "invalid_image", "not a readable"),
    "declared too large": (
        answer(PNG, length=MAX_BYTES + 1),
        "size",
        "invalid_image",
        f"larger than the limit of {MAX_BYTES} bytes",
    ),
    "less than declared": (
        answer(PNG, length=len(PNG) + 1),
        "broken",
        "failed_to_download_image",
        "damaged or incomplete",
    ),
    "length that is no number": (
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + PNG,
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "endless chunks": (endless(CHUNKED, chunk(b"x" * 4096)), "size", "invalid_image", "larger than the limit"),
    "endless without length": (endless(NO_LENGTH, b"x" * 4096), "size", "invalid_image", "larger than the limit"),
    "tiny chunks": (
        answer(transfer_encoding="chunked").replace(b"Content-Length: 0\r\n", b"") + chunk(b"x") * 5000,
        "broken",
        "failed_to_download_image",
        "tiny pieces",
    ),
    "chunks cut short": (CHUNKED + chunk(PNG), "broken", "failed_to_download_image", "damaged"),
    "reset on the way": (reset(answer(PNG)[:-9]), "broken", "failed_to_download_image", "damaged"),
    "gzip bomb": (answer(gzip_bomb(), Content_Encoding="gzip"), "size", "invalid_image", "larger than the limit"),
    "endless gzip of nothing": (
        endless(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03", EMPTY_DEFLATE_BLOCK * 800
        ),
        "size",
        "invalid_image",
        "larger than the limit",
    ),
    "gzip cut short": (
        answer(gzip.compress(PNG)[:-9], Content_Encoding="gzip"),
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "gzip with more behind it": (
        answer(gzip.compress(PNG) + b"x", Content_Encoding="gzip"),
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "not gzip": (answer(PNG, Content_Encoding="gzip"), "broken", "failed_to_download_image", "damaged"),
    "brotli": (answer(PNG, Content_Encoding="br"), "encoding", "failed_to_download_image", "compressed"),
    "gzip in gzip": (answer(PNG, Content_Encoding="gzip, gzip"), "encoding", "failed_to_download_image", "compressed"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "broken", "failed_to_download_image", "damaged"),
    "closed at once": (b"", "broken", "failed_to_download_image", "damaged"),
    "endless head": (
        endless(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 100),
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "endless continues": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        "broken",
        "failed_to_download_image",
        "damaged",
    ),
    "to nowhere": (answer(status="302 Found"), "redirect", "failed_to_download_image", "not a URL"),
    "to Latin 1": (redirect("/\xe9"), "redirect", "failed_to_download_image", "not a URL"),
    "to half an address": (redirect("http://[::1/"), "redirect", "failed_to_download_image", "not a URL"),
    "to a file": (redirect("file:///etc/passwd"), "url", "invalid_image_url", "http://HOST/PATH"),
    "to another port": (redirect("http://pictures.example:22/"), "url", "invalid_image_url", "ports"),
    "to a user": (redirect("http://a:b@pictures.example/"), "url", "invalid_image_url", "user name"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_host_may_do(server: ApiServer, host: PictureHost, case: str) -> None:
    host.answers["/x"], reason, code, words = HOSTILE[case]
    before = server.metric("image_fetch_failures_total", reason=reason)
    # One way the refusal of a whole answer, the other that of a stream: neither has begun.
    refused = refusal(server, host.url("/x?secret"), stream=len(case) % 2 == 0)
    assert refused[0] == code
    assert words in refused[1]
    assert server.metric("image_fetch_failures_total", reason=reason) == before + 1


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("http://127.0.0.2:{port}/x", "address"),
        ("http://10.0.0.1:{port}/x", "address"),
        ("http://169.254.169.254:{port}/latest/meta-data/", "address"),
        ("http://[::1]:{port}/x", "address"),
        ("http://[::ffff:127.0.0.1]:{port}/x", "address"),
        ("http://[64:ff9b::7f00:1]:{port}/x", "address"),
        ("http://inner.example:{port}/x", "name"),
        ("http://2130706433:{port}/x", "url"),
        ("http://0x7f.1:{port}/x", "url"),
    ],
)
def test_redirects_to_what_is_not_public(server: ApiServer, host: PictureHost, place: str, reason: str) -> None:
    host.answers["/x"] = redirect(place.format(port=host.port))
    before = server.metric("image_fetch_failures_total", reason=reason)
    code, message = refusal(server, host.url("/x"))
    assert code == "invalid_image_url"
    if reason != "url":
        # A name that is not there and one that leads inside look the same from outside.
        assert message == "the host of the URL has no public address"
    assert len(host.heads) == 1
    assert server.metric("image_fetch_failures_total", reason=reason) == before + 1


def test_redirect_loop(server: ApiServer, host: PictureHost) -> None:
    host.answers["/x"] = redirect("/x")
    assert refusal(server, host.url("/x")) == ("failed_to_download_image", "the URL redirects more than 3 times")
    assert len(host.heads) == 4


def test_no_redirect_at_all(host: PictureHost) -> None:
    host.answers["/x"] = redirect("/x")
    with open_server(host, max_remote_redirects=0) as server:
        assert "more than 0 times" in refusal(server, host.url("/x"))[1]
    assert len(host.heads) == 1


@pytest.mark.parametrize(
    "script",
    [
        silence,
        drip(b"HTTP/1.1 200 OK\r\n", b"a"),
        drip(answer(length=MAX_BYTES), b"x"),
        drip(CHUNKED, chunk(b"x")),
        drip(answer(PNG, length=len(PNG) + 10_000), b""),
    ],
    ids=["silence", "slow head", "slow body", "slow chunks", "a body that never ends"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_slow_hosts(impatient_server: ApiServer, host: PictureHost, script: Script, stream: bool) -> None:
    host.answers["/x"] = script
    refused = refusal(impatient_server, host.url("/x"), stream=stream)
    assert refused == ("failed_to_download_image", "the picture did not arrive within 0.3 seconds")


def test_a_handshake_that_is_never_answered() -> None:
    """The host waits for a request in plain text, so TLS gets no answer."""
    with (
        picture_host() as host,
        open_server(host, remote_image_timeout_s=0.3) as server,
    ):
        assert refusal(server, host.url("/x", scheme="https"))[1] == "the picture did not arrive within 0.3 seconds"
        wait_until(lambda: host.num_open == 0, 10, "the connection to be closed")


def test_all_redirects_share_one_deadline(impatient_server: ApiServer, host: PictureHost) -> None:
    async def slow_redirect(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(redirect("/x"))
        await writer.drain()

    host.answers["/x"] = slow_redirect
    assert "did not arrive" in refusal(impatient_server, host.url("/x"))[1]


def test_no_connection(server: ApiServer, host: PictureHost) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = PictureHost(port=unused.getsockname()[1])
        with open_server(closed) as other:
            refused = refusal(other, closed.url("/x"))
    assert refused == ("failed_to_download_image", "the host of the URL could not be reached")


# Names and addresses


@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "::1"]])
def test_one_inner_address_among_others_is_enough(host: PictureHost, answers: list[str]) -> None:
    names = Names(pictures_example=[answers])
    with open_server(host, names=names) as server:
        assert refusal(server, host.url("/x")) == ("invalid_image_url", "the host of the URL has no public address")
    assert host.heads == []


@pytest.mark.parametrize("answers", [[], ["fe80::1%lo"], ["not an address"]])
def test_odd_answers_of_a_resolver(host: PictureHost, answers: list[str]) -> None:
    with open_server(host, names=Names(pictures_example=[answers])) as server:
        assert refusal(server, host.url("/x"))[1] == "the host of the URL has no public address"


def test_a_name_that_changes_its_address(host: PictureHost) -> None:
    """It is asked for once a hop, and what is judged is what is connected to."""
    names = Names(pictures_example=[["127.0.0.1"], ["127.0.0.9"]])
    host.answers["/x"] = answer(PNG)
    with open_server(host, names=names) as server:
        assert ask(server, host.url("/x")).status_code == 200
        assert names.asked == ["pictures.example"]
        server.engine.reset()
        # By the second question it has become an inner one.
        assert refusal(server, host.url("/x"))[1] == "the host of the URL has no public address"
    assert len(host.heads) == 1


def test_a_name_that_changes_its_address_between_redirects(host: PictureHost) -> None:
    names = Names(pictures_example=[["127.0.0.1"], ["169.254.169.254"]])
    host.answers["/x"] = redirect("/y")
    with open_server(host, names=names) as server:
        assert refusal(server, host.url("/x"))[1] == "the host of the URL has no public address"
    assert names.asked == ["pictures.example"] * 2
    assert host.paths == ["/x"]


def test_a_resolver_that_does_not_answer(host: PictureHost) -> None:
    class Silent(Names):
        async def __call__(self, host: str, port: int) -> list[str]:
            await asyncio.Event().wait()
            return []

    with open_server(host, names=Silent(), remote_image_timeout_s=0.2) as server:
        assert "did not arrive within 0.2 seconds" in refusal(server, host.url("/x"))[1]


def test_tls_proves_the_name_and_not_the_address() -> None:
    with picture_host(has_tls=True) as host:
        host.answers["/x"] = answer(PNG)
        with open_server(host, tls=trusting_tls) as server:
            assert ask(server, host.url("/x", scheme="https")).status_code == 200
            assert host.server_names == ["pictures.example"]
            assert f"Host: pictures.example:{host.port}\r\n" in host.heads[0]
            server.engine.reset()
            refused = refusal(server, host.url("/x", name="other.example", scheme="https"))
            assert refused == ("failed_to_download_image", "the host of the URL could not be reached")
        assert len(host.heads) == 1


def test_certificates_must_be_known() -> None:
    with picture_host(has_tls=True) as host, open_server(host) as server:
        assert refusal(server, host.url("/x", scheme="https"))[0] == "failed_to_download_image"
        assert host.heads == []


def test_no_redirect_from_https_to_http(host: PictureHost) -> None:
    with picture_host(has_tls=True) as secure:
        secure.answers["/x"] = redirect(host.url("/x"))
        with open_server(host, secure, tls=trusting_tls) as server:
            refused = refusal(server, secure.url("/x", scheme="https"))
    assert refused == ("failed_to_download_image", "the URL redirects from https to http")
    assert host.heads == []


def test_proxies_in_the_environment_are_not_asked(
    server: ApiServer, host: PictureHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    with picture_host() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        host.answers["/x"] = answer(PNG)
        assert ask(server, host.url("/x")).status_code == 200
        assert proxy.num_connections == 0


# Limits


def test_the_pictures_of_a_request_share_a_limit(server: ApiServer, host: PictureHost) -> None:
    # A file may have anything behind its picture.
    large = answer(PNG + b"\0" * (MAX_BYTES - len(PNG)))
    host.answers |= dict.fromkeys(("/a", "/b", "/c"), large)
    assert ask(server, host.url("/a"), host.url("/b")).status_code == 200
    server.engine.reset()
    response = ask(server, *map(host.url, ("/a", "/b", "/c")))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "limit_exceeded"
    assert str(2 * MAX_BYTES) in response.json()["error"]["message"]


def test_fetches_wait_for_a_place_and_not_for_ever(host: PictureHost) -> None:
    """One after the other, all of them would take eight times as long as each of them waits."""
    host.answers["/x"] = silence
    limits = {"remote_image_timeout_s": 0.4, "max_remote_fetches": 1}
    with open_server(host, **limits) as server, ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda _: ask(server, host.url("/x")), range(8)))
        refused = [response for response in responses if response.status_code != 400]
        assert 0 < len(refused) < 8
        assert {(response.status_code, response.headers["retry-after"]) for response in refused} == {(429, "2")}
        assert server.metric("image_fetch_failures_total", reason="busy") == len(refused)
        assert server.metric("image_fetch_failures_total", reason="timeout") == 8 - len(refused)


def test_a_place_is_given_back(host: PictureHost) -> None:
    host.answers |= {"/no": answer(status="404 Not Found"), "/x": answer(PNG)}
    with open_server(host, max_remote_fetches=1) as server:
        refusal(server, host.url("/no"))
        assert ask(server, host.url("/x"), host.url("/x?again")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_fetches(server: ApiServer, host: PictureHost, stream: bool) -> None:
    host.answers |= {"/a": silence, "/b": silence}
    url = httpx.URL(server.url)
    urls = (host.url("/a"), host.url("/b"))
    body = orjson.dumps({"model": MODEL.model_id, "messages": messages(*urls), "stream": stream})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port), timeout=10) as opened:
        opened.sendall(head.encode() + body)
        wait_until(lambda: len(host.heads) == 2, 10, "the fetches to begin")
        assert server.admission.num_held == 1
    wait_until(lambda: host.num_open == 0, 10, "the fetches to end")
    wait_until(lambda: server.admission.num_held == 0, 10, "the place to become free")


def test_one_failure_ends_the_other_fetches(server: ApiServer, host: PictureHost) -> None:
    host.answers |= {"/a": silence, "/b": answer(status="404 Not Found")}
    assert refusal(server, host.url("/a"), host.url("/b"), param=1)[1] == "the host answers with status 404"
    wait_until(lambda: host.num_open == 0, 10, "the other connection to be closed")


def test_nothing_is_fetched_for_a_request_that_is_refused_anyway(server: ApiServer, host: PictureHost) -> None:
    host.answers["/x"] = answer(PNG)
    assert refusal(server, host.url("/x"), "data:image/png;base64,AAAA", param=1)[0] == "invalid_image"
    assert refusal(server, host.url("/x"), "http://user@pictures.example/", param=1)[0] == "invalid_image_url"
    assert ask(server, host.url("/x"), model="other").status_code == 404
    assert ask(server, *[host.url(f"/{n}") for n in range(9)]).status_code == 400
    assert host.num_open == 0
    assert host.heads == []


def test_nothing_is_fetched_without_a_permit(host: PictureHost, gate: Gate) -> None:
    async def when_told(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(answer(PNG))
        await writer.drain()

    host.answers["/x"] = when_told
    with open_server(host, max_requests=1) as server, ThreadPoolExecutor(1) as clients:
        first = clients.submit(ask, server, host.url("/x"))
        gate.wait_reached()
        assert ask(server, host.url("/x")).status_code == 429
        assert len(host.heads) == 1
        gate.open()
        assert first.result(30).status_code == 200


# What the operator allows


@pytest.mark.parametrize("url", ["https://pictures.example/x", "HTTP://127.0.0.1/", "http://user@x:99/"])
def test_off_unless_it_is_turned_on(url: str) -> None:
    with serve() as server:
        code, message = refusal(server, url)
    assert code == "invalid_value"
    assert message == (
        "remote pictures are not enabled on this server, which --remote-images does; send the picture as a data: URL"
    )


def test_listed_hosts(host: PictureHost) -> None:
    host.answers |= {"/x": answer(PNG), "/away": redirect(host.url("/x", name="other.example"))}
    names = names_of_the_host()
    with serve(
        network=loopback(host, names=names), remote_images="listed", remote_image_hosts=("pictures.example",)
    ) as server:
        assert ask(server, host.url("/x")).status_code == 200
        server.engine.reset()
        not_listed = ("invalid_image_url", "pictures from this host are not allowed on this server")
        for name in ("other.example", "www.pictures.example", "127.0.0.1"):
            assert refusal(server, host.url("/x", name=name)) == not_listed
        assert names.asked == ["pictures.example"]
        assert refusal(server, host.url("/away")) == not_listed
        assert server.metric("image_fetch_failures_total", reason="host") == 4
    assert host.paths == ["/x", "/away"]


@pytest.mark.parametrize("mode", [{"remote_images": "open"}, {"remote_images": "listed"}])
def test_a_server_as_it_is_in_production_never_asks_itself(mode: dict[str, Any]) -> None:
    """With the network that is built in: no setting and no variable of the environment is another one."""
    hosts = ("localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254")
    if mode["remote_images"] == "listed":
        mode = mode | {"remote_image_hosts": hosts}
    with serve(**mode) as server:
        for name in hosts:
            expected = ("invalid_image_url", "the host of the URL has no public address")
            assert refusal(server, f"http://{name}/x") == expected
            assert refusal(server, f"https://{name.upper()}./x") == expected
        port = httpx.URL(server.url).port
        assert "80 and 443" in refusal(server, f"http://localhost:{port}/x")[1]
        if mode["remote_images"] == "open":
            for literal in (
                "[::1]",
                "[::]",
                "0.0.0.0",
                "[::ffff:127.0.0.1]",
                "168.63.129.16",
                "127.0.0.1.",
                "１２７.0.0.1",
            ):
                assert refusal(server, f"http://{literal}/x") == expected


def test_logs_have_no_query(server: ApiServer, host: PictureHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    host.answers |= {"/x.png": redirect("/y.png?token=hush"), "/y.png": answer(status="403 Forbidden")}
    refusal(server, f"{host.url('/x.png?signature=hush')}#hush")
    refusal(server, "http://user:hush@pictures.example/")
    lines = [record for record in caplog.records if record.message == "a remote picture was not fetched"]
    assert [line.fields["reason"] for line in lines] == ["status", "url"]  # type: ignore[attr-defined]
    assert [line.fields["url"] for line in lines] == [host.url("/x.png"), None]  # type: ignore[attr-defined]
    assert "hush" not in "".join(str(record.__dict__) for record in caplog.records if record.name.startswith("server"))
