import asyncio

import pytest

from server.bench.load import ClosedLoop, Extent, OpenLoop
from server.bench.prompts import Calibration, Span
from server.bench.session import Schedule, Session, calibrate_prompts, open_targets
from server.bench.target import TargetError
from server.bench.workload import Workload
from tests.support.scripted_server import json_answer, scripted_target, whole_stream

WORKLOAD = Workload(Span(8, 8), 0, None, Span(3, 3), None, 0)


class Observed:
    def __init__(self):
        self.begun = []
        self.num_records = 0

    def on_begin(self, target, load, round_):
        self.begun.append((target, str(load), round_))

    def on_record(self, record):
        self.num_records += 1


async def answer(asked, writer):
    """A word is two tokens, and three stand around the prompt."""
    text = asked.body["messages"][0]["content"]
    writer.write(whole_stream(asked.body["max_tokens"], prompt_tokens=2 * len(text.split()) + 3))


async def refuse(asked, writer):
    writer.write(json_answer({"error": {"message": "no such thing"}}, "400 No"))


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 30))


def texts(server):
    return [asked.body["messages"][0]["content"] for asked in server.asked if asked.body]


def test_servers_take_turns_and_get_the_same_requests():
    observed = Observed()
    schedule = Schedule([ClosedLoop(1), OpenLoop(500.0)], Extent(4, None), rounds=2, warm_up_requests=2)

    async def scenario():
        async with (
            scripted_target(answer, name="a") as (one, one_server),
            scripted_target(answer, name="b") as (other, other_server),
        ):
            session = Session([one, other], WORKLOAD, schedule, observed)
            await session.run()
            return session.measurements, texts(one_server), texts(other_server)

    measurements, one, other = run(scenario())
    turns = [("a", None), ("b", None), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    loads = ["1 client", "500 req/s"]
    assert observed.begun == [(target, load, round_) for load in loads for target, round_ in turns]
    measured = [(one.target, str(one.load), one.round) for one in measurements]
    assert measured == [begun for begun in observed.begun if begun[2] is not None]
    assert all(len(one.records) == 4 for one in measurements)
    assert observed.num_records == 4 * 8  # warm-ups are in no figure
    assert sorted(one) == sorted(other)
    assert len(set(one)) == len(one) == 2 * (2 + 2 * 4)


@pytest.mark.parametrize(
    ("load", "asked", "expected"), [(ClosedLoop(3), None, 3), (OpenLoop(500.0), None, 1), (ClosedLoop(3), 0, 0)]
)
def test_requests_of_the_warm_up(load, asked, expected):
    async def scenario():
        async with scripted_target(answer) as (target, server):
            await Session([target], WORKLOAD, Schedule([load], Extent(5, None), 1, asked), Observed()).run()
            return len(texts(server))

    assert run(scenario()) == 5 + expected


def test_a_server_that_refuses_the_whole_warm_up_is_not_measured():
    async def scenario():
        async with scripted_target(refuse) as (target, _):
            await Session([target], WORKLOAD, Schedule([ClosedLoop(1)], Extent(5, None), 1, 2), Observed()).run()

    with pytest.raises(TargetError, match="scripted: every request of the warm-up failed: 400: no such thing"):
        run(scenario())


def test_an_interrupted_session_keeps_its_measurements():
    async def scenario():
        blocked = asyncio.Event()

        async def three(asked, writer):
            if len(texts(server)) > 3:
                blocked.set()
                await asyncio.sleep(60)
            await answer(asked, writer)

        async with scripted_target(three) as (target, server):
            schedule = Schedule([ClosedLoop(1)], Extent(2, None), rounds=4, warm_up_requests=0)
            session = Session([target], WORKLOAD, schedule, Observed())
            running = asyncio.create_task(session.run())
            await blocked.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return session.measurements

    measurements = run(scenario())
    assert [(len(one.records), one.num_cut) for one in measurements] == [(2, 0), (1, 1)]


def test_calibration_asks_for_two_prompts():
    async def scenario():
        async with scripted_target(answer) as (target, server):
            return await calibrate_prompts(target, 0), [
                asked.body["max_tokens"] for asked in server.asked if asked.body
            ]

    assert run(scenario()) == (Calibration(2.0, 3.0), [1, 1])


async def no_usage(asked, writer):
    writer.write(whole_stream(1).split(b'"usage"')[0])
    writer.close()


async def constant(asked, writer):
    writer.write(whole_stream(1, prompt_tokens=5))


@pytest.mark.parametrize(
    ("script", "words"), [(refuse, "no such thing"), (constant, "5 for 160; give --prompt-words"), (no_usage, "failed")]
)
def test_a_server_that_cannot_be_calibrated_says_why(script, words):
    async def scenario():
        async with scripted_target(script) as (target, _):
            await calibrate_prompts(target, 0)

    with pytest.raises(TargetError, match=words):
        run(scenario())


def test_servers_are_waited_for_and_opened():
    async def scenario():
        async with scripted_target(answer) as (target, server):
            await open_targets([target], {"temperature": 0}, wait_s=5.0)
            assert [asked.path for asked in server.asked] == ["/v1/models", "/v1/models", "/health", "/v1/models"]
            assert target.models["data"][0]["id"] == "scripted"

    run(scenario())
