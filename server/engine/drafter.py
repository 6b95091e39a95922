"""Guesses at the next ids of sequences that decode, from texts that repeat themselves, and whether they are worth it.

A step that computes a few guessed ids more takes little longer, and each one that is right saves a step. What is drawn
never depends on a guess (`model.step.Draw`). docs/decisions/speculation.md gives the reasons, with numbers.
"""

from dataclasses import dataclass, field

from server.engine.ngrams import NgramIndex
from server.engine.past_answers import PastAnswers
from server.engine.sequence import Sequence

FIRST_DRAFT = 3
"""Ids of the first guess at a sequence."""
MIN_REST, MAX_REST = 16, 64
"""Generated ids between guesses for a sequence whose guesses were wrong: at first, and after many tries."""


@dataclass(slots=True)
class Pace:
    """How many ids are guessed for one sequence, by how the guesses before did.

    All right: twice as many next time. Some right: one more than those. None right: half as many, and where that is
    none the sequence rests, longer each time, and tries again with a single id.
    """

    max_tokens: int
    length: int
    """Ids of the next guess at most, at least 1."""
    resumes_at: int = 0
    """Number of generated ids from which on there are guesses."""
    rest: int = MIN_REST

    def allowed(self, num_generated: int) -> int:
        """Ids that may be guessed when so many have been generated."""
        return self.length if num_generated >= self.resumes_at else 0

    def record(self, num_drafted: int, num_accepted: int, num_generated: int) -> None:
        """A guess of `num_drafted` ids, of which the first `num_accepted` were right, brought this many generated."""
        if num_accepted == num_drafted:
            self.length = min(max(self.length, 2 * num_drafted), self.max_tokens)
        elif num_accepted:
            self.length = num_accepted + 1
        elif self.length > 1:
            self.length //= 2
        else:
            self.resumes_at = num_generated + self.rest
            self.rest = min(2 * self.rest, MAX_REST)
        if num_accepted:
            self.rest = MIN_REST


@dataclass(slots=True)
class _Memory:
    """Of one sequence."""

    pace: Pace
    index: NgramIndex = field(default_factory=NgramIndex)
    num_indexed: int = 0
    """Generated ids that the index has."""


class Drafter:
    """The drafts of all sequences, and how often they were right."""

    def __init__(self, *, max_tokens: int, crop_queries: int, keeps_answers: bool) -> None:
        """
        Args:
            max_tokens: ids of a draft at most; 0 guesses nothing.
            crop_queries: positions in the prompt that a crop's vectors take.
            keeps_answers: whether answers that have ended are guesses at those about the same pictures or prompt.
        """
        self.num_drafted = 0
        """Ids that were guessed, since the start."""
        self.num_accepted = 0
        """Of these, the ones that saved a step."""
        self._max_tokens = max_tokens
        self._crop_queries = crop_queries
        self._memories: dict[Sequence, _Memory] = {}
        self._past = PastAnswers(crop_queries) if keeps_answers and max_tokens else None

    def propose(self, sequence: Sequence, max_tokens: int) -> tuple[int, ...]:
        """Ids that may come next in a sequence that decodes, at most `max_tokens`; often none.

        What a grammar forces comes before all guesses.
        """
        limit = min(max_tokens, self._max_tokens)
        if limit < 1:
            return ()
        if sequence.matcher is not None and (forced := sequence.matcher.forced(limit)):
            return forced
        memory = self._memories.get(sequence) or self._remember(sequence)
        limit = min(limit, memory.pace.allowed(len(sequence.generated_ids)))
        if limit < 1:
            return ()
        memory.index.extend(sequence.generated_ids[memory.num_indexed :])
        memory.num_indexed = len(sequence.generated_ids)
        return memory.index.continuation(limit)

    def record(self, sequence: Sequence, num_accepted: int) -> None:
        """The first `num_accepted` ids of the sequence's draft were right and have been appended to its ids."""
        num_drafted = len(sequence.draft)
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        memory = self._memories.get(sequence)
        if memory is not None:  # there is none as long as all drafts were what a grammar forces
            memory.pace.record(num_drafted, num_accepted, len(sequence.generated_ids))

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended, wherever in its answer."""
        self._memories.pop(sequence, None)
        if self._past is not None:
            self._past.keep(sequence)

    def check_invariants(self, live: list[Sequence]) -> None:
        """Only live sequences are remembered."""
        assert self._memories.keys() <= set(live)
        for sequence, memory in self._memories.items():
            assert 1 <= memory.pace.length <= self._max_tokens
            assert memory.num_indexed <= len(sequence.generated_ids)
            memory.index.check_invariants()
        if self._past is not None:
            self._past.check_invariants()

    def _remember(self, sequence: Sequence) -> _Memory:
        """Past answers and the prompt go into a new index. Pictures are gaps in it: their ids are all the same."""
        memory = _Memory(Pace(self._max_tokens, min(FIRST_DRAFT, self._max_tokens)))
        for answer in () if self._past is None else self._past.find(sequence):
            memory.index.extend(answer)
            memory.index.add_gap()
        start = 0
        for crop in sequence.crops:
            memory.index.extend(sequence.prompt_ids[start : crop.start])
            memory.index.add_gap()
            start = crop.start + self._crop_queries
        memory.index.extend(sequence.prompt_ids[start:])
        self._memories[sequence] = memory
        return memory
