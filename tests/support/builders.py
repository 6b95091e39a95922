"""Sequences, crops and a whole engine in one line each, with small sizes by default."""

from collections.abc import Sequence as Ordered
from dataclasses import asdict, dataclass, field
from typing import Any

from model.step import Runner, RunnerInfo, SamplingParams, StepBatch
from server.engine.beam_search import BeamParams
from server.engine.blocks import BlockPool
from server.engine.channel import Crop
from server.engine.drafter import Drafter
from server.engine.encoding import EncodePlanner
from server.engine.grammar import Matcher
from server.engine.host_tier import HostTier
from server.engine.limits import StepLimits
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import NewTokens, Scheduler
from server.engine.sequence import Sequence
from server.engine.vision_cache import VisionCache
from tests.support.fake_runner import FakeRunner, digest, expected_ids, expected_results, make_info

CROP_QUERIES = 4
"""Positions that a crop takes in the tests' prompts."""
CROP_WIDTH, CROP_HEIGHT = 2, 1


class FakeArena:
    """Pixels by offset. Reading what was released, or releasing what is not there, is an error."""

    def __init__(self) -> None:
        self._pixels: dict[int, bytes] = {}
        self._num_bytes = 0
        self.num_put = 0

    def put(self, pixels: bytes) -> int:
        """The offset of a new crop."""
        offset = self._num_bytes
        self._pixels[offset] = pixels
        self._num_bytes += len(pixels)
        self.num_put += 1
        return offset

    def read(self, offset: int, num_bytes: int) -> memoryview:
        assert len(self._pixels[offset]) == num_bytes
        return memoryview(self._pixels[offset])

    def release(self, offsets: Ordered[int]) -> None:
        for offset in offsets:
            del self._pixels[offset]

    @property
    def offsets(self) -> set[int]:
        """Those not released yet."""
        return set(self._pixels)


def crop_pixels(content: int) -> bytes:
    return bytes([content] * (CROP_WIDTH * CROP_HEIGHT * 3))


def make_crops(arena: FakeArena, crops: Ordered[tuple[int, int]]) -> tuple[Crop, ...]:
    """Crops of a prompt, given as (position, content); equal `content` is an equal picture."""
    return tuple(
        Crop(arena.put(crop_pixels(content)), CROP_WIDTH, CROP_HEIGHT, start, content.to_bytes(16))
        for start, content in crops
    )


def without_pixels(crops: Ordered[tuple[int, int]]) -> tuple[Crop, ...]:
    """The same, but their pixels are not sent."""
    return tuple(Crop(None, CROP_WIDTH, CROP_HEIGHT, start, content.to_bytes(16)) for start, content in crops)


def make_sequence(
    num_prompt: int = 5,
    *,
    request_id: int = 0,
    choice: int = 0,
    prompt_ids: list[int] | None = None,
    crops: tuple[Crop, ...] = (),
    sampling: SamplingParams | None = None,
    seed: int = 0,
    max_tokens: int = 4,
    eos_id: int | None = None,
    arrived: float = 0.0,
    cache_salt: bytes = b"",
    matcher: Matcher | None = None,
    beams: BeamParams | None = None,
    stop_token_ids: Ordered[int] = (),
) -> Sequence:
    """A sequence over `prompt_ids`, by default `num_prompt` ids that differ from request to request."""
    return Sequence(
        request_id=request_id,
        choice=choice,
        prompt_ids=prompt_ids or [100 * request_id + position for position in range(num_prompt)],
        crops=crops,
        sampling=sampling or SamplingParams(),
        seed=seed,
        max_tokens=max_tokens,
        eos_id=eos_id,
        arrived=arrived,
        cache_salt=cache_salt,
        matcher=matcher,
        beams=beams,
        stop_token_ids=frozenset(stop_token_ids),
    )


def make_limits(**changes: Any) -> StepLimits:
    """Limits in which nothing is short, with `changes`."""
    sizes = {
        "num_state_slots": 4,
        "max_step_tokens": 64,
        "max_step_vision_blocks": 4,
        "max_idle_crops": 4,
        "crop_queries": CROP_QUERIES,
        "max_step_draws": 64,
        "max_draft_tokens": 0,
        "max_draft_sequences": 4,
    }
    return StepLimits(**(sizes | changes))


@dataclass
class Engine:
    """Scheduler, caches and a fake runner, driven step by step; every step checks all invariants."""

    scheduler: Scheduler
    blocks: BlockPool
    prefixes: PrefixCache
    vision: VisionCache
    encoder: EncodePlanner
    drafter: Drafter
    runner: Runner
    arena: FakeArena = field(default_factory=FakeArena)
    now: float = 0.0
    """The clock: a step takes one second."""
    num_requests: int = 0
    batches: list[StepBatch] = field(default_factory=list)
    news: list[NewTokens] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    """Requests whose pixels the engine has asked for and not got."""

    def submit(
        self, num_prompt: int = 5, *, crops: Ordered[tuple[int, int]] = (), num_choices: int = 1, **request: Any
    ) -> list[Sequence]:
        """The sequences of one new request; see `make_sequence`, and `make_crops` for the form of `crops`."""
        return self.submit_crops(num_prompt, make_crops(self.arena, crops), num_choices=num_choices, **request)

    def submit_crops(
        self, num_prompt: int, crops: tuple[Crop, ...], *, num_choices: int, seed: int = 0, **request: Any
    ) -> list[Sequence]:
        """The same with crops that lie in the arena."""
        fields: dict[str, Any] = {"request_id": self.num_requests, "crops": crops} | request
        sequences = [
            make_sequence(num_prompt, choice=choice, seed=seed + choice, **fields) for choice in range(num_choices)
        ]
        self.num_requests += 1
        for sequence in sequences:
            self.scheduler.add(sequence)
        self.scheduler.check_invariants()
        return sequences

    def supply(self, sequence: Sequence) -> None:
        """The API process sends the pixels of all crops of a request."""
        self.wanted = [request_id for request_id in self.wanted if request_id != sequence.request_id]
        offsets = [self.arena.put(crop_pixels(int.from_bytes(crop.content_hash))) for crop in sequence.crops]
        self.scheduler.supply(sequence.request_id, offsets)
        self.settle()

    def add(self, num_prompt: int = 5, **request: Any) -> Sequence:
        """The sequence of one new request."""
        (sequence,) = self.submit(num_prompt, **request)
        return sequence

    def schedule(self) -> StepBatch | None:
        batch = self.scheduler.schedule(self.now)
        self.wanted += self.encoder.take_wanted()
        self.scheduler.check_invariants()
        return batch

    def step(self) -> StepBatch | None:
        """The step that was taken, None when there was nothing to do."""
        batch = self.schedule()
        if batch is not None:
            output = self.runner.run(batch)
            self.now += 1.0
            self.book(self.scheduler.update(batch, output, self.now))
            self.batches.append(batch)
        return batch

    def book(self, news: list[NewTokens]) -> None:
        self.news += news
        # Once, though a search ends with news of each of its results.
        self.finished += [new.sequence for new in news if new.finish_reason is not None and not new.rank]
        self.settle()

    def settle(self) -> None:
        """Pixels that were released are gone; everything is consistent."""
        self.arena.release(self.encoder.take_released())
        self.scheduler.check_invariants()

    def abort(self, request_id: int, choice: int | None = None) -> None:
        self.scheduler.abort(request_id, choice)
        self.settle()

    def fail(self, batch: StepBatch) -> list[Sequence]:
        failed = self.scheduler.fail(batch)
        self.settle()
        return failed

    def run_to_end(self, max_steps: int = 1000) -> list[Sequence]:
        """All sequences that have finished, after as many steps as it takes."""
        while self.step() is not None:
            assert len(self.batches) < max_steps
        return self.finished

    def assert_empty(self) -> None:
        """Nothing is held by anybody."""
        assert (self.scheduler.num_waiting, self.scheduler.num_running) == (0, 0)
        assert (self.blocks.num_used, self.vision.num_referenced) == (0, 0)
        assert self.arena.offsets == set()


def make_engine(
    info: RunnerInfo | None = None, *, runner: Runner | None = None, prefix_cache: bool = True, **limits: Any
) -> Engine:
    """An engine over a fake runner of these sizes, with `limits` as `make_limits` takes them."""
    info = info or make_info()
    blocks = BlockPool(info.num_kv_blocks, info.kv_block_tokens)
    vision = VisionCache(info.num_crop_slots, info.num_vision_blocks, HostTier(info.num_host_slots))
    arena = FakeArena()
    sizes = {"num_state_slots": info.num_state_slots, "max_step_draws": info.max_step_draws}
    step_limits = make_limits(**(sizes | limits))
    encoder = EncodePlanner(step_limits, vision, arena.read)
    prefixes = PrefixCache(blocks, crop_queries=step_limits.crop_queries, is_enabled=prefix_cache)
    drafter = Drafter(
        max_tokens=step_limits.max_draft_tokens, crop_queries=step_limits.crop_queries, keeps_answers=prefix_cache
    )
    scheduler = Scheduler(step_limits, blocks, prefixes, encoder, drafter)
    return Engine(scheduler, blocks, prefixes, vision, encoder, drafter, runner or FakeRunner(info), arena)


def expected_results_of(sequence: Sequence, vocab_size: int = 23) -> list[list[int]]:
    """The results of a sequence that searches when it runs alone and nothing goes wrong."""
    assert sequence.beams is not None
    return expected_results(
        sequence.prompt_ids,
        _crop_digests(sequence),
        crop_queries=CROP_QUERIES,
        sampling=sequence.sampling,
        max_tokens=sequence.max_tokens,
        eos_id=sequence.eos_id,
        stop_token_ids=sequence.stop_token_ids,
        vocab_size=vocab_size,
        **asdict(sequence.beams),
    )


def results_of(engine: Engine, sequence: Sequence) -> list[list[int]]:
    """The ids that came of each of its results, by rank."""
    assert sequence.beams is not None
    news = [new for new in engine.news if new.sequence is sequence]
    return [
        [one.token_id for new in news if new.rank == rank for one in new.sampled]
        for rank in range(sequence.beams.num_results)
    ]


def _crop_digests(sequence: Sequence) -> list[tuple[int, bytes]]:
    return [
        (crop.start, digest(crop.width, crop.height, crop_pixels(int.from_bytes(crop.content_hash))))
        for crop in sequence.crops
    ]


def expected_of(sequence: Sequence, vocab_size: int = 23) -> list[int]:
    """What the sequence generates when it runs alone and nothing goes wrong."""
    return expected_ids(
        sequence.prompt_ids,
        _crop_digests(sequence),
        crop_queries=CROP_QUERIES,
        sampling=sequence.sampling,
        seed=sequence.seed,
        max_tokens=sequence.max_tokens,
        eos_id=sequence.eos_id,
        stop_token_ids=sequence.stop_token_ids,
        vocab_size=vocab_size,
    )
