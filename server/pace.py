"""How fast requests leave, and so when it is worth coming back. The clock is an argument."""

import math

MAX_RETRY_S = 30
"""Clients give up on much more; and by then everything may be different."""
_SHARE = 0.1
"""Of the newest gap in the mean: some ten requests are remembered."""


class Pace:
    """The mean time between two requests that leave."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._mean_s = 1.0

    def on_leaving(self, now_s: float, *, was_idle: bool) -> None:
        """A request has left. Time in which there was nothing to do says nothing: `was_idle` leaves its gap out."""
        if self._last_s is not None and not was_idle:
            self._mean_s += (now_s - self._last_s - self._mean_s) * _SHARE
        self._last_s = now_s

    def retry_after_s(self, num_before: int, now_s: float) -> int:
        """Seconds, 1 to 30, until about a quarter of those before has left: whoever comes back then finds a place.

        Where nobody has left for longer than usual, that is the pace.
        """
        mean_s = self._mean_s if self._last_s is None else max(self._mean_s, now_s - self._last_s)
        return min(max(math.ceil(mean_s * max(num_before / 4, 1)), 1), MAX_RETRY_S)
