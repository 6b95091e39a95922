import asyncio

import pytest

from server.bench.http import CannotConnect, ConnectionBroken, Endpoint, HttpClient, parse_url
from tests.support.scripted_server import STREAM_HEAD, ScriptedServer, chunked, json_answer

TIMEOUT_S = 20


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


@pytest.mark.parametrize(
    ("url", "endpoint", "authority"),
    [
        ("http://127.0.0.1:8000", Endpoint("127.0.0.1", 8000, False, ""), "127.0.0.1:8000"),
        ("http://host/", Endpoint("host", 80, False, ""), "host"),
        ("https://host/v1/", Endpoint("host", 443, True, ""), "host"),
        ("https://host:80/models/a/v1", Endpoint("host", 80, True, "/models/a"), "host:80"),
        ("http://[::1]:9", Endpoint("::1", 9, False, ""), "[::1]:9"),
    ],
)
def test_urls(url, endpoint, authority):
    assert parse_url(url) == endpoint
    assert endpoint.authority == authority


@pytest.mark.parametrize("url", ["", "host:80", "ftp://host", "http://", "http://user:secret@host", "http://h?x=1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:8000"):
        parse_url(url)


def with_server(script, scenario):
    async def both():
        server = ScriptedServer(script)
        async with server.running() as url:
            client = HttpClient(parse_url(url), {"Authorization": "Bearer k"})
            try:
                return await scenario(client, server)
            finally:
                client.close()

    return run(both())


async def post(client, seen=None):
    return await client.post_json(
        "/x", b'{"a":1}', lambda data, at_s: None if seen is None else seen.append((data, at_s))
    )


def test_pieces_of_a_body_come_as_they_are_sent_with_rising_times():
    async def script(asked, writer):
        writer.write(STREAM_HEAD)
        for piece in (b"one", b"two"):
            writer.write(chunked(piece, ends=False))
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")

    async def scenario(client, server):
        seen = []
        answer = await post(client, seen)
        assert (answer.status, answer.body) == (200, b"")
        assert b"".join(data for data, _ in seen) == b"onetwo"
        assert seen[0][1] < seen[-1][1]
        (asked,) = server.asked
        assert (asked.path, asked.body) == ("/x", {"a": 1})
        assert "Authorization: Bearer k\r\n" in asked.head

    with_server(script, scenario)


def test_an_error_body_is_kept_and_the_connection_used_again():
    async def script(asked, writer):
        writer.write(json_answer({"error": "no"}, "429 Too Many Requests"))

    async def scenario(client, server):
        seen = []
        answers = [await post(client, seen) for _ in range(3)]
        assert [(answer.status, answer.body) for answer in answers] == [(429, b'{"error":"no"}')] * 3
        assert seen == []
        assert {asked.connection for asked in server.asked} == {1}
        assert client.num_reads == 3

    with_server(script, scenario)


def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    async def script(asked, writer):
        writer.write(json_answer({}))
        await writer.drain()
        writer.close()

    async def scenario(client, server):
        for _ in range(3):
            assert (await post(client)).status == 200
        assert [asked.connection for asked in server.asked] == [1, 2, 3]

    with_server(script, scenario)


def test_a_request_that_meets_a_closing_connection_is_sent_again():
    async def script(asked, writer):
        if asked.connection == 1 and len([one for one in server_asked if one.connection == 1]) == 2:
            writer.close()  # without a byte of answer
        else:
            writer.write(json_answer({}))

    server_asked = []

    async def scenario(client, server):
        nonlocal server_asked
        server_asked = server.asked
        assert [(await post(client)).status for _ in range(2)] == [200, 200]
        assert [asked.connection for asked in server.asked] == [1, 1, 2]

    with_server(script, scenario)


def test_a_connection_with_words_that_nobody_asked_for_is_not_used_again():
    async def script(asked, writer):
        writer.write(json_answer({}))
        await writer.drain()
        await asked_once.wait()
        writer.write(b"more")
        await writer.drain()
        told.set()

    asked_once, told = asyncio.Event(), asyncio.Event()

    async def scenario(client, server):
        await post(client)
        asked_once.set()
        await told.wait()
        await asyncio.sleep(0.01)  # one look of the loop at its sockets
        assert (await post(client)).status == 200
        assert [asked.connection for asked in server.asked][-1] == 2

    with_server(script, scenario)


@pytest.mark.parametrize("answer", [STREAM_HEAD + chunked(b"one", ends=False), b"", b"HTTP/1.1 200 OK\r\nContent-"])
def test_an_answer_that_breaks_off_is_an_error(answer):
    async def script(asked, writer):
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def scenario(client, server):
        with pytest.raises(ConnectionBroken, match="before its answer ended"):
            await post(client)

    with_server(script, scenario)


def test_what_is_not_http_is_an_error():
    async def script(asked, writer):
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    async def scenario(client, server):
        with pytest.raises(ConnectionBroken, match="not HTTP"):
            await post(client)

    with_server(script, scenario)


def test_a_bug_in_the_callback_is_not_taken_for_the_servers():
    async def script(asked, writer):
        writer.write(STREAM_HEAD + chunked(b"one"))

    def broken(data, at_s):
        raise KeyError("ours")

    async def scenario(client, server):
        with pytest.raises(KeyError, match="ours"):
            await client.post_json("/x", b"", broken)

    with_server(script, scenario)


def test_nobody_listens():
    async def scenario():
        client = HttpClient(parse_url("http://127.0.0.1:1"), {})
        with pytest.raises(CannotConnect, match=r"127\.0\.0\.1:1"):
            await client.get("/")

    run(scenario())
