import pytest

from server.bench.sse import EventParser

STREAM = b'data: {"a": 1}\n\n: comment\n\nevent: x\r\ndata:two\r\n\r\ndata: a\ndata: b\n\ndata: [DONE]\n\n'
PAYLOADS = [b'{"a": 1}', b"two", b"a\nb", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_whole_however_the_bytes_arrive(size):
    parser = EventParser()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [payload for piece in pieces for payload in parser.feed(piece)] == PAYLOADS


def test_an_event_without_its_blank_line_is_not_over():
    parser = EventParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [b"x"]
    assert parser.feed(b"\n\n") == []
