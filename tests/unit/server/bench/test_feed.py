import asyncio
import threading

from server.bench.feed import Feed


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 20))


def counter():
    numbers = iter(range(10**9))
    return lambda: next(numbers)


def test_items_come_in_order_up_to_the_limit():
    async def scenario():
        feed = Feed(counter(), depth=3, limit=5)
        await feed.fill()
        assert [await feed.take() for _ in range(6)] == [0, 1, 2, 3, 4, None]
        feed.close()

    run(scenario())


def test_no_more_than_the_depth_is_made_ahead():
    made = []

    async def scenario():
        feed = Feed(lambda: made.append(None), depth=3)
        await feed.fill()
        assert len(made) == 3
        await feed.take()
        feed.close()

    run(scenario())


def test_items_that_are_not_ready_are_counted():
    gate = threading.Event()

    async def scenario():
        feed = Feed(gate.wait, depth=1, limit=2)
        taking = asyncio.create_task(feed.take())
        await asyncio.sleep(0)
        assert feed.num_late == 1
        gate.set()
        assert await taking
        await feed.fill()
        await feed.take()
        assert feed.num_late == 1
        feed.close()

    run(scenario())
