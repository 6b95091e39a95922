from itertools import islice, pairwise

import pytest

from server.bench.arrivals import poisson_arrivals


def test_the_first_is_due_at_once_and_all_come_in_order():
    due = list(islice(poisson_arrivals(5.0, seed="a"), 1000))
    assert due[0] == 0
    assert due == sorted(due)
    assert due == list(islice(poisson_arrivals(5.0, seed="a"), 1000))
    assert due != list(islice(poisson_arrivals(5.0, seed="b"), 1000))


def test_gaps_are_exponential():
    due = list(islice(poisson_arrivals(4.0, seed="a"), 10001))
    gaps = [after - before for before, after in pairwise(due)]
    assert due[-1] / 10000 == pytest.approx(0.25, rel=0.05)
    # Of an exponential distribution 1 - 1/e lies below the mean.
    assert sum(gap < 0.25 for gap in gaps) / 10000 == pytest.approx(0.632, abs=0.02)
