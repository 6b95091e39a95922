import asyncio
import itertools
import os
import random
import subprocess
import sys
import threading
from contextlib import aclosing
from unittest import mock

import pytest
import uvloop

from model.step import SamplingParams
from server.engine import client as client_module
from server.engine import session as session_module
from server.engine.arena import Arena
from server.engine.prepare import Preparer
from server.errors import EngineUnavailable, InternalError
from tests.support.engines import (
    TIMEOUT_S,
    Recorder,
    collect,
    load_tokenizer,
    make_client,
    make_image,
    make_request,
    running_client,
    text_of,
)
from tests.support.fake_worker import KV_BLOCK_TOKENS, NUM_KV_BLOCKS

ONE_IMAGE_BYTES = 1000 * 1000
"""An arena that holds the crop of one small picture, about 600 KB, but not two."""


_colors = itertools.count(0x101010)


def new_image():
    """A picture that no engine has seen before."""
    return make_image(color=f"#{next(_colors):06x}")


def run(test, loop_factory=None):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(test, TIMEOUT_S))


async def first_event(client, request):
    """The stream of a request, and its first event."""
    stream = client.stream(await client.prepare(request))
    return stream, await anext(stream)


@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])
def test_an_answer_is_streamed(loop_factory):
    async def scenario():
        async with running_client() as client:
            assert client.state == "ready"
            assert client.alive
            events = await collect(client, make_request("echo 你好, hello"))
            assert text_of(events) == "你好, hello"
            ids = [token_id for event in events for token_id in event.token_ids]
            tokenizer = load_tokenizer()
            assert ids == [*tokenizer.encode("你好, hello"), tokenizer.eos_id]
            assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
            last = events[-1]
            assert last.finish_reason == "stop"
            assert last.num_tokens == len(ids)
            assert (last.timings.queue_s, last.timings.prefill_s, last.timings.decode_s) == pytest.approx((1, 2, 3))
        assert client.state == "stopped"

    run(scenario(), loop_factory)


def test_pixels_reach_the_engine_in_order():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            images = [make_image(color=color) for color in ("#123456", "#abcdef")]
            events = await collect(client, make_request("pixels", *images))
            assert text_of(events) == "123456 abcdef"
        assert recorder.crops == [1, 1]

    run(scenario())


def test_a_picture_seen_before_is_neither_decoded_nor_sent():
    async def scenario():
        recorder = Recorder()
        # There is no room for the picture while the first request holds it.
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            image = new_image()
            stream, _ = await first_event(client, make_request("hold on", image))
            assert text_of(await collect(client, make_request("echo twice", image))) == "twice"
            await stream.aclose()
        assert (recorder.crops, recorder.num_known, recorder.num_decoded_again) == ([1], 1, 0)

    run(scenario())


def test_pixels_that_the_engine_asks_for_come_later():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, arena_bytes=2 * ONE_IMAGE_BYTES) as client:
            old = make_image(color="#123456")
            assert text_of(await collect(client, make_request("pixels", old))) == "123456"
            assert text_of(await collect(client, make_request("pixels", old))) == "123456"
            assert (recorder.crops, recorder.num_known, recorder.num_decoded_again) == ([1], 1, 1)
            # A picture that was sent is sent again with the one that was not.
            for _ in range(5):
                request = make_request("pixels", make_image(color="#abcdef"), old, new_image())
                assert text_of(await collect(client, request)).startswith("abcdef 123456 ")

    run(scenario())


def test_pixels_are_asked_for_in_vain_when_the_client_leaves():
    async def scenario():
        recorder = Recorder()
        turns = random.Random(1)
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            image = new_image()
            await collect(client, make_request("echo first", image))
            tasks = [asyncio.create_task(collect(client, make_request("want", image))) for _ in range(10)]
            await recorder.until(lambda seen: seen.num_decoded_again > 1)
            for task in turns.sample(tasks, len(tasks)):
                for _ in range(turns.randrange(20)):
                    await asyncio.sleep(0)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            # There is room again for every one.
            for _ in range(3):
                assert text_of(await collect(client, make_request("echo next", new_image()))) == "next"

    run(scenario())


def test_the_engine_dies_while_pixels_wait_for_room():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            image = make_image(color="#123456")
            await collect(client, make_request("echo first", image))
            holder, _ = await first_event(client, make_request("hold on", new_image()))
            waiting = asyncio.ensure_future(collect(client, make_request("pixels", image)))
            await recorder.until(lambda seen: seen.num_decoded_again == 1)
            for ending in (collect(client, make_request("die")), anext(holder), waiting):
                with pytest.raises(EngineUnavailable):
                    await ending
            await recorder.until(lambda seen: seen.num_ready == 2)
            assert text_of(await collect(client, make_request("pixels", image))) == "123456"

    run(scenario())


def test_pictures_that_cannot_be_decoded_again_end_one_request_alone(caplog):
    async def scenario():
        async with running_client() as client:
            image = new_image()
            other, _ = await first_event(client, make_request("hold on", image))
            with (
                mock.patch.object(Preparer, "cut", side_effect=MemoryError),
                pytest.raises(InternalError, match="could not be decoded again"),
            ):
                await collect(client, make_request("pixels", image))
            assert text_of(await collect(client, make_request("echo fine", image))) == "fine"
            await other.aclose()

    run(scenario())
    assert "could not be decoded again" in caplog.text


def test_a_new_engine_has_seen_no_pictures():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            image = make_image(color="#123456")
            await collect(client, make_request("echo once", image))
            known = await client.prepare(make_request("pixels", image))
            assert known.crops[0].pixels is None
            with pytest.raises(EngineUnavailable):
                await collect(client, make_request("die"))
            await recorder.until(lambda seen: seen.num_ready == 2)
            assert (await client.prepare(make_request("pixels", image))).crops[0].pixels is not None
            # What was prepared for the old one is good for the new one: it asks.
            async with asyncio.timeout(TIMEOUT_S):
                assert text_of([event async for event in client.stream(known)]) == "123456"
        assert recorder.num_decoded_again == 1

    run(scenario())


def test_another_salt_makes_another_crop_of_the_same_picture():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            image = new_image()
            salts = (b"", b"one", b"two", b"one")
            answers = [text_of(await collect(client, make_request("hashes", image, cache_salt=salt))) for salt in salts]
            assert len(set(answers)) == 3
            assert answers[1] == answers[3]
        assert (recorder.crops, recorder.num_known) == ([1] * 3, 1)

    run(scenario())


def test_the_salt_reaches_the_engine():
    async def scenario():
        async with running_client() as client:
            events = await collect(client, make_request("salt", cache_salt=b"\x12tenant"))
            assert text_of(events) == b"\x12tenant".hex()

    run(scenario())


def test_choices_are_told_apart():
    async def scenario():
        async with running_client() as client:
            events = await collect(client, make_request("echo one two", num_choices=3))
            assert [text_of(events, choice) for choice in range(3)] == ["one two"] * 3
            assert sorted(event.choice for event in events if event.finish_reason) == [0, 1, 2]

    run(scenario())


def test_many_streams_at_once():
    async def scenario():
        async with running_client(arena_bytes=2 * ONE_IMAGE_BYTES) as client:
            requests = [make_request(f"echo number {n}", *[new_image()] * (n % 3)) for n in range(30)]
            answers = await asyncio.gather(*(collect(client, request) for request in requests))
            assert [text_of(events) for events in answers] == [f"number {n}" for n in range(30)]

    run(scenario())


def test_logprobs_come_with_text_and_bytes():
    async def scenario():
        async with running_client() as client:
            request = make_request("echo hi", sampling=SamplingParams(num_logprobs=2))
            logprobs = [logprob for event in await collect(client, request) for logprob in event.logprobs]
            assert "".join(logprob.text for logprob in logprobs) == "hi"
            tokenizer = load_tokenizer()
            first = tokenizer.encode("hi")[0]
            assert logprobs[0].data == tokenizer.id_to_bytes(first)
            assert logprobs[0].top == tuple(
                (tokenizer.id_to_text(first + rank), tokenizer.id_to_bytes(first + rank), -0.5 - rank)
                for rank in range(2)
            )

    run(scenario())


def test_a_stop_string_ends_the_choice_and_the_work_on_it():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            # The engine holds on after these words, so only an abort of each choice ends the request there.
            events = await collect(client, make_request("hold one STOP two", stop=("STOP",), num_choices=2))
            assert [text_of(events, choice) for choice in range(2)] == ["one", "one"]
            assert [event.finish_reason for event in events if event.finish_reason] == ["stop", "stop"]
            await recorder.until(lambda seen: seen.num_running == 0)

    run(scenario())


def test_a_failure_ends_one_request_alone():
    async def scenario():
        async with running_client() as client:
            stream, _ = await first_event(client, make_request("hold on"))
            with pytest.raises(InternalError):
                await collect(client, make_request("fail"))
            assert text_of(await collect(client, make_request("echo fine"))) == "fine"
            await stream.aclose()

    run(scenario())


def test_leaving_a_stream_frees_the_engine_and_the_arena():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            # So many updates that most are still under way, and find nobody.
            stream, event = await first_event(client, make_request("hold on" + " and on" * 200, new_image()))
            assert event.text
            await recorder.until(lambda seen: seen.num_running == 1)
            await stream.aclose()
            await recorder.until(lambda seen: seen.num_running == 0)
            assert text_of(await collect(client, make_request("echo next", new_image()))) == "next"

    run(scenario())


def test_an_answer_whose_time_is_over_ends_in_the_engine_too():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            holder, _ = await first_event(client, make_request("hold on", new_image()))
            # There is no room for these pixels, so the engine never hears of the request.
            (event,) = await collect(client, make_request("echo never", new_image(), max_time_s=0.1))
            assert (event.text, event.num_tokens, event.finish_reason) == ("", 0, "length")
            await holder.aclose()
            await recorder.until(lambda seen: seen.num_running == 0)
            events = await collect(client, make_request("hold on", new_image(), max_time_s=0.5, num_choices=2))
            assert [event.finish_reason for event in events if event.finish_reason] == ["length"] * 2
            assert text_of(events)
            await recorder.until(lambda seen: seen.num_running == 0)
            assert text_of(await collect(client, make_request("echo next", new_image(), max_time_s=60))) == "next"

    run(scenario())


def test_cancelling_before_the_first_token():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            waiting = asyncio.create_task(collect(client, make_request("hold", new_image())))
            await recorder.until(lambda seen: seen.num_running == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert text_of(await collect(client, make_request("echo next", new_image()))) == "next"
            assert recorder.num_running == 0

    run(scenario())


def test_cancelling_while_the_arena_is_full():
    async def scenario():
        async with running_client(arena_bytes=ONE_IMAGE_BYTES) as client:
            holder, _ = await first_event(client, make_request("hold on", new_image()))
            prepared = await client.prepare(make_request("echo never", new_image()))
            waiting = [asyncio.ensure_future(anext(client.stream(prepared))) for _ in range(2)]
            await asyncio.sleep(0)
            # A text needs no room there.
            assert text_of(await collect(client, make_request("echo text"))) == "text"
            assert not any(future.done() for future in waiting)
            waiting[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            await holder.aclose()
            assert (await waiting[1]).text

    run(scenario())


def test_cancelling_while_pixels_are_copied_keeps_the_range_until_the_copy_ends(monkeypatch):
    copying, go_on = threading.Event(), threading.Event()
    write = Arena.write

    def slow_write(arena, offset, data):
        copying.set()
        assert go_on.wait(TIMEOUT_S)
        write(arena, offset, data)

    async def scenario():
        async with running_client(arena_bytes=ONE_IMAGE_BYTES) as client:
            prepared = await client.prepare(make_request("echo seen", new_image()))
            monkeypatch.setattr(Arena, "write", slow_write)
            cancelled = asyncio.ensure_future(anext(client.stream(prepared)))
            await asyncio.to_thread(copying.wait, TIMEOUT_S)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            following = asyncio.ensure_future(anext(client.stream(prepared)))
            await collect(client, make_request("echo text"))  # many turns of the loop
            assert not following.done()
            go_on.set()
            assert (await following).text

    run(scenario())


def test_requests_that_leave_at_any_moment_leave_nothing_behind():
    async def scenario():
        recorder = Recorder()
        turns = random.Random(0)
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            requests = [make_request(f"{turns.choice(['hold', 'echo'])} on", new_image()) for _ in range(40)]
            tasks = [asyncio.create_task(collect(client, request)) for request in requests]
            for task in turns.sample(tasks, len(tasks)):
                for _ in range(turns.randrange(60)):
                    await asyncio.sleep(0)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, list | asyncio.CancelledError) for result in results)
            # There is room again, and nothing is in the way.
            assert text_of(await collect(client, make_request("echo next", new_image()))) == "next"
            await recorder.until(lambda seen: seen.num_running == 0)

    run(scenario())


def test_when_the_engine_dies_every_request_ends_and_the_next_one_succeeds():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, arena_bytes=ONE_IMAGE_BYTES) as client:
            streaming, _ = await first_event(client, make_request("hold on", new_image()))
            for_arena = asyncio.ensure_future(
                anext(client.stream(await client.prepare(make_request("a", new_image()))))
            )
            prepared = await client.prepare(make_request("echo later"))
            await recorder.until(lambda seen: seen.num_running == 1)
            dying = collect(client, make_request("die"))
            for ending in (dying, anext(streaming), asyncio.wait_for(for_arena, TIMEOUT_S)):
                with pytest.raises(EngineUnavailable, match="the engine stopped while this request was running") as end:
                    await ending
                assert end.value.retry_after_s >= 1
            await recorder.until(lambda seen: seen.num_restarts == 1)
            assert client.state == "restarting"
            assert client.alive
            with pytest.raises(EngineUnavailable, match="the engine is not ready: restarting") as refusal:
                await client.prepare(make_request("echo no"))
            assert refusal.value.retry_after_s >= 1
            with pytest.raises(EngineUnavailable):
                client.stream(prepared)
            await recorder.until(lambda seen: seen.num_ready == 2)
            assert client.state == "ready"
            assert text_of(await collect(client, make_request("echo again", new_image()))) == "again"

    run(scenario())


def test_a_stream_that_begins_after_the_end_of_its_engine():
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            stream = client.stream(await client.prepare(make_request("echo late")))
            with pytest.raises(EngineUnavailable):
                await collect(client, make_request("die"))
            await recorder.until(lambda seen: seen.num_restarts == 1)
            with pytest.raises(EngineUnavailable, match="stopped while"):
                await anext(stream)

    run(scenario())


def test_an_engine_that_talks_nonsense_is_replaced(caplog):
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            stream, _ = await first_event(client, make_request("hold on"))
            for ending in (collect(client, make_request("nonsense")), anext(stream)):
                with pytest.raises(EngineUnavailable):
                    await ending
            await recorder.until(lambda seen: seen.num_ready == 2)
            assert text_of(await collect(client, make_request("echo again"))) == "again"

    run(scenario())
    assert "a message of the engine could not be handled" in caplog.text


def test_stopping_ends_running_requests():
    async def scenario():
        async with running_client() as client:
            stream, _ = await first_event(client, make_request("hold on"))
            await client.stop()
            with pytest.raises(EngineUnavailable):
                await anext(stream)
            with pytest.raises(EngineUnavailable, match="stopped"):
                await client.prepare(make_request("echo"))

    run(scenario())


def test_before_the_start_nothing_is_ready():
    async def scenario():
        client = make_client(Recorder())
        assert client.state == "starting"
        assert client.alive
        assert client.model.max_context_tokens == 4096
        with pytest.raises(EngineUnavailable, match="starting"):
            await client.prepare(make_request("echo"))
        await client.stop()

    run(scenario())


def test_the_context_is_what_the_cache_can_hold():
    async def scenario():
        async with running_client() as client:
            assert client.model.max_context_tokens == NUM_KV_BLOCKS * KV_BLOCK_TOKENS

    run(scenario())


def test_an_engine_that_falls_silent_is_not_alive_and_is_killed_at_the_end(monkeypatch):
    monkeypatch.setattr(client_module, "SILENCE_LIMIT_S", 0.3)
    monkeypatch.setattr(session_module, "EXIT_WAIT_S", 0.1)

    async def scenario():
        async with running_client() as client:
            assert client.last_update_age_s < 0.3
            async with aclosing(client.stream(await client.prepare(make_request("silent")))) as stream:
                waiting = asyncio.ensure_future(anext(stream))
                while client.alive:  # noqa: ASYNC110 - silence is no event
                    await asyncio.sleep(0.02)
                assert client.last_update_age_s >= 0.3
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    run(scenario())


ORPHAN = """
import asyncio, os, signal
from tests.support.engines import Recorder, make_client

async def main():
    await make_client(Recorder()).start()
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_the_engine_does_not_outlive_its_parent():
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}) as parent:
        # The engine inherits the pipe: it has an end only when both are gone.
        assert parent.stdout.read() == b"ready\n"
    assert parent.returncode < 0


@pytest.mark.parametrize("module", ["server.engine.client", "server.engine.prepare", "server.image"])
def test_no_torch_in_the_api_process(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
