"""Puts a server under load: a number of clients that each wait for their answer, or arrivals that wait for nobody."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from server.bench.arrivals import poisson_arrivals
from server.bench.feed import Feed
from server.bench.record import CLOCK, Record
from server.bench.target import Target
from server.bench.workload import PlannedRequest

_FEED_DEPTH = 64
_PAUSE_AFTER_FAILURE_S = 0.1
"""Of a client in a closed loop: a server that refuses at once is not asked a hundred thousand times a second."""


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    clients: int
    """Each sends its next request when its last has ended."""

    def __str__(self) -> str:
        return f"{self.clients} client{'s' if self.clients > 1 else ''}"


@dataclass(frozen=True, slots=True)
class OpenLoop:
    rate_per_s: float
    """Requests come at random times, so many a second on average."""

    def __str__(self) -> str:
        return f"{self.rate_per_s:g} req/s"


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class Extent:
    """How long a load lasts: to the number or to the time, whichever is set or comes first."""

    num_requests: int | None
    duration_s: float | None
    """No request begins later; those that run then are waited for."""

    def is_over(self, elapsed_s: float) -> bool:
        return self.duration_s is not None and elapsed_s >= self.duration_s


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load on one server."""

    target: str
    load: Load
    round: int
    wall_s: float
    """From the start to the end of the last request."""
    records: Sequence[Record]
    num_cut: int
    """Requests that were still running when the user interrupted."""
    num_late: int
    """Requests that this program had not made in time (see `Feed.num_late`)."""


class LoadRun:
    """One measurement while it is made. What has been seen so far stays readable when it is cancelled."""

    def __init__(self, target: Target, load: Load, extent: Extent, *, on_record: Callable[[Record], None]) -> None:
        self._target = target
        self._load = load
        self._extent = extent
        self._on_record = on_record
        self._clock = CLOCK
        self._zero_s = self._clock()
        self._records: list[Record] = []
        self._num_cut = 0
        self._num_late = 0

    async def run(self, requests: Iterator[PlannedRequest], *, seed: str) -> None:
        """Sends the requests until the extent is reached, and waits for the last answer.

        Args:
            requests: endless.
            seed: of the arrivals in an open loop.
        """

        def make() -> tuple[PlannedRequest, bytes]:
            request = next(requests)
            return request, self._target.body(request)

        clients = self._load.clients if isinstance(self._load, ClosedLoop) else 0
        feed = Feed(make, depth=max(_FEED_DEPTH, 2 * clients), limit=self._extent.num_requests)
        try:
            await feed.fill()
            self._zero_s = self._clock()
            if isinstance(self._load, ClosedLoop):
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(self._load.clients):
                        tasks.create_task(self._client(feed))
            else:
                await self._arrive(feed, poisson_arrivals(self._load.rate_per_s, seed=seed))
        finally:
            self._num_late = feed.num_late
            feed.close()

    def measurement(self, round_: int) -> Measurement:
        """What has been seen."""
        return Measurement(
            self._target.spec.name,
            self._load,
            round_,
            wall_s=max((record.ended_s for record in self._records), default=0.0),
            records=tuple(self._records),
            num_cut=self._num_cut,
            num_late=self._num_late,
        )

    async def _client(self, feed: Feed[tuple[PlannedRequest, bytes]]) -> None:
        while (made := await feed.take()) is not None:
            if self._extent.is_over(self._clock() - self._zero_s):
                return
            record = await self._ask(*made, due_s=None)
            if record.failure is not None:
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)

    async def _arrive(self, feed: Feed[tuple[PlannedRequest, bytes]], arrivals: Iterator[float]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for due_s in arrivals:
                made = None if self._extent.is_over(due_s) else await feed.take()
                if made is None:
                    return
                await asyncio.sleep(self._zero_s + due_s - self._clock())
                tasks.create_task(self._ask(*made, due_s=due_s))

    async def _ask(self, request: PlannedRequest, body: bytes, *, due_s: float | None) -> Record:
        try:
            record = await self._target.ask(request, body, zero_s=self._zero_s, due_s=due_s)
        except asyncio.CancelledError:
            self._num_cut += 1
            raise
        self._records.append(record)
        self._on_record(record)
        return record
