import asyncio
import errno
import os
import signal
from types import SimpleNamespace

import pytest

from server.engine import process as process_module
from server.engine import supervisor as supervisor_module
from server.engine.process import EngineStartError
from server.engine.supervisor import Supervisor
from server.errors import EngineUnavailable
from tests.support import fake_worker
from tests.support.engines import TIMEOUT_S, Recorder, collect, make_client, make_request, running_client, text_of


def run(test):
    asyncio.run(asyncio.wait_for(test, TIMEOUT_S))


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("no-start", fake_worker.REFUSAL),
        ("crash", f"the engine process ended with status {fake_worker.EXIT_STATUS} while it was starting"),
    ],
)
def test_an_engine_that_never_starts_is_a_failure_for_good(device, reason):
    async def scenario():
        client = make_client(Recorder(), device=device)
        with pytest.raises(EngineStartError) as caught:
            await client.start()
        assert str(caught.value) == reason
        assert client.state == "failed"
        assert not client.alive
        with pytest.raises(EngineUnavailable, match="failed"):
            await client.prepare(make_request("echo"))
        await client.stop()

    run(scenario())


def test_a_process_that_closes_its_socket_but_stays_is_killed(monkeypatch):
    monkeypatch.setattr(process_module, "EXIT_WAIT_S", 0.1)

    async def scenario():
        client = make_client(Recorder(), device="linger")
        with pytest.raises(EngineStartError, match="was ended by SIGKILL while it was starting"):
            await client.start()
        await client.stop()

    run(scenario())


def test_a_system_without_memory_for_the_engine(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async def scenario():
        client = make_client(Recorder())
        monkeypatch.setattr(os, "memfd_create", refuse)
        with pytest.raises(EngineStartError, match="could not be started: Cannot allocate memory"):
            await client.start()
        await client.stop()

    run(scenario())


def test_a_warm_up_that_fails_is_a_failure_to_start():
    async def scenario():
        # Smaller than the crop of the warm-up's picture.
        client = make_client(Recorder(), arena_bytes=100_000)
        with pytest.raises(EngineStartError, match="failed on its first requests: the images make slices of"):
            await client.start()
        await client.stop()

    run(scenario())


def test_a_restart_that_fails_is_tried_again(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor_module, "_FIRST_DELAY_S", 0.01)
    refusals = tmp_path / "refusals"
    refusals.write_text("0")

    async def scenario():
        recorder = Recorder()
        async with running_client(recorder, device=f"flaky:{refusals}") as client:
            refusals.write_text("2")
            with pytest.raises(EngineUnavailable):
                await collect(client, make_request("die"))
            await recorder.until(lambda seen: seen.num_ready == 2)
            assert refusals.read_text() == "0"
            assert recorder.num_restarts == 1
            assert text_of(await collect(client, make_request("echo back"))) == "back"

    run(scenario())


def test_stopping_during_a_restart(monkeypatch):
    async def scenario():
        recorder = Recorder()
        async with running_client(recorder) as client:
            with pytest.raises(EngineUnavailable):
                await collect(client, make_request("die"))
            await recorder.until(lambda seen: seen.num_restarts == 1)
        assert client.state == "stopped"
        assert recorder.num_ready == 1

    run(scenario())


def test_a_start_that_is_cancelled_leaves_no_process(monkeypatch):
    processes = []
    started = asyncio.Event()
    spawn = asyncio.create_subprocess_exec

    async def recording_spawn(*arguments, **options):
        processes.append(await spawn(*arguments, **options))
        started.set()
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", recording_spawn)

    async def scenario():
        client = make_client(Recorder())
        starting = asyncio.create_task(client.start())
        await started.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert [process.returncode for process in processes] == [-signal.SIGKILL]
        await client.stop()

    run(scenario())


class FakeSession:
    """A session that loads at once and ends when it is told to."""

    def __init__(self):
        self.ready = asyncio.get_running_loop().create_future()
        self.ready.set_result(None)
        self.over = asyncio.Event()

    async def ended(self):
        assert self.over.is_set()

    async def kill(self):
        self.over.set()

    shut_down = kill


def test_the_delay_doubles_to_its_limit_and_starts_over_after_a_healthy_run(monkeypatch):
    now = 0.0
    delays = []
    sessions = []
    news = asyncio.Event()
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=lambda: now))

    async def record_sleep(delay_s):
        delays.append(delay_s)

    async def spawn():
        sessions.append(FakeSession())
        return sessions[-1]

    async def warm_up(session):
        pass

    async def scenario():
        nonlocal now
        # The module's own name only: other threads' loops, such as a server's, go on sleeping.
        monkeypatch.setattr(supervisor_module, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": record_sleep}))
        supervisor = Supervisor(spawn, warm_up, on_ready=lambda _: news.set(), on_restart=lambda: None)
        await supervisor.start()
        for run_s in (1.0,) * 8 + (60.0, 1.0):
            news.clear()
            now += run_s
            sessions[-1].over.set()
            await news.wait()
            assert supervisor.state == "ready"
            assert supervisor.session is sessions[-1]
        await supervisor.stop()
        assert supervisor.state == "stopped"

    run(scenario())
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 0.5, 1]
