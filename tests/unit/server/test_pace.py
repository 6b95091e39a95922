"""When it is worth coming back."""

from server.pace import MAX_RETRY_S, Pace


def test_without_experience_it_is_a_guess_within_bounds() -> None:
    assert Pace().retry_after_s(1, 0) == 1
    assert Pace().retry_after_s(10**6, 0) == MAX_RETRY_S


def test_a_quarter_of_those_before_at_the_measured_pace() -> None:
    pace = Pace()
    for number in range(200):
        pace.on_leaving(number * 0.5, was_idle=False)
    assert pace.retry_after_s(40, 99.5) in (5, 6)
    assert pace.retry_after_s(1, 99.5) == 1


def test_idle_time_says_nothing() -> None:
    pace = Pace()
    for number in range(200):
        pace.on_leaving(number * 0.5, was_idle=False)
    pace.on_leaving(5000, was_idle=True)
    assert pace.retry_after_s(40, 5000) in (5, 6)


def test_when_nobody_leaves_any_more_the_answer_grows() -> None:
    pace = Pace()
    for number in range(200):
        pace.on_leaving(number * 0.1, was_idle=False)
    assert pace.retry_after_s(4, 20) == 1
    assert pace.retry_after_s(4, 30) == 11
