"""One sequence on its way through the engine: the only object here that changes."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from model.step import SamplingParams
from server.engine.beam_search import BeamParams
from server.engine.channel import Crop
from server.engine.grammar import Matcher

FinishReason = Literal["stop", "length", "failed", "off_grammar"]

_UINT64 = 2**64 - 1


class Status(Enum):
    """WAITING -> RUNNING (admitted) -> FINISHED; RUNNING -> WAITING (preempted); WAITING -> FINISHED (aborted)."""

    WAITING = auto()
    """In the queue, without KV blocks and state slot. A preempted sequence keeps its ids and its crops."""
    RUNNING = auto()
    """Has a state slot, a slot for each crop, and blocks for all its known tokens but, at times, the last."""
    FINISHED = auto()
    """Has given everything back: reached its end, failed, or was aborted."""


@dataclass(eq=False, slots=True)
class Sequence:
    """What was asked, what was generated, and what the sequence holds. The scheduler alone changes it.

    Known tokens are the prompt and what was generated; computed tokens are the prefix of them whose keys and values
    are in the KV cache.
    """

    request_id: int
    choice: int
    prompt_ids: list[int]
    """Shared by the sequences of one request; never changed."""
    crops: tuple[Crop, ...]
    """In order of position. Their offsets change when their pixels are given up, or come later."""
    sampling: SamplingParams
    seed: int
    max_tokens: int
    eos_id: int | None
    """None ignores the end id."""
    arrived: float
    """Seconds of the engine's clock, like the two stamps below."""
    cache_salt: bytes = b""
    """Only sequences with the same salt share KV blocks."""
    matcher: Matcher | None = None
    """What may be said next, by a grammar; None: anything. Advances with each generated id."""
    beams: BeamParams | None = None
    """Of a sequence that searches instead of drawing, and of its beams (server.engine.beam_planner)."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end the answer like the end id."""
    scheduled: float | None = None
    """Start of the first step that worked on this sequence."""
    first_token: float | None = None
    """End of the step that chose the first id."""
    encode_began: float | None = None
    """Start of the first step that encoded a crop which no sequence before this one had begun."""
    encode_ended: float | None = None
    """End of the last step since then that encoded a crop of this sequence."""

    arrival: int = field(init=False)
    """Rank among all sequences, given by `Scheduler.add`: the order of every queue."""
    status: Status = Status.WAITING
    generated_ids: list[int] = field(default_factory=list)
    """The end id included. Counted when a step's output has been applied."""
    num_computed: int = 0
    """Lags behind `num_known` by one in decode, by more in prefill; 0 while WAITING. At admission, the tokens that
    were found in the prefix cache."""
    num_cached_prompt: int = 0
    """Prompt tokens that were found in the prefix cache when this sequence was first admitted."""
    block_table: list[int] = field(default_factory=list)
    """KV block ids in order of position. Others may hold the full blocks at its beginning as well."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of known tokens, as far as the prefix cache has needed them. Like ids they never change."""
    state_slot: int | None = None
    """Index of the sampling state in the runner while RUNNING."""
    draft: tuple[int, ...] = ()
    """Guesses at the next ids, computed by the step under way after the last known token; none between steps."""
    has_state: bool = False
    """The runner has begun that state: true from the first step after an admission."""
    crop_slots: tuple[int | None, ...] | None = None
    """Slot of each crop in the vision cache, None for one that lies in cached tokens. None as a whole while no slots
    are held; see `EncodePlanner.acquire`."""

    @property
    def num_known(self) -> int:
        return len(self.prompt_ids) + len(self.generated_ids)

    @property
    def max_computed(self) -> int:
        """Tokens in the KV cache at most: the last id generated is never computed, since nothing follows it."""
        return len(self.prompt_ids) + self.max_tokens - 1

    @property
    def is_decoding(self) -> bool:
        """A step has worked on it, and all but the newest generated id is computed: every step brings one more."""
        return self.has_state and bool(self.generated_ids) and self.num_known - self.num_computed == 1

    def ids(self, start: int, end: int) -> list[int]:
        """Known tokens `start` up to, not including, `end`: 3 prompt ids, ids(2, 5) -> prompt[2:] + generated[:2]."""
        num_prompt = len(self.prompt_ids)
        return self.prompt_ids[start:end] + self.generated_ids[max(0, start - num_prompt) : max(0, end - num_prompt)]

    def admit(self, state_slot: int, block_table: list[int], num_cached: int) -> None:
        """WAITING -> RUNNING, with blocks for all known tokens, `num_cached` of which they hold already."""
        assert self.status is Status.WAITING
        self.status = Status.RUNNING
        self.state_slot = state_slot
        self.block_table = block_table
        self.num_computed = num_cached
        if self.scheduled is None:
            self.num_cached_prompt = num_cached

    def work_begins(self, now: float) -> None:
        """A step that starts at `now` works on this sequence."""
        if self.scheduled is None:
            self.scheduled = now

    def encoding_begins(self, now: float) -> None:
        """A step that starts at `now` encodes a crop for this sequence."""
        self.work_begins(now)
        if self.encode_began is None:
            self.encode_began = now

    def advance(self, num_tokens: int) -> None:
        """A step has computed that many more tokens that are known now."""
        self.num_computed += num_tokens
        self.has_state = True

    def append(self, token_id: int, now: float) -> FinishReason | None:
        """The reason to stop after this id, or None to go on."""
        self.generated_ids.append(token_id)
        if self.first_token is None:
            self.first_token = now
        if token_id == self.eos_id or token_id in self.stop_token_ids:
            return "stop"
        if self.matcher is not None:
            self.matcher.advance(token_id)
            if self.matcher.is_complete:
                return "stop"  # only the end could follow: a step less
            if self.matcher.has_failed:
                return "off_grammar"
        return "length" if len(self.generated_ids) == self.max_tokens else None

    def leave(self, status: Status) -> None:
        """RUNNING or WAITING -> `status`. What the sequence held has been given back by the caller."""
        assert self.status is not Status.FINISHED
        self.status = status
        self.state_slot = None
        self.has_state = False
        self.block_table = []
        self.draft = ()
        self.num_computed = 0

    def check_invariants(self) -> None:
        running = self.status is Status.RUNNING
        assert running == (self.state_slot is not None)
        assert running == bool(self.block_table)
        assert running or not (self.num_computed or self.has_state or self.draft)
        assert self.num_computed < self.num_known
        assert self.crop_slots is None or len(self.crop_slots) == len(self.crops)
        assert self.crop_slots is not None or not running
        assert len(self.generated_ids) < self.max_tokens or self.status is Status.FINISHED


def uniform(seed: int, index: int) -> float:
    """Number `index` of the random stream `seed`, in [0, 1): a function of the two alone.

    Nothing is carried from draw to draw, so that what else is in the batch, how a prompt was cut into chunks and
    whether a sequence was preempted cannot change it.

    Args:
        seed: any integer; 64 bits of it count.
        index: which id of the sequence is being drawn, from 0.

    Source: output `index` of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    2014), whose state after n outputs is seed + n * gamma; its upper 53 bits fill a double's mantissa.
    """
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _UINT64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _UINT64
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53
