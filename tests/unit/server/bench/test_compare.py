import pytest

from server.bench.compare import ratios
from server.bench.load import ClosedLoop
from tests.support.bench_records import make_failed, make_measurement, make_record


def by_metric(found):
    return {ratio.metric: (ratio.median, ratio.min, ratio.max) for ratio in found}


def test_above_one_is_faster_for_rates_and_latencies_alike():
    # Theirs: 3 tokens in 10 s, the first after 1 s, 2 s in all. Ours: twice as fast in the first round, as fast in the
    # second.
    found = by_metric(
        ratios(
            [
                make_measurement(make_record(), target="theirs", round=0),
                make_measurement(make_record(0.0, (0.5, 0.75, 1.0)), target="ours", round=0, wall_s=5.0),
                make_measurement(make_record(), target="theirs", round=1),
                make_measurement(make_record(), target="ours", round=1),
            ],
            ["theirs", "ours"],
        )
    )
    assert set(found) == {"output tokens/s", "requests/s", "TTFT p50", "TPOT p50", "E2E p50"}
    assert all(values == pytest.approx((1.5, 1.0, 2.0)) for values in found.values())


def test_loads_are_compared_apart():
    one, other = ClosedLoop(1), ClosedLoop(4)
    measured = [
        make_measurement(make_record(), target=target, load=load) for load in (one, other) for target in ("a", "b", "c")
    ]
    found = ratios(measured, ["a", "b", "c"])
    assert {(ratio.load, ratio.target, ratio.baseline) for ratio in found} == {
        (load, target, "a") for load in (one, other) for target in ("b", "c")
    }


def test_rounds_that_one_server_lacks_are_left_out():
    measured = [
        make_measurement(make_record(), target="a"),
        make_measurement(make_record(), target="b"),
        make_measurement(make_record(), target="a", round=1),
    ]
    assert {ratio.num_rounds for ratio in ratios(measured, ["a", "b"])} == {1}


def test_a_server_that_only_fails_has_no_ratio():
    measured = [make_measurement(make_record(), target="a"), make_measurement(make_failed(), target="b")]
    assert ratios(measured, ["a", "b"]) == []
    assert ratios(measured, ["b", "a"]) == []
