import pytest

from server.bench.objective import Objective
from server.bench.record import Usage
from server.bench.summary import FailureCount, distribution, percentile, summarise
from tests.support.bench_records import make_failed, make_measurement, make_record


def test_percentiles_lie_between_the_nearest_ranks():
    values = [10.0, 20.0, 30.0, 40.0, 50.0]
    assert [percentile(values, fraction) for fraction in (0, 0.5, 1)] == [10, 30, 50]
    assert percentile(values, 0.9) == pytest.approx(46)  # 0.9 * 4 = rank 3.6
    assert percentile([10.0, 20.0], 0.5) == 15
    assert percentile([7.0], 0.99) == 7


def test_distribution_of_one_to_a_hundred():
    found = distribution(float(value) for value in range(100, 0, -1))
    assert (found.count, found.mean, found.min, found.max) == (100, 50.5, 1, 100)
    # Rank 0.5 * 99 = 49.5 from 1 on, and so on.
    assert (found.p50, found.p90, found.p95, found.p99) == pytest.approx((50.5, 90.1, 95.05, 99.01))
    assert distribution([]) is None


def test_figures_of_two_requests_and_a_failure():
    summary = summarise(
        [
            make_measurement(
                make_record(0.0, usage=Usage(100, 6, 40), num_pictures=2, num_reused_pictures=1),
                make_record(1.0, (2.0, 2.5), usage=Usage(50, 2, 0)),
                make_failed(),
                num_cut=1,
                num_late=3,
                wall_s=4.0,
            )
        ],
        Objective(ttft_s=1.5),
    )
    assert (summary.num_requests, summary.num_failed, summary.num_cut, summary.num_late) == (3, 1, 1, 3)
    assert summary.requests_per_s == 0.5
    assert summary.output_tokens_per_s == 2.0  # 8 tokens in 4 s
    assert summary.total_tokens_per_s == 39.5  # and 150 of prompts
    assert summary.pictures_per_s == 0.5
    assert summary.goodput_per_s == 0.25
    assert summary.good_share == pytest.approx(1 / 3)
    assert (summary.num_prompt_tokens, summary.num_cached_tokens, summary.num_completion_tokens) == (150, 40, 8)
    assert (summary.num_pictures, summary.num_reused_pictures) == (2, 1)
    assert summary.tokens_per_chunk == 1.6  # 8 in 3 + 2 chunks
    assert (summary.ttft_s.min, summary.ttft_s.max) == (1.0, 2.0)
    assert (summary.itl_s.count, summary.itl_s.mean) == (3, 0.5)
    assert summary.token_gap_s.mean == pytest.approx((1.0 / 5 + 0.5 / 1) / 2)
    assert summary.end_to_end_s.mean == 2.25
    assert summary.failures == (FailureCount("http 503", 1, "503: busy"),)


def test_rounds_are_pooled_and_their_times_added():
    rounds = [make_measurement(make_record(), wall_s=2.0), make_measurement(make_record(), round=1, wall_s=4.0)]
    summary = summarise(rounds)
    assert (summary.num_requests, summary.wall_s) == (2, 6.0)
    assert summary.output_tokens_per_s == 1.0
    assert summary.goodput_per_s is None


def test_the_source_of_token_counts_is_said():
    counted, uncounted = make_record(), make_record(usage=None)
    assert summarise([make_measurement(counted)]).tokens_from == "usage"
    assert summarise([make_measurement(uncounted)]).tokens_from == "chunks"
    assert summarise([make_measurement(counted, uncounted)]).tokens_from == "both"


def test_the_most_frequent_failure_comes_first_with_its_first_words():
    failed = [make_failed("timeout", "a"), make_failed("http 429", "b"), make_failed("http 429", "c")]
    assert summarise([make_measurement(*failed)]).failures == (
        FailureCount("http 429", 2, "b"),
        FailureCount("timeout", 1, "a"),
    )


def test_nothing_at_all_gives_no_figures():
    summary = summarise([make_measurement(wall_s=0.0)], Objective(ttft_s=1.0))
    assert (summary.num_requests, summary.requests_per_s, summary.goodput_per_s) == (0, 0.0, 0.0)
    assert summary.ttft_s is summary.good_share is summary.tokens_per_chunk is None
