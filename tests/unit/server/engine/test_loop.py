"""The loop as a whole: commands in, updates out, on a clock that only the fake runner and idle waiting move."""

import queue
import threading
import time
from concurrent.futures import Future

import pytest

from model.step import SamplingParams
from server.engine.channel import Abort, Crop, Pixels, Sampling, Shutdown, Stamps, Submit
from server.engine.grammar import GrammarError
from server.engine.loop import COMPILE_POLL_S, HEARTBEAT_S, MAX_FAILED_STEPS, EngineLoop
from tests.support.builders import CROP_QUERIES, FakeArena, crop_pixels, make_crops, make_limits, without_pixels
from tests.support.fake_runner import CROP_BYTES, ENCODE_BLOCK_S, FakeRunner, digest, expected_ids, make_info
from tests.support.vocabularies import EOS, LETTERS, small_vocabulary

GREEDY = Sampling(0.0, 1.0, None, 1.0, 0.0, 0.0, None)
STEP_S = 0.02


class Inbox:
    """Commands that are there at once; `num_heartbeats` waits in vain, then a Shutdown."""

    def __init__(self, world, num_heartbeats):
        self.commands = []
        self.num_heartbeats = num_heartbeats
        self._world = world

    def get(self, *, timeout):
        if self.commands:
            return self.commands.pop(0)
        if timeout:
            self._world.now += timeout
            self.num_heartbeats -= 1
            if self.num_heartbeats < 0:
                return Shutdown()
        raise queue.Empty


class FlakyRunner(FakeRunner):
    """Fails in the steps whose numbers are in `failures`."""

    def __init__(self, world, info, vocab_size):
        super().__init__(info, vocab_size=vocab_size)
        self.failures = set()
        self.num_steps = 0
        self._world = world

    def run(self, batch):
        self._world.now += STEP_S
        self.num_steps += 1
        output = super().run(batch)
        if self.num_steps - 1 in self.failures:
            raise RuntimeError("the device is out of memory")
        return output


class World:
    """An engine loop and everything around it."""

    def __init__(self, *, num_heartbeats=0, info=None, vocab_size=23, prefix_cache=True, **limits):
        self.now = 100.0
        self.arena = FakeArena()
        self.updates = []
        self.inbox = Inbox(self, num_heartbeats)
        self.runner = FlakyRunner(self, info or make_info(), vocab_size)
        self.on_update = lambda update: None
        """Called with each update: what the API process does meanwhile."""
        self.memory = (1000, 2000)
        self.grammars = {}
        """What is being compiled, for the test to end it."""
        self.loop = EngineLoop(
            self.runner,
            self.arena.read,
            self.inbox,
            self._receive,
            limits=make_limits(**limits),
            prefix_cache=prefix_cache,
            clock=lambda: self.now,
            read_memory=lambda: self.memory,
            compile_grammar=self._compile,
        )

    def _compile(self, grammar):
        return self.grammars.setdefault(grammar, Future())

    def _receive(self, update):
        self.updates.append(update)
        self.arena.release(update.released)
        self.on_update(update)

    def submit(self, request_id=0, prompt_ids=(5, 6, 7), *, crops=(), **changes):
        fields = {
            "request_id": request_id,
            "prompt_ids": list(prompt_ids),
            "crops": [crop if isinstance(crop, Crop) else make_crops(self.arena, [crop])[0] for crop in crops],
            "sampling": GREEDY,
            "seeds": [0],
            "max_tokens": 4,
            "eos_id": None,
        }
        request = Submit(**(fields | changes))
        self.inbox.commands.append(request)
        return request

    def run(self):
        self.loop.run()

    @property
    def tokens(self):
        return [tokens for update in self.updates for tokens in update.tokens]

    @property
    def stats(self):
        return [update.stats for update in self.updates if update.stats is not None]

    def ids(self, request_id=0, choice=0):
        return [
            token.token_id
            for tokens in self.tokens
            if (tokens.request_id, tokens.choice) == (request_id, choice)
            for token in tokens.tokens
        ]

    def total(self, name):
        return sum(getattr(stats, name) for stats in self.stats)


def expected(request, choice=0):
    sampling = request.sampling
    return expected_ids(
        request.prompt_ids,
        [(crop.start, digest(crop.width, crop.height, crop_pixels(crop.content_hash[-1]))) for crop in request.crops],
        crop_queries=CROP_QUERIES,
        sampling=SamplingParams(**{name: getattr(sampling, name) for name in sampling.__struct_fields__}),
        seed=request.seeds[choice],
        max_tokens=request.max_tokens,
        eos_id=request.eos_id,
    )


def test_a_request_comes_back_as_tokens_and_an_end():
    world = World()
    request = world.submit(7)
    world.run()
    assert world.ids(7) == expected(request)
    assert [tokens.finish_reason for tokens in world.tokens] == [None, None, None, "length"]
    # Arrived and scheduled at 100 s, and each of the four steps takes 0.02 s.
    assert [tokens.stamps for tokens in world.tokens] == [
        Stamps(100.0, 100.0, pytest.approx(100.02), pytest.approx(100.02 + 0.02 * step)) for step in range(4)
    ]


def test_sampling_and_log_probabilities_pass_unchanged():
    world = World()
    request = world.submit(
        prompt_ids=[3, 4], sampling=Sampling(0.5, 0.8, 100, 1.05, 0.1, 0.2, 2), seeds=[9], max_tokens=1
    )
    world.run()
    assert world.ids() == expected(request)
    (token,) = world.tokens[0].tokens
    assert (token.logprob, token.top) == (-0.5, [(token.token_id, -0.5), ((token.token_id + 1) % 23, -1.5)])


@pytest.mark.parametrize("min_tokens", [0, 3])
def test_end_ids_are_known_where_they_have_to_wait(min_tokens):
    world = World()
    sampling = Sampling(0.0, 1.0, None, 1.0, 0.0, 0.0, None, 0.1, ((7, -1.0),), min_tokens)
    every_id = list(range(22))  # but one
    world.submit(7, sampling=sampling, eos_id=22, stop_token_ids=every_id[:-1], max_tokens=9)
    world.run()
    # Until then id 21 alone does not end the answer.
    assert world.ids(7)[:min_tokens] == [21] * min_tokens
    assert world.ids(7)[-1] != 21
    assert 21 not in world.ids(7)[min_tokens:] or len(world.ids(7)) > min_tokens + 1
    assert world.tokens[-1].finish_reason == "stop"


def test_ids_that_a_draft_brought_come_together():
    world = World(vocab_size=1, max_draft_tokens=7)
    world.submit(max_tokens=20, sampling=Sampling(0.0, 1.0, None, 1.0, 0.0, 0.0, 1))
    world.run()
    assert [len(tokens.tokens) for tokens in world.tokens] == [1, 1, 1, 4, 7, 6]
    assert all(token.logprob == -0.5 for tokens in world.tokens for token in tokens.tokens)
    assert [tokens.finish_reason for tokens in world.tokens] == [None] * 5 + ["length"]
    assert (world.total("steps"), world.total("generated_tokens"), world.total("prompt_tokens")) == (6, 20, 3)
    assert (world.total("drafted_tokens"), world.total("accepted_tokens")) == (3 + 6 + 5, 14)


def test_each_seed_is_a_choice_of_its_own():
    world = World()
    sampling = Sampling(1.0, 1.0, None, 1.0, 0.0, 0.0, None)
    request = world.submit(seeds=[3, 4, 3], sampling=sampling, crops=[(0, 1)], prompt_ids=range(6), max_tokens=6)
    world.run()
    answers = [world.ids(choice=choice) for choice in range(3)]
    assert answers == [expected(request, choice) for choice in range(3)]
    assert answers[0] == answers[2] != answers[1]
    assert [offset for update in world.updates for offset in update.released] == [request.crops[0].offset]


def test_requests_with_pictures_from_several_clients():
    world = World(max_step_tokens=6, max_step_vision_blocks=3, max_idle_crops=1)
    requests = [
        world.submit(0, range(20, 23), max_tokens=12),
        world.submit(1, range(12), crops=[(1, 1), (5, 2)]),  # encoded in parts while the first one decodes
        world.submit(2, range(40, 52), crops=[(0, 2), (8, 3)]),
    ]
    world.run()
    assert [world.ids(request.request_id) for request in requests] == list(map(expected, requests))
    assert world.arena.offsets == set()
    assert world.total("crops_encoded") == 3
    assert (world.total("crop_queries"), world.total("crop_hits")) == (4, 1)
    assert world.total("encode_s") == pytest.approx(3 * 4 * ENCODE_BLOCK_S)


def test_stamps_say_when_crops_were_encoded_and_for_whom():
    """The second crop takes two steps, since another request decodes by then. Whoever shows it too encodes nothing."""
    world = World(max_step_vision_blocks=3, max_idle_crops=1, prefix_cache=False)
    world.submit(0, range(12), crops=[(1, 1), (5, 2)], max_tokens=1)
    world.submit(1, range(40, 52), crops=[(0, 2)], max_tokens=1)
    world.submit(2, range(60, 63), max_tokens=8)
    world.run()
    stamps = {tokens.request_id: tokens.stamps for tokens in world.tokens if tokens.finish_reason is not None}
    assert stamps[0].encode_began == stamps[0].scheduled == 100.0
    assert stamps[0].encode_ended == pytest.approx(100.0 + 3 * STEP_S)
    for request_id in (1, 2):
        assert (stamps[request_id].encode_began, stamps[request_id].encode_ended) == (None, None)


@pytest.mark.parametrize(("prefix_cache", "num_cached"), [(True, 8), (False, 0)])
def test_a_second_request_says_how_much_of_its_prompt_was_there(prefix_cache, num_cached):
    world = World(num_heartbeats=1, prefix_cache=prefix_cache)
    first = world.submit(0, range(10), max_tokens=1)
    others = []

    def on_update(update):
        if not others and world.ids(0):
            others.extend([world.submit(1, range(10)), world.submit(2, range(10), cache_salt=b"other")])

    world.on_update = on_update
    world.run()
    assert [world.ids(number) for number in range(3)] == list(map(expected, [first, *others]))
    cached = {tokens.request_id: tokens.cached_tokens for tokens in world.tokens}
    assert cached == {0: 0, 1: num_cached, 2: 0}
    assert (world.total("prefix_query_tokens"), world.total("prefix_hit_tokens")) == (30 * prefix_cache, num_cached)
    assert world.total("prompt_tokens") == 30


def test_a_request_that_arrives_while_others_run_joins_them():
    world = World()
    first = world.submit(0, max_tokens=9)
    arrived = []

    def on_update(update):
        if len(world.ids(0)) == 3 and not arrived:
            arrived.append(world.submit(1, [8, 9], max_tokens=2))

    world.on_update = on_update
    world.run()
    assert [world.ids(0), world.ids(1)] == [expected(first), expected(arrived[0])]
    ends = [tokens.request_id for tokens in world.tokens if tokens.finish_reason is not None]
    assert ends == [1, 0]


def test_an_abort_ends_a_request_without_a_word_and_returns_its_pixels_and_blocks():
    world = World(info=make_info(num_state_slots=1), num_state_slots=1)
    running = world.submit(0, range(8), crops=[(1, 1)], max_tokens=50)
    waiting = world.submit(1, range(8), crops=[(1, 2)], max_tokens=50)

    def on_update(update):
        if len(world.ids(0)) == 2:
            world.inbox.commands += [Abort(0, None), Abort(1, None)]
            world.on_update = lambda update: None

    world.on_update = on_update
    world.run()
    assert [world.ids(0), world.ids(1)] == [expected(running)[:2], []]
    assert all(tokens.finish_reason is None for tokens in world.tokens)
    # The update that tells of the aborts comes before the loop goes to sleep.
    assert world.updates[-1].released == [waiting.crops[0].offset]
    assert (world.stats[-1].num_running, world.stats[-1].num_kv_blocks_used) == (0, 0)


def test_an_idle_engine_sends_heartbeats():
    world = World(num_heartbeats=3)
    world.run()
    assert world.now == pytest.approx(100.0 + 4 * HEARTBEAT_S)
    assert [(update.tokens, update.released) for update in world.updates] == [([], [])] * 3
    assert all(update.stats is not None for update in world.updates)


def test_a_busy_engine_reports_its_state_every_50_ms_and_at_the_end():
    world = World()
    world.submit(max_tokens=8)
    world.run()
    # A step takes 20 ms: the first report is due at once, and then one after three steps.
    assert [update.stats is not None for update in world.updates] == [
        *[True, False, False],
        *[True, False, False],
        *[True, True],
    ]
    assert [stats.num_running for stats in world.stats] == [1, 1, 1, 0]
    assert [stats.steps for stats in world.stats] == [1, 3, 3, 1]


def test_a_step_without_news_publishes_nothing():
    world = World(max_step_tokens=4)
    world.submit(prompt_ids=range(12), max_tokens=1)
    world.run()
    assert [(len(update.tokens), update.stats is not None) for update in world.updates] == [(0, True), (1, True)]


def test_statistics_are_gauges_and_sums_since_the_last_report():
    world = World(info=make_info(num_kv_blocks=20))
    world.submit(0, range(9), crops=[(1, 1)], max_tokens=3)
    world.submit(1, max_tokens=3)
    world.run()
    first = world.stats[0]
    assert (first.num_running, first.num_waiting) == (2, 0)
    assert (first.num_kv_blocks_used, first.num_kv_blocks, first.num_crop_slots_used) == (3 + 1, 20, 1)
    assert (first.prompt_tokens, first.generated_tokens) == (9 + 3, 2)
    assert (first.memory_bytes, first.peak_memory_bytes) == (1000, 2000)
    assert (world.total("prompt_tokens"), world.total("generated_tokens")) == (9 + 3, 6)
    assert world.total("crops_encoded") == 1
    assert world.total("preemptions") == 0
    last = world.stats[-1]
    assert (last.num_running, last.num_kv_blocks_used, last.num_crop_slots_used) == (0, 0, 0)


def test_pixels_that_are_missing_are_asked_for_before_the_step_runs():
    world = World(num_heartbeats=2)
    request = world.submit(0, range(8), crops=without_pixels([(1, 5)]))
    other = world.submit(1, max_tokens=3)

    def on_update(update):
        if update.wanted:
            assert (update.wanted, update.stats, world.runner.num_steps) == ([0], None, 0)
            world.inbox.commands.append(Pixels(0, [world.arena.put(crop_pixels(5))]))

    world.on_update = on_update
    world.run()
    assert [world.ids(0), world.ids(1)] == [expected(request), expected(other)]
    assert sum(len(update.wanted) for update in world.updates) == 1
    assert world.arena.offsets == set()


def test_while_all_wait_for_pixels_the_engine_reports_as_when_idle():
    world = World(num_heartbeats=3)
    world.submit(0, range(8), crops=without_pixels([(1, 5)]))
    world.run()
    assert world.runner.num_steps == 0
    assert [stats.num_waiting for stats in world.stats] == [1] * 4
    assert world.now == pytest.approx(100 + 4 * HEARTBEAT_S)


def test_statistics_of_crops_by_tier():
    world = World(num_heartbeats=9, info=make_info(num_crop_slots=1, num_host_slots=1), prefix_cache=False)
    contents = [5, 6, 5, 7]

    def on_update(update):
        if contents and not world.inbox.commands and (update.stats is None or not update.stats.num_running):
            world.submit(len(contents), range(8), crops=[(0, contents.pop(0))], max_tokens=1)

    world.on_update = on_update
    world.run()
    totals = {name: world.total(name) for name in ("crop_queries", "crop_hits", "crop_evictions", "crops_encoded")}
    assert totals == {"crop_queries": 4, "crop_hits": 0, "crop_evictions": 3, "crops_encoded": 3}
    host = {name: world.total(f"host_crop_{name}") for name in ("queries", "hits", "evictions")}
    # 6 has no place on the host while 5 leaves it.
    assert host == {"queries": 4, "hits": 1, "evictions": 1}
    assert (world.stats[-1].crop_bytes, world.stats[-1].host_crop_bytes) == (CROP_BYTES, CROP_BYTES)


def test_a_prompt_that_is_computed_twice_counts_once():
    # Each grows to 44 tokens, more than the room that admission leaves: one of them is preempted on the way.
    world = World(info=make_info(num_kv_blocks=20))
    requests = [world.submit(request_id, [request_id], max_tokens=44) for request_id in range(2)]
    world.run()
    assert [world.ids(request.request_id) for request in requests] == list(map(expected, requests))
    assert world.total("preemptions") == 1
    assert world.total("prompt_tokens") == 2
    assert world.total("generated_tokens") == 88


def test_a_failed_step_ends_its_requests_and_no_others(caplog):
    world = World(num_heartbeats=1, info=make_info(num_state_slots=1), num_state_slots=1)
    failing = world.submit(0, range(8), crops=[(1, 1)], seeds=[0], max_tokens=9)
    other = world.submit(1, max_tokens=3)
    world.runner.failures = {2}
    world.run()
    assert world.ids(0) == expected(failing)[:2]
    ends = [(tokens.request_id, tokens.tokens, tokens.finish_reason) for tokens in world.tokens if tokens.finish_reason]
    assert ends[0] == (0, [], "failed")
    assert world.ids(1) == expected(other)
    assert world.arena.offsets == set()
    assert (world.stats[-1].num_kv_blocks_used, world.stats[-1].num_crop_slots_used) == (0, 0)
    (record,) = caplog.records
    assert "requests [0]" in record.message
    assert record.exc_info[0] is RuntimeError


def test_a_request_that_fails_before_its_pixels_are_read_returns_them():
    world = World()
    world.submit(0, range(8), crops=[(1, 1)])
    world.runner.failures = {0}
    world.run()
    assert [tokens.finish_reason for tokens in world.tokens] == ["failed"]
    assert world.tokens[0].stamps is None
    assert world.arena.offsets == set()


def test_the_loop_gives_up_when_every_step_fails():
    world = World()
    for request_id in range(MAX_FAILED_STEPS):
        world.submit(request_id)
    world.runner.failures = set(range(MAX_FAILED_STEPS))

    def on_update(update):
        world.submit(9)

    world.on_update = on_update
    with pytest.raises(RuntimeError, match="out of memory"):
        world.run()
    assert world.runner.num_steps == MAX_FAILED_STEPS


def test_failures_with_a_success_between_them_do_not_add_up():
    world = World()
    world.submit(0, max_tokens=1)
    world.runner.failures = {0, 1, 3, 4}

    def on_update(update):
        if update.tokens and world.runner.num_steps < 6:
            world.submit(world.runner.num_steps, max_tokens=1)

    world.on_update = on_update
    world.run()
    reasons = [tokens.finish_reason for tokens in world.tokens]
    assert reasons == ["failed", "failed", "length", "failed", "failed", "length"]


def test_a_shutdown_leaves_at_once():
    world = World()
    world.submit(max_tokens=50)
    world.inbox.commands.append(Shutdown())
    world.run()
    assert world.updates == []


def test_it_wakes_up_for_a_command_from_another_thread():
    runner = FakeRunner(make_info())
    inbox = queue.SimpleQueue()
    updates = queue.SimpleQueue()
    loop = EngineLoop(
        runner,
        FakeArena().read,
        inbox,
        updates.put,
        limits=make_limits(),
        prefix_cache=True,
        clock=time.monotonic,
        read_memory=lambda: (0, 0),
        compile_grammar=small_vocabulary().compile,
    )
    thread = threading.Thread(target=loop.run)
    thread.start()
    inbox.put(Submit(0, [1, 2], [], GREEDY, [0], 1, None))
    update = updates.get(timeout=60)
    inbox.put(Shutdown())
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert [tokens.finish_reason for tokens in update.tokens] == ["length"]


GRAMMAR = 'start: "abc" | "cab"'


class TestGrammars:
    def world(self, **changes):
        return World(vocab_size=len(LETTERS), num_heartbeats=3, **changes)

    def submit(self, world, request_id=0, **changes):
        return world.submit(request_id, grammar=GRAMMAR, max_tokens=9, eos_id=EOS, **changes)

    def text(self, world, request_id=0, choice=0):
        return b"".join(LETTERS[token_id] for token_id in world.ids(request_id, choice))

    def test_a_request_begins_when_its_grammar_is_compiled(self):
        world = self.world()
        self.submit(world, seeds=[0, 1])
        other = world.submit(1)
        # The other one, which has no grammar, is answered meanwhile.
        done = threading.Event()

        def compiled(update):
            if len(world.ids(1)) == 4 and not done.is_set():
                done.set()
                assert world.ids(0) == []
                world.grammars[GRAMMAR].set_result(small_vocabulary().compile(GRAMMAR))

        world.on_update = compiled
        world.run()
        assert len(world.ids(1)) == other.max_tokens
        for choice in range(2):
            assert self.text(world, choice=choice) in (b"abc", b"cab")
        assert [tokens.finish_reason for tokens in world.tokens if tokens.finish_reason] == ["length", "stop", "stop"]
        # It had arrived long before.
        assert {tokens.stamps.arrived for tokens in world.tokens if tokens.request_id == 0} == {100.0}

    def test_an_idle_engine_looks_often_while_it_compiles(self):
        world = self.world()
        self.submit(world)
        world.run()
        assert world.tokens == []
        assert world.now == pytest.approx(100 + 4 * COMPILE_POLL_S)

    def test_a_request_that_is_aborted_meanwhile(self):
        world = self.world()
        self.submit(world, crops=[(0, 7)], prompt_ids=range(9))
        self.submit(world, 1)
        world.inbox.commands.append(Abort(0, None))

        def get(*, timeout, get=world.inbox.get):
            if timeout and GRAMMAR in world.grammars and not world.grammars[GRAMMAR].done():
                world.grammars[GRAMMAR].set_result(small_vocabulary().compile(GRAMMAR))
            return get(timeout=timeout)

        world.inbox.get = get
        world.run()
        assert world.ids(0) == []
        assert self.text(world, 1) in (b"abc", b"cab")
        assert world.arena.offsets == set()

    def test_a_grammar_that_cannot_be_compiled_ends_its_request(self):
        world = self.world()
        self.submit(world, seeds=[0, 1], crops=[(0, 7)], prompt_ids=range(9))
        world.submit(1)

        def fail(update):
            if not world.grammars[GRAMMAR].done():
                world.grammars[GRAMMAR].set_exception(GrammarError("too large"))

        world.on_update = fail
        world.run()
        ends = [
            (tokens.request_id, tokens.choice, tokens.finish_reason) for tokens in world.tokens if not tokens.tokens
        ]
        assert ends == [(0, 0, "off_grammar"), (0, 1, "off_grammar")]
        assert len(world.ids(1)) == 4
        assert world.arena.offsets == set()
