import pytest

from server.bench.objective import Objective, parse_objective
from server.bench.record import Usage
from tests.support.bench_records import make_failed, make_record


def test_limits_are_read_and_said():
    objective = parse_objective("ttft=2s, itl=200ms,e2e=1m")
    assert objective == Objective(ttft_s=2.0, itl_s=0.2, e2e_s=60.0)
    assert str(objective) == "ttft <= 2 s, itl <= 200 ms, e2e <= 60 s"


@pytest.mark.parametrize("text", ["", "ttft", "ttft=2", "speed=1s", "ttft=1s,ttft=2s"])
def test_what_is_no_objective_is_refused(text):
    with pytest.raises(ValueError, match="write for example"):
        parse_objective(text)


def test_every_limit_must_be_kept():
    record = make_record()  # first token after 1 s, then one every half second, 2 s in all
    assert Objective(ttft_s=1.0, itl_s=0.5, e2e_s=2.0).is_met_by(record)
    assert not Objective(ttft_s=0.9).is_met_by(record)
    assert not Objective(itl_s=0.4).is_met_by(record)
    assert not Objective(e2e_s=1.9).is_met_by(record)


def test_answers_of_one_token_cannot_miss_the_gap_and_failures_miss_everything():
    assert Objective(itl_s=0.001).is_met_by(make_record(0.0, (1.0,), usage=Usage(1, 1, 0)))
    assert not Objective().is_met_by(make_failed())
