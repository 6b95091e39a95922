"""A whole run: every load, in rounds, on each server in turn."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.bench.load import ClosedLoop, Extent, Load, LoadRun, Measurement
from server.bench.prompts import Calibration, calibrate, prompt_text
from server.bench.record import Record
from server.bench.target import Target, TargetError
from server.bench.workload import PlannedRequest, Workload, plan

_PROBE_WORDS = (32, 160)
_PROBE_PART = 0
"""Of the plan's parts, those below a run's own."""
_WARM_UP_CLIENTS = 8
"""At most, before an open loop."""


@dataclass(frozen=True, slots=True)
class Schedule:
    loads: Sequence[Load]
    extent: Extent
    rounds: int
    warm_up_requests: int | None
    """Before each load's first round on a server; None: one for each client, or one before an open loop."""


class Observer(Protocol):
    """Watches a run, to show how far it is."""

    def on_begin(self, target: str, load: Load, round_: int | None) -> None:
        """A measurement begins, or with None its warm-up."""
        ...

    def on_record(self, record: Record) -> None:
        """A request of a measurement has ended."""
        ...


async def calibrate_prompts(target: Target, seed: int) -> Calibration:
    """What prompts cost on this server, by its usage for two probes of one token each.

    Raises:
        TargetError: a probe failed, or the answer has no usable usage.
    """
    probes: list[tuple[int, int]] = []
    for number, num_words in enumerate(_PROBE_WORDS):
        request = PlannedRequest(prompt_text(number, num_words, seed=f"{seed}/probe"), max_tokens=1)
        record = await target.ask(request, target.body(request), zero_s=0.0)
        if record.failure is not None:
            raise TargetError(f"{target.spec.name}: the first request failed: {record.failure.message}")
        if record.usage is None:
            raise TargetError(f"{target.spec.name}: streams carry no usage; give --prompt-words")
        probes.append((num_words, record.usage.prompt_tokens))
    try:
        return calibrate(*probes)
    except ValueError as err:
        raise TargetError(f"{target.spec.name}: {err}; give --prompt-words") from err


class Session:
    """Runs a schedule. `measurements` holds what there is at any time, also after an interruption."""

    def __init__(self, targets: Sequence[Target], workload: Workload, schedule: Schedule, observer: Observer) -> None:
        self._targets = targets
        self._workload = workload
        self._schedule = schedule
        self._observer = observer
        self.measurements: list[Measurement] = []

    async def run(self) -> None:
        """
        Raises:
            TargetError: every request of a warm-up failed, so there is nothing to measure.
        """
        part = _PROBE_PART
        for load in self._schedule.loads:
            part += 1
            for target in self._targets:
                await self._warm_up(target, load, part)
            for round_ in range(self._schedule.rounds):
                part += 1
                # The order turns from round to round: what grows or shrinks steadily then favours nobody.
                for target in self._targets if round_ % 2 == 0 else reversed(self._targets):
                    await self._measure(target, load, part, round_)

    async def _measure(self, target: Target, load: Load, part: int, round_: int) -> None:
        self._observer.on_begin(target.spec.name, load, round_)
        run = LoadRun(target, load, self._schedule.extent, on_record=self._observer.on_record)
        try:
            await run.run(plan(self._workload, part), seed=f"{self._workload.seed}/{part}/arrivals")
        finally:
            self.measurements.append(run.measurement(round_))

    async def _warm_up(self, target: Target, load: Load, part: int) -> None:
        clients = load.clients if isinstance(load, ClosedLoop) else 1
        asked = self._schedule.warm_up_requests
        num_requests = clients if asked is None else asked
        if num_requests == 0:
            return
        self._observer.on_begin(target.spec.name, load, None)
        if not isinstance(load, ClosedLoop):
            clients = min(num_requests, _WARM_UP_CLIENTS)
        extent = Extent(num_requests=num_requests, duration_s=None)
        run = LoadRun(target, ClosedLoop(clients), extent, on_record=lambda _: None)
        await run.run(plan(self._workload, part), seed="")
        failures = [record.failure for record in run.measurement(0).records]
        if all(failures):
            assert failures[0] is not None
            raise TargetError(f"{target.spec.name}: every request of the warm-up failed: {failures[0].message}")


async def open_targets(targets: Sequence[Target], fields: dict[str, object], *, wait_s: float | None) -> None:
    """Asks each server what it serves, after it has become ready where `wait_s` allows that time.

    Raises:
        TargetError: of the first that cannot be measured.
    """
    if wait_s is not None:
        await asyncio.gather(*(target.wait_ready(wait_s) for target in targets))
    for target in targets:
        await target.open(fields)
