import pytest

from server.bench.record import Usage
from server.bench.stream import StreamReader
from tests.support.scripted_server import DONE, FINISH, event, token, usage

ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None})


def read(*pieces):
    reader = StreamReader()
    for at_s, piece in enumerate(pieces):
        reader.feed(piece, float(at_s))
    return reader


def test_chunks_with_tokens_are_stamped():
    reader = read(ROLE, token("a"), token("b") + token("c"), FINISH, usage(7, 4, 2), DONE)
    assert list(reader.chunks_s) == [1.0, 2.0, 2.0]
    assert reader.usage == Usage(7, 4, 2)
    assert (reader.finish_reason, reader.is_done, reader.outcome()) == ("length", True, None)


@pytest.mark.parametrize(
    "chunk", [token("", token_ids=[5]), event({"choices": [{"delta": {"reasoning_content": "hm"}}]})]
)
def test_tokens_without_text_count(chunk):
    assert list(read(ROLE, chunk).chunks_s) == [1.0]


def test_a_server_may_send_no_usage_and_another_no_done():
    assert read(token(), FINISH, DONE).outcome() is None
    assert read(token(), FINISH, usage(1, 1)).outcome() is None
    assert read(
        token(), FINISH, event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    ).usage == (Usage(1, 1, 0))


@pytest.mark.parametrize(
    ("pieces", "kind", "words"),
    [
        ([token(), event({"error": {"message": "engine died", "code": 500}}), DONE], "error event", "engine died"),
        ([event({"error": "plain"})], "error event", "plain"),
        ([token()], "bad stream", "without a finish reason"),
        ([ROLE, FINISH, DONE], "bad stream", "neither tokens nor usage"),
        ([event(b"{not json")], "bad stream", "{not json"),
        ([event([1])], "bad stream", "[1]"),
        ([event({"choices": [], "usage": {"prompt_tokens": 1}})], "bad stream", "completion_tokens"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(pieces, kind, words):
    failure = read(*pieces).outcome()
    assert failure.kind == kind
    assert words in failure.message
