import pytest

from server.bench.record import Usage
from tests.support.bench_records import make_failed, make_record


def test_latencies_count_from_when_the_request_was_due():
    # Due at 2 s, sent a second late: the delay is part of every latency.
    record = make_record(2.0, (1.5, 2.0), sent_s=3.0, ended_s=4.25)
    assert record.ttft_s == 1.5
    assert record.end_to_end_s == 2.25


def test_gaps_and_the_time_of_a_token():
    record = make_record(0.0, (1.0, 1.5, 3.0), usage=Usage(10, 5, 0))
    assert record.gaps_s == [0.5, 1.5]
    # Five tokens in three chunks: the four after the first took two seconds.
    assert record.token_gap_s == pytest.approx(0.5)


def test_one_chunk_has_no_gap():
    record = make_record(0.0, (1.0,))
    assert record.gaps_s == []
    assert record.token_gap_s is None


def test_without_usage_each_chunk_is_a_token():
    assert make_record(usage=None).completion_tokens == 3


def test_a_failed_request_has_no_first_token():
    assert make_failed().ttft_s is None
