"""When requests come in an open loop: at random, whatever the server does."""

import random
from collections.abc import Iterator


def poisson_arrivals(rate_per_s: float, *, seed: str) -> Iterator[float]:
    """Seconds from the start at which requests are due, the first at 0: independent clients have such gaps.

    The gaps have an exponential distribution of mean `1 / rate_per_s`.
    """
    rng = random.Random(seed)
    due_s = 0.0
    while True:
        yield due_s
        due_s += rng.expovariate(rate_per_s)
