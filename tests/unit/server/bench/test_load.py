import asyncio

import pytest

from server.bench.load import ClosedLoop, Extent, LoadRun, OpenLoop
from server.bench.prompts import Span
from server.bench.workload import Workload, plan
from tests.support.scripted_server import json_answer, scripted_target, whole_stream

WORKLOAD = Workload(Span(8, 8), 0, None, Span(3, 3), None, 0)


class Gate:
    """Answers when told; knows how many wait."""

    def __init__(self):
        self.num_waiting = self.most_waiting = 0
        self.open = asyncio.Event()
        self._changed = asyncio.Condition()

    async def until(self, num_waiting):
        async with self._changed:
            await self._changed.wait_for(lambda: self.num_waiting >= num_waiting)

    async def script(self, asked, writer):
        async with self._changed:
            self.num_waiting += 1
            self.most_waiting = max(self.most_waiting, self.num_waiting)
            self._changed.notify_all()
        await self.open.wait()
        self.num_waiting -= 1
        writer.write(whole_stream(3))


async def answer(asked, writer):
    writer.write(whole_stream(3))


async def refuse(asked, writer):
    writer.write(json_answer({"error": {"message": "no"}}, "503 No"))


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 30))


def load(script, kind, extent, *, seen=None):
    async def scenario():
        async with scripted_target(script) as (target, server):
            run_ = LoadRun(
                target, kind, extent, on_record=lambda record: seen.append(record) if seen is not None else None
            )
            await run_.run(plan(WORKLOAD, 1), seed="s")
            return run_.measurement(2), server

    return run(scenario())


def test_a_number_of_requests_from_a_number_of_clients():
    seen = []
    measurement, server = load(answer, ClosedLoop(3), Extent(10, None), seen=seen)
    assert (measurement.target, measurement.load, measurement.round) == ("scripted", ClosedLoop(3), 2)
    assert len(measurement.records) == len(seen) == 10
    assert all(record.failure is None and record.completion_tokens == 3 for record in seen)
    assert measurement.wall_s == max(record.ended_s for record in seen)
    texts = [asked.body["messages"][0]["content"] for asked in server.asked if asked.body]
    assert len(set(texts)) == 10
    assert max(asked.connection for asked in server.asked) <= 3


def test_a_closed_loop_never_has_more_than_its_clients_in_flight():
    async def scenario():
        gate = Gate()
        async with scripted_target(gate.script) as (target, _):
            run_ = LoadRun(target, ClosedLoop(3), Extent(9, None), on_record=lambda _: None)
            running = asyncio.create_task(run_.run(plan(WORKLOAD, 1), seed=""))
            await gate.until(3)
            await asyncio.sleep(0.05)
            assert gate.num_waiting == 3
            gate.open.set()
            await running
            assert gate.most_waiting == 3

    run(scenario())


def test_an_open_loop_sends_on_though_nothing_is_answered_and_counts_from_the_due_time():
    async def scenario():
        gate = Gate()
        async with scripted_target(gate.script) as (target, _):
            run_ = LoadRun(target, OpenLoop(200.0), Extent(20, None), on_record=lambda _: None)
            running = asyncio.create_task(run_.run(plan(WORKLOAD, 1), seed="s"))
            await gate.until(20)
            gate.open.set()
            await running
            return run_.measurement(0).records

    records = sorted(run(scenario()), key=lambda record: record.due_s)
    assert len(records) == 20
    assert records[0].due_s == 0
    assert all(record.sent_s >= record.due_s for record in records)
    assert all(record.ttft_s == pytest.approx(record.chunks_s[0] - record.due_s) for record in records)


@pytest.mark.parametrize("kind", [ClosedLoop(2), OpenLoop(40.0)])
def test_a_duration_ends_the_load_but_not_its_last_requests(kind):
    measurement, _ = load(answer, kind, Extent(None, 0.2))
    assert measurement.records
    assert all(record.failure is None for record in measurement.records)
    if isinstance(kind, OpenLoop):  # a client of a closed loop sends when it gets to it
        assert all(record.due_s < 0.2 for record in measurement.records)


def test_a_number_and_a_duration_end_at_whichever_comes_first():
    measurement, _ = load(answer, ClosedLoop(1), Extent(2, 60.0))
    assert len(measurement.records) == 2


def test_failures_are_records_too():
    measurement, _ = load(refuse, ClosedLoop(2), Extent(4, None))
    assert [record.failure.kind for record in measurement.records] == ["http 503"] * 4


def test_an_interrupted_load_keeps_what_it_has_seen():
    async def scenario():
        gate = Gate()

        async def first_two(asked, writer):
            if len([one for one in server.asked if one.body]) <= 2:
                writer.write(whole_stream(3))
            else:
                await gate.script(asked, writer)

        async with scripted_target(first_two) as (target, server):
            run_ = LoadRun(target, ClosedLoop(2), Extent(8, None), on_record=lambda _: None)
            running = asyncio.create_task(run_.run(plan(WORKLOAD, 1), seed=""))
            await gate.until(2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            gate.open.set()
            return run_.measurement(0)

    measurement = run(scenario())
    assert (len(measurement.records), measurement.num_cut) == (2, 2)
