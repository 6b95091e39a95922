"""A runner without torch whose answers depend on everything the engine has to get right.

Each computed token, drafts included, is written into a simulated KV cache under (block id, offset), and an id is drawn
by hashing what the row's block table reads back there: a wrong block table, position, crop, skipped or doubled token, a
guess that was wrong and stayed, a state that was not restored, or a block that beams share and write, changes the
answer. A small `vocab_size` makes texts that repeat themselves. `expected_ids` computes the same answer in one go, from
the request alone, and `expected_results` those of a search.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from hashlib import blake2b
from typing import Any

from model.step import EncodeWork, RunnerInfo, Sampled, SamplingParams, SequenceRow, StepBatch, StepOutput
from server.engine.grammar import Matcher
from server.engine.sequence import uniform
from tests.support.beams import plain_beam_search

CROP_BYTES = 100
"""Of an encoded crop, by what the fake says."""
ENCODE_BLOCK_S = 0.001
"""Seconds that the fake claims for one tower block of one crop."""


def make_info(
    *,
    num_kv_blocks: int = 64,
    kv_block_tokens: int = 4,
    num_crop_slots: int = 8,
    num_host_slots: int = 0,
    num_state_slots: int = 4,
    max_step_draws: int = 64,
    num_vision_blocks: int = 4,
    vocab_size: int = 23,
) -> RunnerInfo:
    return RunnerInfo(
        num_kv_blocks=num_kv_blocks,
        kv_block_tokens=kv_block_tokens,
        num_crop_slots=num_crop_slots,
        num_host_slots=num_host_slots,
        crop_bytes=CROP_BYTES,
        num_state_slots=num_state_slots,
        max_step_draws=max_step_draws,
        num_vision_blocks=num_vision_blocks,
        vocab_size=vocab_size,
        device="fake",
        dtype="fp32",
        weights="fp32",
        kv="fp32",
        weight_bytes=0,
        kv_bytes=0,
        memory_budget_bytes=0,
        memory=(),
        load_s=0.0,
    )


class FakeRunner:
    """Ids are below `vocab_size`. Given anything but the next blocks of a crop or a crop not encoded, it raises."""

    def __init__(self, info: RunnerInfo, *, vocab_size: int = 23) -> None:
        self.info = info
        self._vocab_size = vocab_size
        self._kv: dict[tuple[int, int], bytes] = {}
        self._states: dict[int, tuple[SamplingParams, list[int]]] = {}
        self._encoding: dict[int, tuple[bytes, int]] = {}
        """By crop slot: digest of the pixels, tower blocks done."""
        self._host: dict[int, tuple[bytes, int]] = {}
        """The same by host slot."""

    def run(self, batch: StepBatch) -> StepOutput:
        for start in batch.starts:
            self._states[start.state_slot] = (start.sampling, list(start.generated_ids))
        self._fork(batch)
        for copy in batch.copies:
            if copy.to_host:
                self._host[copy.host_slot] = self._encoding[copy.crop_slot]
            else:
                self._encoding[copy.crop_slot] = self._host[copy.host_slot]
        num_blocks = sum(self._encode(work) for work in batch.encode)
        assert sum(len(row.draw.uniforms) for row in batch.rows if row.draw) <= self.info.max_step_draws
        for row in batch.rows:
            self._write(row)
        return StepOutput(tuple(map(self._draw, batch.rows)), encode_s=num_blocks * ENCODE_BLOCK_S)

    def _encode(self, work: EncodeWork) -> int:
        if work.first_block == 0:
            assert len(work.pixels) == work.height * work.width * 3
            self._encoding[work.crop_slot] = (digest(work.width, work.height, work.pixels), 0)
        pixels, blocks_done = self._encoding[work.crop_slot]
        assert blocks_done == work.first_block < work.last_block <= self.info.num_vision_blocks
        self._encoding[work.crop_slot] = (pixels, work.last_block)
        return work.last_block - work.first_block

    def _fork(self, batch: StepBatch) -> None:
        for copied in batch.block_copies:
            for offset in range(self.info.kv_block_tokens):
                self._kv[copied.target, offset] = self._kv.get((copied.source, offset), b"never written")
        states = [self._states[fork.source_slot] for fork in batch.forks]
        for fork, (sampling, generated) in zip(batch.forks, states, strict=True):
            self._states[fork.state_slot] = (sampling, [*generated, fork.token_id])

    def _write(self, row: SequenceRow) -> None:
        inputs = [text_input(token_id) for token_id in row.token_ids]
        for crop in row.crops:
            pixels, blocks_done = self._encoding[crop.crop_slot]
            assert blocks_done == self.info.num_vision_blocks
            vectors = [crop_input(pixels, crop.first_query + index) for index in range(crop.num_queries)]
            inputs[crop.offset : crop.offset + crop.num_queries] = vectors
        for position, cell in enumerate(inputs, row.start):
            self._kv[self._place(row, position)] = b"%d:%s" % (position, cell)

    def _draw(self, row: SequenceRow) -> tuple[Sampled, ...]:
        if row.draw is None:
            return ()
        sampling, generated = self._states[row.state_slot]
        cells = [self._kv[self._place(row, position)] for position in range(row.start + len(row.token_ids))]
        num_known = len(cells) - row.draw.num_drafted
        if row.draw.num_best is not None:
            ranked = sorted(
                enumerate(beam_scores(cells, generated, sampling, self._vocab_size)), key=lambda one: -one[1]
            )
            return tuple(Sampled(token_id, score, ()) for token_id, score in ranked[: row.draw.num_best])
        draft = row.token_ids[len(row.token_ids) - row.draw.num_drafted :]
        drawn: list[Sampled] = []
        masks = row.draw.masks or (None,) * len(row.draw.uniforms)
        for count, (point, mask) in enumerate(zip(row.draw.uniforms, masks, strict=True)):
            drawn.append(choose(cells[: num_known + count], generated, sampling, point, self._vocab_size, mask))
            generated.append(drawn[-1].token_id)
            if [one.token_id for one in drawn] != list(draft[: count + 1]):
                break
        return tuple(drawn)

    def _place(self, row: SequenceRow, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.info.kv_block_tokens)
        return row.block_table[index], offset


def digest(width: int, height: int, pixels: bytes | memoryview) -> bytes:
    return blake2b(b"%dx%d:%s" % (width, height, bytes(pixels)), digest_size=8).digest()


def text_input(token_id: int) -> bytes:
    return b"id %d;" % token_id


def crop_input(pixels: bytes, query: int) -> bytes:
    return b"crop %s %d;" % (pixels, query)


def choose(
    cells: Iterable[bytes],
    generated: list[int],
    sampling: SamplingParams,
    point: float,
    vocab_size: int,
    mask: bytes | None = None,
) -> Sampled:
    """The next id, from what the cache holds, what the sampling state has seen, and the draw.

    Where the mask does not have that id, it is the next one that the mask has.
    """
    seen = f"{generated} {sampling} {point if sampling.temperature > 0 else None}"
    token_id = int.from_bytes(blake2b(b"".join([*cells, seen.encode()]), digest_size=8).digest()) % vocab_size
    while mask is not None and not mask[token_id // 8] >> token_id % 8 & 1:
        token_id = (token_id + 1) % vocab_size
    while token_id in sampling.end_ids and len(generated) < sampling.min_tokens:
        token_id = (token_id + 1) % vocab_size
    if sampling.num_logprobs is None:
        return Sampled(token_id, None, ())
    top = tuple(((token_id + rank) % vocab_size, -0.5 - rank) for rank in range(sampling.num_logprobs))
    return Sampled(token_id, -0.5, top)


def beam_scores(cells: Iterable[bytes], generated: list[int], sampling: SamplingParams, vocab_size: int) -> list[float]:
    """Log-probabilities of all ids, from the same as `choose`."""
    seen = b"".join([*cells, f"{generated} {sampling}".encode()])
    digests = (blake2b(seen + b"%d" % token_id, digest_size=8).digest() for token_id in range(vocab_size))
    return [-(int.from_bytes(one) % 100_003) / 30_000 for one in digests]


def expected_results(
    prompt_ids: Iterable[int],
    crops: Iterable[tuple[int, bytes]],
    *,
    crop_queries: int,
    sampling: SamplingParams,
    max_tokens: int,
    eos_id: int | None,
    vocab_size: int = 23,
    stop_token_ids: Iterable[int] = (),
    **beams: Any,
) -> list[list[int]]:
    """The results of a FakeRunner's sequence that searches, best first; arguments as for `expected_ids`."""
    inputs = _inputs(prompt_ids, crops, crop_queries)

    def scores(generated: Ordered[int]) -> list[float]:
        return beam_scores(_cells(inputs, generated), list(generated), sampling, vocab_size)

    end_ids = {*stop_token_ids, *([] if eos_id is None else [eos_id])}
    return [ids for ids, _ in plain_beam_search(scores, max_tokens=max_tokens, end_ids=end_ids, **beams)]


def expected_ids(
    prompt_ids: Iterable[int],
    crops: Iterable[tuple[int, bytes]],
    *,
    crop_queries: int,
    sampling: SamplingParams,
    seed: int,
    max_tokens: int,
    eos_id: int | None,
    stop_token_ids: Iterable[int] = (),
    vocab_size: int = 23,
    matcher: Matcher | None = None,
) -> list[int]:
    """What a FakeRunner's sequence generates when nothing goes wrong: all at once, alone, without any cache.

    Args:
        prompt_ids: the prompt.
        crops: (position of the first query token, `digest` of the crop).
        crop_queries: positions that a crop takes.
        sampling, seed, max_tokens, eos_id, stop_token_ids: as in the request.
        vocab_size: the runner's.
        matcher: of its grammar, at the beginning.
    """
    inputs = _inputs(prompt_ids, crops, crop_queries)
    generated: list[int] = []
    ends = {eos_id, *stop_token_ids}
    while len(generated) < max_tokens and (not generated or generated[-1] not in ends):
        if matcher is not None and matcher.is_complete:
            break
        cells = _cells(inputs, generated)
        mask = None if matcher is None else matcher.masks[0]
        generated.append(choose(cells, generated, sampling, uniform(seed, len(generated)), vocab_size, mask).token_id)
        if matcher is not None and generated[-1] != eos_id:
            matcher.advance(generated[-1])
    return generated


def _inputs(prompt_ids: Iterable[int], crops: Iterable[tuple[int, bytes]], crop_queries: int) -> list[bytes]:
    inputs = [text_input(token_id) for token_id in prompt_ids]
    for start, pixels in crops:
        inputs[start : start + crop_queries] = [crop_input(pixels, query) for query in range(crop_queries)]
    return inputs


def _cells(inputs: list[bytes], generated: Iterable[int]) -> list[bytes]:
    """What the cache should hold."""
    known = inputs + [text_input(token_id) for token_id in generated]
    return [b"%d:%s" % (position, cell) for position, cell in enumerate(known)]
