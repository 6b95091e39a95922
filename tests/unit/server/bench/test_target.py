import asyncio

import pytest

from server.bench.http import parse_url
from server.bench.record import CLOCK, Usage
from server.bench.target import Target, TargetError, TargetSpec
from server.bench.workload import PlannedRequest
from tests.support.scripted_server import (
    DONE,
    FINISH,
    STREAM_HEAD,
    ScriptedServer,
    chunked,
    event,
    json_answer,
    scripted_target,
    token,
    usage,
    whole_stream,
)

REQUEST = PlannedRequest("hello", 5)


async def answer_nothing(asked, writer):
    await asyncio.sleep(60)


def ask(script, **options):
    async def scenario():
        async with scripted_target(script, **options) as (target, _):
            return await target.ask(REQUEST, target.body(REQUEST), zero_s=CLOCK())

    return asyncio.run(asyncio.wait_for(scenario(), 20))


def body_sent(**options):
    async def script(asked, writer):
        bodies.append((asked.path, asked.body))
        writer.write(whole_stream(1))

    bodies = []
    ask(script, **options)
    return bodies[0]


def test_the_body_is_a_streamed_chat_completion_of_the_served_model():
    assert body_sent() == (
        "/v1/chat/completions",
        {
            "model": "scripted",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )


def test_fields_are_laid_over_the_body_and_null_takes_one_out():
    _, body = body_sent(
        fields={"model": "m", "temperature": 0, "ignore_eos": True},
        extra={"max_tokens": None, "max_completion_tokens": 9, "ignore_eos": None},
    )
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("m", 0, 9)
    assert not {"max_tokens", "ignore_eos"} & body.keys()


def test_a_whole_stream():
    async def slow(asked, writer):
        writer.write(STREAM_HEAD + chunked(token(), ends=False))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(chunked(token(), FINISH, usage(12, 3, 4), DONE))

    record = ask(slow)
    assert record.failure is None
    assert record.usage == Usage(12, 3, 4)
    assert len(record.chunks_s) == 2
    assert 0 <= record.sent_s < record.chunks_s[0] < record.chunks_s[1] <= record.ended_s
    assert record.due_s == record.sent_s


def closing(data):
    async def script(asked, writer):
        writer.write(data)
        await writer.drain()
        writer.close()

    return script


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        (closing(json_answer({"error": {"message": "too many"}}, "429 No")), "http 429", "429: too many"),
        (closing(json_answer({"detail": "lost"}, "404 No")), "http 404", "lost"),
        (closing(b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\noops"), "http 502", "502: oops"),
        (closing(STREAM_HEAD + chunked(token(), ends=False)), "broken", "before its answer ended"),
        (closing(STREAM_HEAD + chunked(event({"error": {"message": "died"}}), DONE)), "error event", "died"),
        (closing(json_answer({"choices": []})), "bad stream", "without a finish reason"),
        (answer_nothing, "timeout", "0.2 s"),
    ],
)
def test_failures_are_records_of_their_kind(script, kind, words):
    record = ask(script, timeout_s=0.2 if script is answer_nothing else 10.0)
    assert record.failure.kind == kind
    assert words in record.failure.message


def test_a_stream_that_is_done_may_break_off():
    assert ask(closing(STREAM_HEAD + chunked(token(), FINISH, usage(1, 1), DONE, ends=False))).failure is None


def test_a_server_that_goes_away_is_a_failure_to_connect():
    async def scenario():
        async with scripted_target(closing(whole_stream(1))) as (target, _):
            body = target.body(REQUEST)
        return await target.ask(REQUEST, body, zero_s=CLOCK())

    assert asyncio.run(scenario()).failure.kind == "connect"


def opened(script, monkeypatch, models):
    monkeypatch.setattr("tests.support.scripted_server.MODELS", models)

    async def scenario():
        async with scripted_target(script):
            pass

    asyncio.run(scenario())


@pytest.mark.parametrize("models", [{"data": []}, {}, [1], {"data": None}])
def test_a_server_without_a_model_cannot_be_measured(monkeypatch, models):
    with pytest.raises(TargetError, match="lists no model"):
        opened(answer_nothing, monkeypatch, models)


def test_waiting_ends_when_the_server_is_ready_or_the_time_is_over(monkeypatch):
    monkeypatch.setattr("server.bench.target._POLL_S", 0.01)

    async def scenario():
        server = ScriptedServer(
            answer_nothing, get_statuses=["503 No", "200 OK", "200 OK", "503 No", "200 OK", "404 No"]
        )
        async with server.running() as url:
            target = Target(TargetSpec("t", url, parse_url(url)), api_key=None, timeout_s=5)
            await target.wait_ready(10.0)
            target.http.close()
        # /v1/models is not there; it is, but /health fails; both are, as far as this server has a /health.
        assert [asked.path for asked in server.asked] == ["/v1/models", "/health"] * 3
        with pytest.raises(TargetError, match="not ready after 0 s"):
            await target.wait_ready(0.0)

    asyncio.run(asyncio.wait_for(scenario(), 20))
