"""Who gets how many tokens in a step.

One idea covers prefill, chunked prefill, resumption after a preemption and decode: every sequence has known tokens
(prompt and generated) and computed tokens (those whose keys and values are in the KV cache), and each step lets the
computed ones catch up with the known ones under a budget of tokens. A row that catches up entirely draws the next id,
and so makes one more token known. Decode is the case in which one token is missing.

A step is planned in five parts:
    decode   sequences that miss one token, oldest first. They alone need new KV blocks; where none is free the
             youngest running sequence is preempted. So the oldest always goes on, and everybody comes to be the oldest.
             Of a sequence that searches every beam is a row (server.engine.beam_planner)
    admit    waiting sequences in order of arrival: a state slot, a slot for each crop, blocks for all known tokens.
             What the prefix cache has of these tokens counts as computed (server.engine.prefix_cache). Nobody is
             admitted in a step that preempts somebody, or while its pixels have to be sent first
    encode   crops of running sequences (server.engine.encoding), before the rows of the same step need them
    prefill  running sequences in order of arrival share what the decode rows left of the token budget
    draft    where few decode, and tokens and blocks are left over, guesses at their next ids are computed along
             (server.engine.drafter). A decode row that draws the ids of its draft makes that many more known at once

`schedule` hands out blocks and slots; what the step computes is booked by `update` when the runner has done it.
docs/decisions/scheduling.md gives the reasons, with numbers.
"""

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter

from model.step import Draw, EncodeWork, Sampled, SequenceRow, StateStart, StepBatch, StepOutput
from server.engine.beam_planner import BeamPlanner
from server.engine.blocks import BlockPool
from server.engine.drafter import Drafter
from server.engine.encoding import EncodePlanner
from server.engine.limits import StepLimits
from server.engine.prefix_cache import PrefixCache
from server.engine.sequence import FinishReason, Sequence, Status, uniform

GROWTH_TOKENS = 32
"""Tokens by which each running sequence may grow before an admission could cost it its blocks."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The ids that a step chose for one sequence."""

    sequence: Sequence
    sampled: tuple[Sampled, ...]
    """One, and as many more as its draft was right."""
    finish_reason: FinishReason | None
    """With a reason, the sequence has been removed."""
    rank: int | None = None
    """Of a sequence that searches: which of its results this is, from 0. None: its only one."""


class Scheduler:
    """The sequences of the engine, waiting and running, and the KV blocks and state slots they hold."""

    def __init__(
        self,
        limits: StepLimits,
        blocks: BlockPool,
        prefixes: PrefixCache,
        encoder: EncodePlanner,
        drafter: Drafter,
    ) -> None:
        self.num_preemptions = 0
        """Since the start."""
        self._limits = limits
        self._blocks = blocks
        self._prefixes = prefixes
        self._encoder = encoder
        self._drafter = drafter
        self._beams = BeamPlanner(blocks)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        """Both in order of arrival, which a preempted sequence keeps."""
        self._free_state_slots = list(range(limits.num_state_slots))
        self._num_arrived = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Nothing can be done until a request or pixels come."""
        return not self._running and len(self._waiting) == self._encoder.num_awaiting

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. That it fits the KV cache and the vision cache alone was seen before it came here."""
        assert sequence.prompt_ids
        assert sequence.max_tokens >= 1
        self._beams.add(sequence)
        assert self._beams.num_blocks(sequence, sequence.max_computed) <= self._blocks.num_blocks
        assert self._beams.num_slots(sequence) <= self._limits.num_state_slots
        sequence.arrival = self._num_arrived
        self._num_arrived += 1
        self._waiting.append(sequence)
        self._encoder.add(sequence)

    def abort(self, request_id: int, choice: int | None) -> None:
        """Forgets one sequence, or all of a request's when `choice` is None. Unknown ones have ended already."""
        for sequence in self._live():
            if sequence.request_id == request_id and self._beams.drop(sequence, choice):
                self._remove(sequence)

    def supply(self, request_id: int, offsets: list[int]) -> None:
        """The pixels of all crops of a request have come; it may have ended by now."""
        self._encoder.supply((one for one in self._waiting if one.request_id == request_id), offsets)

    def schedule(self, now: float) -> StepBatch | None:
        """The next step's work, or None when there is no sequence, or each of them waits for pixels."""
        num_preemptions = self.num_preemptions
        decoding = self._decoding()
        if self.num_preemptions == num_preemptions:  # else one that shares its blocks could come back at once
            self._admit()
        encode = self._encoder.plan(self._running, now, decoding=bool(decoding))
        chunks = [(sequence, sequence.num_known) for sequence in decoding]
        budget = self._limits.max_step_tokens - len(decoding)
        chunks += self._prefill_chunks(budget, encode, decoding=bool(decoding))
        if not chunks and not encode:
            assert self.is_idle
            return None
        self._draft(decoding, self._limits.max_step_tokens - sum(end - one.num_computed for one, end in chunks))
        for sequence, _ in chunks:
            sequence.work_begins(now)
        return StepBatch(
            starts=tuple(self._start(sequence) for sequence, _ in chunks if not sequence.has_state),
            encode=encode,
            rows=tuple(self._row(sequence, end) for sequence, end in chunks),
            copies=self._encoder.take_copies(),
            block_copies=self._beams.take_copies(),
            forks=self._beams.take_forks(),
        )

    def update(self, batch: StepBatch, output: StepOutput, now: float) -> list[NewTokens]:
        """Books what the runner has done; the new ids, in the order of the rows."""
        self._encoder.update(batch.encode)
        if batch.encode:
            self._stamp_encoding(batch.encode, now)
        sequences = {one.state_slot: (one, of) for of in self._running for one in self._beams.holders(of)}
        news = []
        for row, sampled in zip(batch.rows, output.sampled, strict=True):
            sequence, searching = sequences[row.state_slot]
            if sequence.beams is not None:
                sequence.advance(len(row.token_ids))
                self._prefixes.publish(sequence, row.start)
                self._beams.take(searching, sequence, sampled)
                continue
            new = _append(sequence, sampled, now)
            num_accepted = max(0, len(new.sampled) - 1)
            sequence.advance(len(row.token_ids) - len(sequence.draft) + num_accepted)
            self._prefixes.publish(sequence, row.start)
            if sequence.draft:
                self._end_draft(sequence, num_accepted)
            if new.sampled:
                news.append(new)
            if new.finish_reason is not None:
                self._remove(sequence)
        for sequence in [one for one in self._running if one.beams is not None]:
            results, is_over = self._beams.choose(sequence, now)
            news += [NewTokens(sequence, sampled, reason, rank) for rank, sampled, reason in results]
            if is_over:
                self._remove(sequence)
        return news

    def fail(self, batch: StepBatch) -> list[Sequence]:
        """Removes and returns every sequence that a failed step worked for: its rows', and its crops' users."""
        state_slots = {row.state_slot for row in batch.rows}
        crop_slots = self._encoder.fail(batch)
        failed = [
            sequence
            for sequence in self._live()
            if not state_slots.isdisjoint(self._beams.slots(sequence))
            or not crop_slots.isdisjoint(sequence.crop_slots or ())
        ]
        for sequence in failed:
            self._remove(sequence)
        return failed

    def check_invariants(self) -> None:
        """Every block, slot and pixel belongs to exactly the sequences that name it, and queues are in order."""
        for queue, status in ((self._waiting, Status.WAITING), (self._running, Status.RUNNING)):
            assert queue == sorted(queue, key=attrgetter("arrival"))
            assert all(sequence.status is status for sequence in queue)
        for sequence in self._live():
            sequence.check_invariants()
            assert len(sequence.block_table) <= self._blocks.blocks_for(sequence.num_known + len(sequence.draft))
        for sequence in self._running:
            assert len(sequence.block_table) >= self._blocks.blocks_for(sequence.num_known - 1)
            assert len(set(sequence.block_table)) == len(sequence.block_table)
        holders = [one for sequence in self._running for one in self._beams.holders(sequence)]
        references = Counter(block_id for one in holders for block_id in one.block_table)
        assert [references[block_id] for block_id in range(self._blocks.num_blocks)] == self._blocks.references()
        state_slots = [slot for sequence in self._running for slot in self._beams.slots(sequence)]
        assert sorted([*self._free_state_slots, *state_slots]) == list(range(self._limits.num_state_slots))
        self._blocks.check_invariants()
        self._encoder.check_invariants(self._live())
        self._drafter.check_invariants(self._live())
        self._beams.check_invariants(self._live())

    def _live(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def _decoding(self) -> list[Sequence]:
        """Sequences that decode in this step, each with a block for its newest token."""
        # Oldest first: a sequence that is preempted for another's block has not been looked at yet, and no longer
        # counts as decoding when it is.
        return [
            one
            for sequence in list(self._running)
            if self._beams.grows(sequence) and self._grow(sequence)
            for one in self._beams.decoding(sequence)
        ]

    def _grow(self, sequence: Sequence) -> bool:
        """Whether the sequence has blocks for all its known tokens, at the cost of younger ones if need be."""
        num_missing = self._beams.num_missing(sequence)
        while self._blocks.num_free < num_missing and sequence.status is Status.RUNNING:
            self._preempt(self._running[-1])
        if sequence.status is Status.WAITING:
            return False
        self._beams.grow(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """RUNNING -> WAITING. It keeps its ids, and computes again later what is not in the prefix cache by then."""
        self._running.remove(sequence)
        self._free_places(sequence, Status.WAITING)
        self._encoder.preempt(sequence)
        sequence.leave(Status.WAITING)
        insort(self._waiting, sequence, key=attrgetter("arrival"))
        self.num_preemptions += 1

    def _admit(self) -> None:
        """Lets waiting sequences run, in order of arrival.

        Nobody overtakes a sequence that waits for a state slot or for KV blocks, so that it gets them. A sequence
        that waits for crop slots is overtaken by those that need none; no later one with pictures takes them away.
        One that waits for blocks which a running sequence is about to compute is overtaken by anybody: they are
        there after the next steps, and then it is first again. So is one that waits for pixels: it holds nothing.
        """
        if not self._waiting or not self._free_state_slots:
            return
        crops_are_short = False
        coming = {block_hash for sequence in self._running for block_hash in self._coming(sequence)}
        num_spare = self._blocks.num_free - sum(
            self._blocks_soon(sequence) - self._beams.num_held(sequence) for sequence in self._running
        )
        for sequence in list(self._waiting):
            if len(self._free_state_slots) < self._beams.num_slots(sequence):
                return
            cached = self._prefixes.find(sequence)
            if self._prefixes.is_coming(sequence, len(cached), coming):
                continue
            num_cached = self._beams.num_usable(sequence, len(cached) * self._blocks.block_tokens)
            cached = cached[: num_cached // self._blocks.block_tokens]
            if self._encoder.lacks_pixels(sequence, num_cached):
                continue
            num_shared = self._blocks.num_referenced(cached)
            if self._beams.num_blocks(sequence, sequence.num_known) - num_shared > num_spare:
                return
            if crops_are_short and self._encoder.needs_slots(sequence, num_cached):
                continue
            if not self._encoder.acquire(sequence, num_cached):
                crops_are_short = True
                continue
            self._let_run(sequence, cached, num_cached)
            num_spare -= self._blocks_soon(sequence) - num_shared
            coming.update(self._coming(sequence))

    def _let_run(self, sequence: Sequence, cached: list[int], num_cached: int) -> None:
        """WAITING -> RUNNING, beginning with the `num_cached` tokens of the `cached` blocks."""
        self._waiting.remove(sequence)
        if sequence.scheduled is None:
            self._prefixes.record(sequence, num_cached)
        self._blocks.share(cached)  # before the others are allocated, which could evict them
        others = self._blocks.allocate(self._blocks.blocks_for(sequence.num_known) - len(cached))
        sequence.admit(self._free_state_slots.pop(), cached + others, num_cached)
        self._beams.admit(sequence, [self._free_state_slots.pop() for _ in range(self._beams.num_slots(sequence) - 1)])
        insort(self._running, sequence, key=attrgetter("arrival"))

    def _coming(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the blocks that a running sequence is about to compute."""
        return self._prefixes.coming(sequence, self._encoder.num_ready(sequence, ()))

    def _blocks_soon(self, sequence: Sequence) -> int:
        """Blocks that the sequence will hold before long: admitting another one must not take them away."""
        return self._beams.num_blocks(sequence, min(sequence.num_known + GROWTH_TOKENS, sequence.max_computed))

    def _prefill_chunks(
        self, budget: int, encode: tuple[EncodeWork, ...], *, decoding: bool
    ) -> list[tuple[Sequence, int]]:
        """Sequences in prefill that this step goes on with, each with the position up to which it does.

        A chunk that ends at a crop not encoded yet is short, and a forward pass reads all weights for it. It comes
        along where a pass takes place anyway, and else waits until its crops are there, which costs it nothing.
        """
        chunks = []
        is_worth_a_pass = decoding
        for sequence, last in [one for running in self._running for one in self._beams.behind(running)]:
            if budget == 0:
                break
            num_ready = self._encoder.num_ready(sequence, encode)
            end = min(num_ready, last, sequence.num_computed + budget)
            if end > sequence.num_computed:
                chunks.append((sequence, end))
                budget -= end - sequence.num_computed
                is_worth_a_pass |= end < num_ready or end == sequence.num_known
        return chunks if is_worth_a_pass else []

    def _draft(self, decoding: list[Sequence], num_spare_tokens: int) -> None:
        """Lets sequences that decode try ids in this step, with tokens and blocks that nobody else wants in it."""
        if len(decoding) > self._limits.max_draft_sequences:
            return
        num_draws = self._limits.num_state_slots - len(self._free_state_slots)
        room = min(num_spare_tokens, self._limits.max_step_draws - num_draws)
        for sequence in (one for one in decoding if one.beams is None):
            num_known = sequence.num_known
            num_places = (len(sequence.block_table) + self._blocks.num_free) * self._blocks.block_tokens
            most = min(room, sequence.max_computed - num_known, num_places - num_known)
            draft = self._drafter.propose(sequence, most)
            sequence.draft = draft if sequence.matcher is None else sequence.matcher.follow(draft)
            room -= len(sequence.draft)
            num_missing = self._blocks.blocks_for(num_known + len(sequence.draft)) - len(sequence.block_table)
            sequence.block_table += self._blocks.allocate(num_missing)

    def _end_draft(self, sequence: Sequence, num_accepted: int) -> None:
        """The draft has been tried. Blocks taken for what was wrong in it go back: others may want them first."""
        self._drafter.record(sequence, num_accepted)
        sequence.draft = ()
        num_blocks = self._blocks.blocks_for(sequence.num_known)
        self._blocks.free(sequence.block_table[num_blocks:])
        del sequence.block_table[num_blocks:]

    def _stamp_encoding(self, encode: tuple[EncodeWork, ...], now: float) -> None:
        slots = {work.crop_slot for work in encode}
        for sequence in self._running:
            if sequence.encode_began is not None and not slots.isdisjoint(sequence.crop_slots or ()):
                sequence.encode_ended = now

    def _start(self, sequence: Sequence) -> StateStart:
        assert sequence.state_slot is not None
        return StateStart(sequence.state_slot, sequence.sampling, tuple(sequence.generated_ids))

    def _row(self, sequence: Sequence, end: int) -> SequenceRow:
        assert sequence.state_slot is not None
        start = sequence.num_computed
        is_last = end == sequence.num_known
        return SequenceRow(
            state_slot=sequence.state_slot,
            token_ids=[*sequence.ids(start, end), *sequence.draft],
            start=start,
            block_table=tuple(sequence.block_table),
            crops=self._encoder.crop_rows(sequence, start, end),
            draw=self._draw(sequence) if is_last else None,
        )

    def _remove(self, sequence: Sequence) -> None:
        """RUNNING or WAITING -> FINISHED: everything the sequence held is given back."""
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
            self._free_places(sequence, Status.FINISHED)
        else:
            self._waiting.remove(sequence)
        self._encoder.remove(sequence)
        self._drafter.forget(sequence)
        self._beams.forget(sequence)
        sequence.leave(Status.FINISHED)

    def _free_places(self, sequence: Sequence, status: Status) -> None:
        """For a sequence that comes to be in this `status`."""
        assert sequence.state_slot is not None
        self._free_state_slots += [sequence.state_slot, *self._beams.release(sequence, status)]
        self._blocks.free(sequence.block_table)

    def _draw(self, sequence: Sequence) -> Draw:
        """The points for the next id and for one after each drafted one, each by its index in the answer."""
        first = len(sequence.generated_ids)
        points = tuple(uniform(sequence.seed, first + place) for place in range(1 + len(sequence.draft)))
        masks = () if sequence.matcher is None else sequence.matcher.masks
        return Draw(points, self._beams.num_best(sequence), masks)


def _append(sequence: Sequence, sampled: tuple[Sampled, ...], now: float) -> NewTokens:
    """Makes drawn ids known, up to one that ends the sequence: what its draft brought beyond that does not count."""
    for count, one in enumerate(sampled, start=1):
        finish_reason = sequence.append(one.token_id, now)
        if finish_reason is not None:
            return NewTokens(sequence, sampled[:count], finish_reason)
    return NewTokens(sequence, sampled, None)
