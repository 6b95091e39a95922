import asyncio
import socket
import threading

import pytest

from server.engine.channel import Abort, ChannelError, Shutdown, StartFailed, Update, encode_frame
from server.engine.transport import ApiEnd, EngineEnd
from tests.support.engines import make_engine_config

TIMEOUT_S = 10


@pytest.fixture
def pair():
    ours, engines = socket.socketpair()
    with ours, engines:
        yield ours, engines


def run(test):
    asyncio.run(asyncio.wait_for(test, TIMEOUT_S))


def test_both_directions(pair):
    async def scenario():
        gone = threading.Event()
        api, engine = await ApiEnd.attach(pair[0]), EngineEnd(pair[1], on_eof=gone.set)
        api.send(make_engine_config())
        api.send(Abort(1, None))
        assert await asyncio.to_thread(engine.receive_config) == make_engine_config()
        engine.start()
        assert await asyncio.to_thread(engine.inbox.get) == Abort(1, None)
        updates = [Update([], list(range(n)), None) for n in range(50)]
        for update in updates:
            engine.publish(update)
        assert [await api.receive() for _ in updates] == updates
        await api.close()
        assert await asyncio.to_thread(gone.wait, TIMEOUT_S)

    run(scenario())


def test_the_engine_sees_a_frame_whole_however_it_arrives(pair):
    engine = EngineEnd(pair[1], on_eof=lambda: None)
    engine.start()
    for byte in encode_frame(Abort(7, 1)) + encode_frame(Shutdown()):
        pair[0].send(bytes([byte]))
    assert engine.inbox.get(timeout=TIMEOUT_S) == Abort(7, 1)
    assert engine.inbox.get(timeout=TIMEOUT_S) == Shutdown()
    pair[0].shutdown(socket.SHUT_WR)


def test_flush_sends_everything_first(pair):
    async def scenario():
        engine = EngineEnd(pair[1], on_eof=lambda: None)
        api = await ApiEnd.attach(pair[0])
        engine.start()
        # More than the socket's buffer, so that the writer has to wait for the reader.
        messages = [StartFailed("x" * 100_000) for _ in range(20)]
        for message in messages:
            engine.publish(message)
        flushed = asyncio.create_task(asyncio.to_thread(engine.flush))
        assert [await api.receive() for _ in messages] == messages
        await flushed
        await api.close()

    run(scenario())


def test_publishing_to_a_parent_that_is_gone_ends_quietly(pair):
    gone = threading.Event()
    engine = EngineEnd(pair[1], on_eof=gone.set)
    pair[1].send(b"never read, so that the connection is reset")
    engine.start()
    pair[0].close()
    assert gone.wait(TIMEOUT_S)
    engine.publish(Update([], [], None))
    engine.publish(Update([], [], None))
    engine.flush()


@pytest.mark.parametrize("num_bytes", [0, 2, 6])
def test_the_end_of_the_stream_is_none_even_within_a_frame(pair, num_bytes):
    async def scenario():
        api = await ApiEnd.attach(pair[0])
        pair[1].send(encode_frame(Update([], [], None))[:num_bytes])
        pair[1].close()
        assert await api.receive() is None
        api.send(Shutdown())
        await api.close()

    run(scenario())


def test_a_parent_that_left_before_the_configuration(pair):
    pair[0].close()
    assert EngineEnd(pair[1], on_eof=lambda: None).receive_config() is None


def test_noise_is_an_error(pair):
    async def scenario():
        api = await ApiEnd.attach(pair[0])
        pair[1].send(b"\xff" * 8)
        with pytest.raises(ChannelError):
            await api.receive()
        await api.close()

    run(scenario())
