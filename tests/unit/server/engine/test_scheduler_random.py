"""Random requests, aborts and failures against small pools: whatever happens, the answers are those of a run alone."""

from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from model.step import SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.sequence import Status
from tests.support.builders import CROP_QUERIES, expected_of, make_crops, make_engine, without_pixels
from tests.support.fake_runner import FakeRunner, make_info

MAX_PROMPT, MAX_TOKENS, MAX_CROPS = 20, 16, 3
NUM_VISION_BLOCKS = 4

SAMPLINGS = st.sampled_from(
    [SamplingParams(), SamplingParams(temperature=0.8, num_logprobs=1), SamplingParams(repetition_penalty=1.2)]
)


@st.composite
def prompts(draw):
    """(prompt ids, crops as (position, content)); few of each, so that crops and beginnings are shared."""
    contents = draw(st.lists(st.integers(0, 5), max_size=MAX_CROPS))
    crops, end = [], 0
    for content in contents:
        start = end + draw(st.integers(0, 2))
        crops.append((start, content))
        end = start + CROP_QUERIES
    num_prompt = draw(st.integers(max(1, end), MAX_PROMPT))
    fork = draw(st.integers(0, MAX_PROMPT))
    return [position + 100 * (position >= fork) for position in range(num_prompt)], crops


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.sequences = []
        self.lost = set()
        """Aborted or failed."""

    @initialize(
        kv_block_tokens=st.integers(1, 6),
        num_spare_blocks=st.integers(0, 8),
        num_crop_slots=st.integers(MAX_CROPS, 6),
        num_host_slots=st.sampled_from([0, 1, 2, 4]),
        num_state_slots=st.integers(1, 5),
        num_spare_tokens=st.integers(0, 20),
        max_step_vision_blocks=st.integers(1, 9),
        max_idle_crops=st.integers(1, 3),
        growth_tokens=st.sampled_from([0, 2, 32]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        vocab_size=st.sampled_from([1, 2, 3, 23]),
        max_draft_tokens=st.sampled_from([0, 1, 3, 7]),
        max_draft_sequences=st.integers(1, 5),
        num_spare_draws=st.integers(0, 12),
    )
    def build(
        self,
        kv_block_tokens,
        num_spare_blocks,
        num_crop_slots,
        num_host_slots,
        num_state_slots,
        num_spare_tokens,
        max_step_vision_blocks,
        max_idle_crops,
        growth_tokens,
        prefix_cache,
        vocab_size,
        max_draft_tokens,
        max_draft_sequences,
        num_spare_draws,
    ):
        # The default would hide most preemptions in pools as small as these.
        self.growth = mock.patch.object(scheduler_module, "GROWTH_TOKENS", growth_tokens)
        self.growth.start()
        info = make_info(
            num_kv_blocks=-(-(MAX_PROMPT + MAX_TOKENS) // kv_block_tokens) + num_spare_blocks,
            kv_block_tokens=kv_block_tokens,
            num_crop_slots=num_crop_slots,
            num_host_slots=num_host_slots,
            num_state_slots=num_state_slots,
            max_step_draws=num_state_slots + num_spare_draws,
            num_vision_blocks=NUM_VISION_BLOCKS,
        )
        self.vocab_size = vocab_size
        self.max_draft_tokens, self.max_draft_sequences = max_draft_tokens, max_draft_sequences
        self.max_step_tokens = num_state_slots + num_spare_tokens
        self.max_blocks = {True: max_step_vision_blocks, False: max_idle_crops * NUM_VISION_BLOCKS}
        self.engine = make_engine(
            info,
            runner=FakeRunner(info, vocab_size=vocab_size),
            max_step_tokens=self.max_step_tokens,
            max_step_vision_blocks=max_step_vision_blocks,
            max_idle_crops=max_idle_crops,
            prefix_cache=prefix_cache,
            max_draft_tokens=max_draft_tokens,
            max_draft_sequences=max_draft_sequences,
        )

    @rule(
        prompt=prompts(),
        num_choices=st.integers(1, 2),
        sampling=SAMPLINGS,
        seed=st.integers(0, 3),
        max_tokens=st.integers(1, MAX_TOKENS),
        eos_id=st.sampled_from([None, 2, 3]),
        cache_salt=st.sampled_from([b"", b"", b"other"]),
        unsent=st.sets(st.integers(0, 5)),
    )
    def submit(self, prompt, num_choices, sampling, seed, max_tokens, eos_id, cache_salt, unsent):
        prompt_ids, crops = prompt
        self.sequences += self.engine.submit_crops(
            0,
            self.make_crops(crops, unsent),
            prompt_ids=prompt_ids,
            num_choices=num_choices,
            sampling=sampling,
            seed=seed,
            max_tokens=max_tokens,
            eos_id=eos_id,
            cache_salt=cache_salt,
        )

    def make_crops(self, crops, unsent):
        """The pixels of contents in `unsent` stay with the API process."""
        return tuple(
            crop
            for start, content in crops
            for crop in (
                without_pixels([(start, content)])
                if content in unsent
                else make_crops(self.engine.arena, [(start, content)])
            )
        )

    @rule(data=st.data(), max_tokens=st.integers(1, MAX_TOKENS), unsent=st.sets(st.integers(0, 5)))
    def follow_up(self, data, max_tokens, unsent):
        """The next turn of what has been generated so far."""
        if self.sequences:
            first = data.draw(st.sampled_from(self.sequences))
            prompt_ids = [*first.prompt_ids, *first.generated_ids, 30, 31]
            if len(prompt_ids) <= MAX_PROMPT:
                crops = [(crop.start, int.from_bytes(crop.content_hash)) for crop in first.crops]
                self.sequences += self.engine.submit_crops(
                    0, self.make_crops(crops, unsent), num_choices=1, prompt_ids=prompt_ids, max_tokens=max_tokens
                )

    @rule(data=st.data(), is_wanted=st.booleans())
    def supply(self, data, is_wanted):
        """Pixels come that were asked for, or come too late or too early."""
        wanted = [one for one in self.sequences if one.request_id in self.engine.wanted]
        if candidates := wanted if is_wanted else self.sequences:
            self.engine.supply(data.draw(st.sampled_from(candidates)))

    @rule(data=st.data(), whole_request=st.booleans())
    def abort(self, data, whole_request):
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            gone = [
                other
                for other in self.sequences
                if other.request_id == sequence.request_id and (whole_request or other is sequence)
            ]
            self.lost.update(other for other in gone if other.status is not Status.FINISHED)
            self.engine.abort(sequence.request_id, None if whole_request else sequence.choice)
            assert all(other.status is Status.FINISHED for other in gone)

    @rule(num_steps=st.integers(1, 6))
    def steps(self, num_steps):
        for _ in range(num_steps):
            self.step()

    @rule(was_run=st.booleans())
    def failed_step(self, was_run):
        batch = self.engine.schedule()
        if batch is not None:
            if was_run:  # what it left behind must not matter
                self.engine.runner.run(batch)
            failed = self.engine.fail(batch)
            assert failed
            self.lost.update(failed)

    def step(self):
        """One step, with what holds for every step."""
        decoding = [one for one in self.sequences if one.status is Status.RUNNING and one.is_decoding]
        known = {sequence: sequence.num_known for sequence in self.sequences}
        num_preemptions = self.engine.scheduler.num_preemptions
        batch = self.engine.step()
        if batch is None:
            return
        progressed = [sequence for sequence in decoding if sequence.num_known > known[sequence]]
        preempted = [sequence for sequence in decoding if sequence not in progressed]
        num_drafted = [len(row.token_ids) - 1 for row in batch.rows[: len(progressed)]]
        assert max(num_drafted, default=0) <= self.max_draft_tokens
        assert not any(num_drafted) or len(progressed) <= self.max_draft_sequences
        # Who decodes gets an id from every step; only the youngest lose their place, and only to older ones.
        assert len(preempted) <= self.engine.scheduler.num_preemptions - num_preemptions
        if preempted:
            youngest = max((sequence.arrival for sequence in progressed), default=-1)
            assert all(sequence.arrival > youngest for sequence in preempted)
        assert sum(len(row.token_ids) for row in batch.rows) <= self.max_step_tokens
        num_blocks = sum(work.last_block - work.first_block for work in batch.encode)
        assert num_blocks <= self.max_blocks[bool(progressed)]

    @invariant()
    def is_consistent(self):
        if hasattr(self, "engine"):
            self.engine.scheduler.check_invariants()

    @invariant()
    def shared_blocks_stand_for_the_same_beginning(self):
        meanings = {}
        for sequence in self.sequences:
            for index, block_id in enumerate(sequence.block_table):
                end = (index + 1) * self.engine.blocks.block_tokens
                crops = [(crop.start, crop.content_hash) for crop in sequence.crops if crop.start < end]
                meaning = (sequence.cache_salt, sequence.ids(0, end), crops)
                assert meanings.setdefault(block_id, meaning) == meaning

    def supply_wanted(self):
        """Nothing goes on without them, and then each request that waits has been asked about."""
        waiting = {one.request_id: one for one in self.sequences if one.status is not Status.FINISHED}
        assert waiting.keys() <= set(self.engine.wanted)
        for sequence in waiting.values():
            self.engine.supply(sequence)
            assert not self.engine.scheduler.is_idle

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        try:
            num_steps = 0
            while self.engine.scheduler.num_running or self.engine.scheduler.num_waiting:
                if self.engine.scheduler.is_idle:
                    self.supply_wanted()
                self.step()
                num_steps += 1
                assert num_steps < 2000, "no progress"
        finally:
            self.growth.stop()
        assert set(self.engine.finished) == set(self.sequences) - self.lost
        for sequence in self.engine.finished:
            assert sequence.generated_ids == expected_of(sequence, self.vocab_size)
        for sequence in self.lost:  # cut short, but not wrong
            assert expected_of(sequence, self.vocab_size)[: len(sequence.generated_ids)] == sequence.generated_ids
        self.engine.assert_empty()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
