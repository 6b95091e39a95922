"""The beams of sequences that search, and what of the scheduler's work differs for them.

In the scheduler's queues such a sequence stands alone, and it is itself the first of its beams. The others are
sequences in no queue. From its admission on it holds a state slot for each.

    prompt  the sequence computes its prompt as any other does. From the scores at its end come the first ids of all
            beams, which fork: they share the blocks of the prompt
    step    each beam computes its newest id, all in the same step. Then the search chooses which of them go on, and how
            often: a beam takes over the blocks, the ids and the state of the one that it continues (itself, or another)
    blocks  full ones are shared for as long as several beams begin alike. Into the last, partly filled one its beams
            would write different ids, so all but one of them get a copy before they do
    resume  after a preemption the sequence computes what all beams have in common. There they fork, each computes the
            rest of its own ids up to the newest, and they step on

docs/decisions/beam-search.md gives the reasons.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from model.step import BlockCopy, Sampled, StateFork
from server.engine.beam_search import BeamSearch, num_candidates
from server.engine.blocks import BlockPool
from server.engine.sequence import FinishReason, Sequence, Status

_News = tuple[int, tuple[Sampled, ...], FinishReason | None]
"""Rank of a result, its new ids, and its end."""


@dataclass(slots=True)
class _Group:
    """Of one sequence that searches."""

    search: BeamSearch
    beams: list[Sequence]
    """The sequence itself comes first."""
    is_forked: bool = False
    """All beams have blocks; else the first one alone."""
    has_begun: bool = False
    """The beams have ids."""
    forks: list[StateFork] = field(default_factory=list)
    """For the step in which the beams compute these ids."""
    candidates: dict[Sequence, tuple[Sampled, ...]] = field(default_factory=dict)
    """What a step told of the beams so far."""
    num_published: int = 0
    dropped: set[int] = field(default_factory=set)
    """Ranks of results that nobody waits for any more."""

    @property
    def leader(self) -> Sequence:
        return self.beams[0]

    @property
    def num_trunk(self) -> int:
        """Tokens that all beams have in common. At least one known token of each is left to compute behind them."""
        num_prompt, num_known = len(self.leader.prompt_ids), self.leader.num_known
        return min(num_prompt + self.search.num_common, num_known - 1) if self.has_begun else num_prompt

    @property
    def is_level(self) -> bool:
        """Every beam misses its newest token alone, so that the next step can choose."""
        return self.is_forked and all(beam.num_known - beam.num_computed == 1 for beam in self.beams)


class BeamPlanner:
    """Answers for every sequence, and for one that does not search as if it were not there."""

    def __init__(self, blocks: BlockPool) -> None:
        self._blocks = blocks
        self._groups: dict[Sequence, _Group] = {}
        """By the sequence in the scheduler's queues."""
        self._copies: list[BlockCopy] = []

    def add(self, sequence: Sequence) -> None:
        """A new sequence."""
        if sequence.beams is None:
            return
        search = BeamSearch(sequence.beams, max_tokens=sequence.max_tokens, end_ids=_end_ids(sequence))
        others = [
            replace(sequence, generated_ids=[], block_table=[], block_hashes=[])
            for _ in range(sequence.beams.num_beams - 1)
        ]
        self._groups[sequence] = _Group(search, [sequence, *others])

    def drop(self, sequence: Sequence, choice: int | None) -> bool:
        """Nobody waits any more for this choice of the request, or for any of them (None): whether the sequence ends.

        All results of a search come from one sequence, which goes on as long as one of them is waited for.
        """
        group = self._groups.get(sequence)
        if group is None or choice is None:
            return choice in (None, sequence.choice)
        group.dropped.add(choice)
        return group.dropped >= set(range(_num_results(group)))

    def num_slots(self, sequence: Sequence) -> int:
        """State slots that the sequence holds while it runs."""
        return 1 if sequence.beams is None else sequence.beams.num_beams

    def slots(self, sequence: Sequence) -> list[int]:
        """Those that it holds now."""
        beams = self._groups[sequence].beams if sequence in self._groups else [sequence]
        return [beam.state_slot for beam in beams if beam.state_slot is not None]

    def num_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks for so many tokens, of each beam, when nothing but what is common for certain is shared."""
        group = self._groups.get(sequence)
        if group is None:
            return self._blocks.blocks_for(num_tokens)
        num_common = group.num_trunk // self._blocks.block_tokens
        return num_common + len(group.beams) * (self._blocks.blocks_for(num_tokens) - num_common)

    def num_held(self, sequence: Sequence) -> int:
        """Blocks that the sequence has, each counted once."""
        return len({block_id for beam in self.holders(sequence) for block_id in beam.block_table})

    def num_usable(self, sequence: Sequence, num_cached: int) -> int:
        """How many cached tokens a waiting sequence can begin with: the beams fork at a token that it computes."""
        group = self._groups.get(sequence)
        if group is None or not group.has_begun:
            return num_cached
        return min(num_cached, (group.num_trunk - 1) // self._blocks.block_tokens * self._blocks.block_tokens)

    def admit(self, sequence: Sequence, state_slots: Iterable[int]) -> None:
        """The sequence runs, with these slots besides its own."""
        if sequence in self._groups:
            for beam, slot in zip(self._groups[sequence].beams[1:], state_slots, strict=True):
                beam.state_slot = slot

    def holders(self, sequence: Sequence) -> list[Sequence]:
        """What has blocks, and may have a row in a step: the beams once they have forked, else the sequence."""
        group = self._groups.get(sequence)
        return group.beams if group is not None and group.is_forked else [sequence]

    def grows(self, sequence: Sequence) -> bool:
        """Whether the sequence may need blocks in this step."""
        group = self._groups.get(sequence)
        return sequence.is_decoding if group is None else group.is_forked

    def num_missing(self, sequence: Sequence) -> int:
        """Blocks that it needs for all its known tokens, copies included."""
        beams = self.holders(sequence)
        num_new = sum(self._blocks.blocks_for(beam.num_known) - len(beam.block_table) for beam in beams)
        written = Counter(block_id for beam in beams if (block_id := self._partial_block(beam)) is not None)
        return num_new + written.total() - len(written)

    def grow(self, sequence: Sequence) -> None:
        """Takes these blocks, which are free."""
        for beam in self.holders(sequence):
            source = self._partial_block(beam)
            if source is not None and self._blocks.is_shared(source):
                [target] = self._blocks.allocate(1)
                self._copies.append(BlockCopy(source, target))
                self._blocks.free([source])
                beam.block_table[beam.num_computed // self._blocks.block_tokens] = target
            num_missing = self._blocks.blocks_for(beam.num_known) - len(beam.block_table)
            beam.block_table += self._blocks.allocate(num_missing)

    def decoding(self, sequence: Sequence) -> list[Sequence]:
        """What computes its newest token in this step, `grow` having seen to blocks."""
        group = self._groups.get(sequence)
        if group is None:
            return [sequence]
        return group.beams if group.is_level else []

    def behind(self, sequence: Sequence) -> list[tuple[Sequence, int]]:
        """What has more than its newest token to compute, and up to which token it does before it decodes or forks."""
        group = self._groups.get(sequence)
        if group is None:
            return [] if sequence.is_decoding else [(sequence, sequence.num_known)]
        if not group.is_forked:
            return [(sequence, group.num_trunk)]
        return [(beam, beam.num_known - 1) for beam in group.beams if beam.num_computed < beam.num_known - 1]

    def num_best(self, sequence: Sequence) -> int | None:
        """Best ids that a draw is to tell of a beam; None where an id is drawn. `sequence` may be any beam."""
        return None if sequence.beams is None else num_candidates(sequence.beams, len(_end_ids(sequence)))

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Since the last call; for the step that follows."""
        copies, self._copies = self._copies, []
        return tuple(copies)

    def take_forks(self) -> tuple[StateFork, ...]:
        """The same for states: beams that have chosen their ids compute them in the next step."""
        forks = [fork for group in self._groups.values() for fork in group.forks]
        for group in self._groups.values():
            group.forks = []
        return tuple(forks)

    def take(self, sequence: Sequence, beam: Sequence, sampled: tuple[Sampled, ...]) -> None:
        """What a step told of one beam of the sequence; nothing where it did not reach its newest token."""
        if sampled:
            self._groups[sequence].candidates[beam] = sampled

    def choose(self, sequence: Sequence, now: float) -> tuple[list[_News], bool]:
        """After a step: what is new of which result, and whether the search is over."""
        group = self._groups[sequence]
        if group.has_begun and not group.is_forked and sequence.num_computed == group.num_trunk:
            self._fork(group)
        sources = group.beams if group.has_begun else [sequence]
        if len(group.candidates) < len(sources):
            return [], False
        search, is_first = group.search, not group.has_begun
        search.advance([[(one.token_id, _logprob(one)) for one in group.candidates[beam]] for beam in sources])
        group.candidates.clear()
        if is_first:
            group.has_begun = True
            sequence.first_token = now
        if search.is_over:
            sequence.generated_ids = list(search.beams[0].ids)
        else:
            self._continue(group, sources)
        return _news(group, is_first=is_first), search.is_over

    def release(self, sequence: Sequence, status: Status) -> list[int]:
        """The sequence no longer runs: slots of its other beams, whose blocks it gives back, too."""
        group = self._groups.get(sequence)
        if group is None:
            return []
        slots = [beam.state_slot for beam in group.beams[1:] if beam.state_slot is not None]
        for beam in group.beams[1:]:
            self._blocks.free(beam.block_table)
            beam.leave(status)
        group.is_forked = False
        group.forks = []
        return slots

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._groups.pop(sequence, None)

    def check_invariants(self, live: list[Sequence]) -> None:
        """Beams have the ids that their search says, blocks for what is computed, and places as their sequence has."""
        assert {sequence for sequence in live if sequence.beams is not None} == self._groups.keys()
        for sequence, group in self._groups.items():
            group.search.check_invariants()
            assert group.leader is sequence
            assert all((beam.state_slot is None) == (sequence.state_slot is None) for beam in group.beams)
            assert not group.is_forked or (group.has_begun and sequence.status is Status.RUNNING)
            assert group.is_forked or not any(beam.block_table for beam in group.beams[1:])
            if group.has_begun:
                texts = [beam.ids for beam in group.search.beams]
                assert [tuple(beam.generated_ids) for beam in group.beams] == texts
            for beam in group.beams:
                assert beam.num_computed < beam.num_known
                assert len(beam.block_table) * self._blocks.block_tokens >= beam.num_computed

    def _partial_block(self, beam: Sequence) -> int | None:
        """The block that the beam's next token goes into, if there are tokens in it already."""
        index, num_tokens = divmod(beam.num_computed, self._blocks.block_tokens)
        return beam.block_table[index] if num_tokens else None

    def _fork(self, group: _Group) -> None:
        """The first beam has computed what all have in common; the others begin behind that."""
        group.is_forked = True
        table = group.leader.block_table[: self._blocks.blocks_for(group.num_trunk)]
        for beam in group.beams[1:]:
            self._blocks.share(table)
            beam.status = Status.RUNNING
            beam.block_table = list(table)
            beam.num_computed = group.num_trunk

    def _continue(self, group: _Group, sources: list[Sequence]) -> None:
        """Each beam goes on from the source that the search names, one id longer."""
        chosen = [(beam, sources[beam.parent]) for beam in group.search.beams]
        held = [(list(source.block_table), list(source.block_hashes), source.state_slot) for _, source in chosen]
        num_computed = group.leader.num_computed
        for table, _, _ in held:
            self._blocks.share(table)
        for source in sources:
            self._blocks.free(source.block_table)
        group.forks = []
        for beam, (text, _), (table, hashes, slot) in zip(group.beams, chosen, held, strict=True):
            assert beam.state_slot is not None
            assert slot is not None
            beam.status = Status.RUNNING
            beam.generated_ids, beam.block_table, beam.block_hashes = list(text.ids), table, hashes
            beam.num_computed, beam.has_state = num_computed, True
            group.forks.append(StateFork(beam.state_slot, slot, text.ids[-1]))
        group.is_forked = True


def _end_ids(sequence: Sequence) -> frozenset[int]:
    return sequence.stop_token_ids if sequence.eos_id is None else sequence.stop_token_ids | {sequence.eos_id}


def _num_results(group: _Group) -> int:
    assert group.leader.beams is not None
    return group.leader.beams.num_results


def _logprob(candidate: Sampled) -> float:
    assert candidate.logprob is not None
    return candidate.logprob


def _news(group: _Group, *, is_first: bool) -> list[_News]:
    """What every result begins with, as soon as it is certain; the rest of each when the search is over.

    The first step is told of in any case: the prompt has been computed.
    """
    search, first = group.search, group.num_published
    group.num_published = search.num_settled
    if search.is_over:
        ends: list[_News] = [
            (rank, _sampled(one.ids[first:]), "stop" if one.is_closed else "length")
            for rank, one in enumerate(search.results())
        ]
        return [news for news in ends if news[0] not in group.dropped]
    settled = _sampled(search.beams[0].ids[first : search.num_settled])
    if settled:
        return [(rank, settled, None) for rank in range(_num_results(group)) if rank not in group.dropped]
    return [(0, (), None)] if is_first else []


def _sampled(ids: tuple[int, ...]) -> tuple[Sampled, ...]:
    return tuple(Sampled(token_id, None, ()) for token_id in ids)
