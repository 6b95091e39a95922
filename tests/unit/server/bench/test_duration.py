import pytest

from server.bench.duration import format_seconds, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("200ms", 0.2), ("2s", 2.0), ("1.5m", 90.0), (" 1h ", 3600.0), ("50us", 5e-5)]
)
def test_times(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "2", "s", "0s", "-1s", "2 s", "1e3s", "2s2s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="200ms, 2s or 1m"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1234.5, "1234 s"), (12.345, "12.3 s"), (1.0, "1 s"), (0.5, "500 ms"), (0.0012345, "1.23 ms"), (5e-5, "50 us")],
)
def test_seconds_in_three_digits(seconds, text):
    assert format_seconds(seconds) == text
